"""Our side: the library's public functions, compiled as an experiment compiles them.

python -m bench.sides.ours '{"name": "sft", "folder": ..., "work": {...}}'
"""

import pathlib
import time
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from bench import works
from bench.sides import protocol
from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, preference, reward_model, rollout, sft
from rlhf_jax.batches import Comparisons, PreferenceBatch, Prompts, Sequences
from rlhf_jax.data.packing import pack
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.models.hub import huggingface

RATE_SIZE, RATE_TRIES = 1024, 8
ROLLOUT = rollout.RolloutConfig(missing_eos_penalty=0.0)


def rate() -> dict:
    """Operations a second of this machine's own matrix product, float32: the best of some tries."""
    x = jnp.ones((RATE_SIZE, RATE_SIZE))
    product = jax.jit(jnp.dot)
    seconds = []
    for _ in range(RATE_TRIES):
        began = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - began)
    return {"rate": 2 * RATE_SIZE**3 / min(seconds)}


class Ours:
    """What every work needs: the model, the devices, the optimizer and the data."""

    def __init__(self, name: str, folder: str, work: works.Work):
        self.name, self.work = name, work
        self.folder, self.devices = pathlib.Path(folder), parallel.on_device()
        _, cfg, _ = huggingface.read_config(self.folder / "policy")
        self.lm, vocabulary = networks.language_model(cfg), cfg.vocab_size
        self.tokens = works.tokens(name, work, vocabulary)
        self.stops = tuple(works.stops(name, work, vocabulary))
        self.tx = optimizer.make(
            optimizer.OptimizerConfig(lr=works.LR, schedule="constant", clip=works.CLIP), 1
        )
        self.step, self.key = 0, jax.random.key(0)

    def read(self, name: str = "policy"):
        """Parameters, which nobody else holds."""
        return huggingface.load(str(self.folder / name)).params

    def rng(self):
        """A key of its own for each piece of work."""
        self.step += 1
        return jax.random.fold_in(self.key, self.step)

    def sequences(self, tokens, response: int) -> Sequences:
        """Rows without padding, of whose columns the last `response` are learned."""
        whole = np.ones(tokens.shape, bool)
        return Sequences(tokens, whole, whole[:, -response:])

    def sampler(self, temperature: float):
        """(the compiled sampler, batches of prompts); ragged rows make room for the next prompts."""
        ragged = self.name == "ragged"
        cfg = sampling.SampleConfig(
            length=self.work.response, temperature=temperature, stop=self.stops,
            slots=self.work.rows if ragged else 0,
        )  # fmt: skip
        sample = self.devices.compile(
            sampling.make_sample(self.lm, cfg), (P(), P(DATA), P()), P(DATA)
        )
        rows = np.arange(len(self.tokens), dtype=np.int32)
        B = len(rows) if ragged else self.work.rows
        whole, each = np.ones(self.tokens.shape, bool), self.work.group
        batches = (
            Prompts(*(x[i : i + B : each] for x in (self.tokens, whole)), *[rows[i : i + B]] * 2)
            for i in range(0, len(rows), B)
        )
        return sample, [self.devices.put_batch(batch) for batch in batches]

    def state(self, params):
        """Of a training that starts from `params`."""
        return self.devices.put(train_step.init_state(params, self.tx))

    def update(self, step, state, frozen, batch, metric: str):
        """The work that is one training step on a batch; what it says is the loss."""
        step = self.devices.compile(step, (P(), P(), P(DATA)), (P(), P()), donate=0)
        batch = self.devices.put_batch(batch)
        held = SimpleNamespace(state=state)

        def work():
            held.state, metrics = step(held.state, frozen, batch)
            jax.block_until_ready(held.state)
            return float(metrics[metric]), {}

        return work


def generating(ours: Ours):
    """generate, sample and ragged: all prompts, a batch at a time; what it says are the tokens."""
    sample, batches = ours.sampler(0.0 if ours.name == "generate" else 1.0)
    params = ours.devices.put(ours.read())

    def work():
        key = ours.rng()
        found = ours.devices.fetch([sample(params, batch, key) for batch in batches])
        said = [x.tokens[:, -ours.work.response :] for x in found]
        return np.concatenate(said).tolist(), {"units": int(sum(x.mask.sum() for x in found))}

    return work


def reward(ours: Ours):
    """A step of the reward model."""
    fn, params = (
        networks.reward_model(ours.lm).fn,
        ours.read("reward"),
    )
    both = (ours.sequences(x, ours.work.length // 2) for x in ours.tokens)
    step, ones = reward_model.make_train_step(fn, ours.tx), np.ones((2, ours.work.rows), np.float32)
    return ours.update(step, ours.state(params), {}, Comparisons(*both, *ones), "reward/loss")


def supervised(ours: Ours):
    """A step on demonstrations, all of whose tokens are learned but the first."""
    batch = ours.sequences(ours.tokens, ours.work.length - 1)
    step = sft.make_train_step(ours.lm.policy_fn, ours.tx)
    return ours.update(step, ours.state(ours.read()), {}, batch, "sft/loss")


def on_texts(ours: Ours):
    """packed and padded: a step on texts of different lengths, several or one a row; counts their tokens."""
    real = np.arange(ours.work.length) < works.sizes(ours.work)[:, None]
    batch = Sequences(ours.tokens, real, real[:, 1:])
    if ours.name == "packed":
        batch = pack(batch, ours.work.length)
    step = sft.make_train_step(ours.lm.policy_fn, ours.tx)
    go = ours.update(step, ours.state(ours.read()), {}, batch, "sft/loss")
    return lambda: (go()[0], {"units": int(real.sum())})


def dpo(ours: Ours):
    """The reference's pass over both sides, and a step."""
    devices, fn = ours.devices, ours.lm.policy_fn
    reference = devices.compile(preference.make_reference_logprobs(fn), (P(), P(DATA)), P(DATA))
    cfg = preference.PreferenceConfig(beta=works.BETA)
    step = devices.compile(
        preference.make_train_step(fn, ours.tx, cfg), (P(), P(), P(DATA)), (P(), P()), donate=0
    )
    both = (ours.sequences(x, ours.work.response) for x in ours.tokens)
    pairs = devices.put_batch(Comparisons(*both, *np.ones((2, ours.work.rows), np.float32)))
    ref_params, held = (
        devices.put(ours.read()),
        SimpleNamespace(state=ours.state(ours.read())),
    )

    def work():
        seen = (reference(ref_params, side) for side in pairs.sides)
        batch = PreferenceBatch(pairs, *seen)
        held.state, metrics = step(held.state, {}, batch)
        jax.block_until_ready(held.state)
        return float(metrics["preference/loss"]), {}

    return work


def grpo(ours: Ours):
    """Sampling, a Python reward, the reference's log-probabilities, one gradient step."""
    devices, fn, held = ours.devices, ours.lm.policy_fn, SimpleNamespace()
    sample, (prompts,) = ours.sampler(1.0)
    cfg = policy_gradient.GRPO
    cfg = type(cfg)(**vars(cfg) | {"group": ours.work.group})
    annotate = devices.compile(rollout.make_annotate(fn, ROLLOUT), (P(), P(), P(DATA)), P(DATA))
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=ROLLOUT), (P(DATA), P(DATA)), P(DATA)
    )
    update = devices.compile(
        policy_gradient.make_update(fn, ours.tx, cfg),
        (P(), P(), P(), P(DATA), P()),
        (P(), P()),
        donate=0,
    )
    reference, held.state = devices.put(ours.read()), ours.state(ours.read())
    coefficient = jnp.float32(works.KL)

    def work():
        key = ours.rng()
        samples = sample(held.state.params, prompts, key)
        seen = annotate(held.state.params, reference, samples)
        said = devices.fetch(samples.tokens)[:, -ours.work.response :]
        batch = with_rewards(seen, devices.put_batch(works.score(said)))
        held.state, _ = update(held.state, {}, coefficient, batch, jax.random.fold_in(key, 1))
        jax.block_until_ready(held.state)
        return None, {}

    return work


def with_ppo(ours: Ours):
    """Sampling, the reward model, reference and critic, and the epochs of updates."""
    devices, lm, held = ours.devices, ours.lm, SimpleNamespace()
    sample, (prompts,) = ours.sampler(1.0)
    judge = ours.read("reward")
    critic = networks.actor_critic(lm, "shared" if ours.name == "shared" else "separate")
    of_samples = lambda params, x: networks.reward_model(lm).fn(params, x.tokens, x.attention_mask)
    score = devices.compile(of_samples, (P(), P(DATA)), P(DATA))
    annotate = devices.compile(
        rollout.make_annotate_with_values(lm.policy_fn, critic.fn, ROLLOUT),
        (P(), P(), P(DATA)),
        P(DATA),
    )
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=ROLLOUT), (P(DATA), P(DATA)), P(DATA)
    )
    update = devices.compile(
        ppo.make_update(critic.fn, ours.tx, ppo.PPOConfig(epochs=ours.work.epochs)),
        (P(), P(), P(), P(DATA), P()),
        (P(), P()),
        donate=0,
    )
    reference, judge = devices.share((ours.read(), judge))
    held.state = ours.state(critic.init(ours.read()))
    coefficient = jnp.float32(works.KL)

    def work():
        key = ours.rng()
        samples = sample(held.state.params["policy"], prompts, key)
        scores = score(judge, samples)
        batch = with_rewards(annotate(held.state.params, reference, samples), scores)
        held.state, metrics = update(held.state, {}, coefficient, batch, jax.random.fold_in(key, 1))
        jax.block_until_ready((held.state, metrics))
        return None, {}

    return work


MAKE = dict(
    generate=generating, sample=generating, ragged=generating, reward=reward, sft=supervised,
    dpo=dpo, grpo=grpo, ppo=with_ppo, shared=with_ppo, packed=on_texts, padded=on_texts,
)  # fmt: skip


def main():
    """Serves what the parent asks for."""
    asked = protocol.settings()
    ours = Ours(asked.name, asked.folder, works.Work(**asked.work))
    protocol.serve(MAKE[asked.name](ours), more={"rate": rate})


if __name__ == "__main__":
    main()
