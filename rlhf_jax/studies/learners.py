"""How the policies of a study are trained: PPO, RLOO and GRPO on a reward, DPO and SFT on comparisons.

Everything has a leading axis of seeds [S, ...] and is mapped over it by `Devices.each`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, preference, rollout, sft
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import PreferenceBatch, Samples
from rlhf_jax.bounds import Count, NonNegative, Positive, Settings
from rlhf_jax.data.batching import rows_at
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.studies import lab as labs
from rlhf_jax.studies.lab import Lab, Seed
from rlhf_jax.studies.proxies import compare

MethodName = Literal["ppo", "rloo", "grpo", "dpo", "sft"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
ON_POLICY = METHODS[:3]
EPOCHS = {"ppo": 2, "rloo": 1, "grpo": 2}  # updates of a rollout
GROUP = {"ppo": 1, "rloo": 4, "grpo": 8}  # responses to a prompt


@dataclass(frozen=True)
class Method(Settings):
    """Training method of a policy, and its settings."""

    name: MethodName
    """Training method: ppo, rloo, grpo, dpo, or sft on the chosen responses."""
    lr: Positive = 1e-3
    """Peak learning rate; it falls linearly to zero."""
    strength: NonNegative = 0.05
    """Strength of the pull to the reference: the KL coefficient, DPO's beta, or 1 / passes over the data
    for SFT."""
    iterations: Count = 100
    """Number of rollouts of an on-policy method."""
    batch_size: Count = 128
    """Responses per rollout of an on-policy method, or pairs per gradient step."""
    epochs: Positive = 1.0
    """Passes of DPO over the comparisons."""

    def _conditions(self, at: str):
        group = GROUP.get(self.name, 1)
        if self.batch_size % group:
            raise ValueError(
                f"{at}batch_size = {self.batch_size}: {self.name} draws {group} responses to each prompt, "
                f"so it must be a multiple of {group}"
            )
        if self.name not in ON_POLICY and not self.strength:
            raise ValueError(f"{at}strength = {self.strength}: {self.name} needs it above 0")


class Trained(NamedTuple):
    """Policies [S], and what was seen on the way: arrays [S, iterations] by name."""

    params: Any
    curves: dict[str, np.ndarray]


def on_policy(
    lab: Lab, method: Method, seeds: Sequence[Seed], *, kind: str, size: str = "", rewards=None
) -> Trained:
    """Policies trained on reward models `rewards` [S] of `size`, or on gold of `kind` itself without them.

    The curves are of the rollouts, each drawn from the policy of its iteration: the KL to the reference
    (nats a response), gold, proxy (the score that was trained on) and length.
    """
    devices, S, group = lab.devices, len(seeds), GROUP[method.name]
    seeds = labs.filled(devices, [*seeds])
    start, policy_of, learn = _compiled(
        devices.each, method.name, lab.lms[lab.cfg.policy], method.lr, method.iterations,
        rollout.RolloutConfig(missing_eos_penalty=0.0 if rewards is None else 1.0),
    )  # fmt: skip
    reference, strength = devices.share((lab.trunks[lab.cfg.policy], np.float32(method.strength)))
    root = labs.keys(devices, [seed.policy for seed in seeds], stage=3)
    state = start(root, reference)
    if rewards is not None:
        rewards = devices.put_batch(labs.filled(devices, rewards))

    def rows_of(i):
        """The prompts of iteration i for each seed [S, B], `group` adjacent draws of each."""
        n = method.batch_size // group
        return np.stack(
            [np.repeat(rows_at(len(lab.prompts), n, seed.policy, i), group) for seed in seeds]
        )

    curves = {"kl": [], "gold": [], "proxy": [], "length": []}
    for i in range(method.iterations):
        rows, rng = rows_of(i), _folding(devices.each)(root, np.int32(i))
        prompts = jax.tree.map(lambda x, r=rows: x[r], lab.encoded)
        draw = np.broadcast_to(np.arange(method.batch_size, dtype=np.int32), rows.shape)
        prompts = devices.put_batch(prompts._replace(draw=draw))
        samples = lab.sample(policy_of(state.params), prompts, rng)
        if rewards is not None:
            scorer = labs.scorer(devices.each, lab.lms[size])
            scores = scorer(rewards, samples.tokens, samples.attention_mask)
            state, metrics = learn(state, reference, strength, samples, scores, rng)
        said = devices.fetch(samples)
        golds = gold(lab, kind, rows, said)
        if rewards is None:
            scores = devices.put_batch(golds.astype(np.float32))
            state, metrics = learn(state, reference, strength, samples, scores, rng)
        curves["gold"].append(golds.mean(axis=1))
        curves["proxy"].append(devices.fetch(scores).mean(axis=1))
        metrics = devices.fetch(metrics)
        curves["kl"].append(metrics["objective/kl"])
        curves["length"].append(metrics["objective/length"])
    curves = {name: np.stack(x, axis=1, dtype=float)[:S] for name, x in curves.items()}
    return Trained(_first(S, devices.fetch(policy_of(state.params))), curves)


def _first(S: int, tree):
    """What is the seeds' own, of what was filled up."""
    return jax.tree.map(lambda x: x[:S], tree)


@cache
def _folding(each):
    return each(jax.random.fold_in, (P(DATA), P()))


@cache
def _compiled(each: Callable, name, policy, lr, iterations, cfg):
    """The states that a reference starts in, the policy's part of parameters, and one update of each seed."""
    tx = optimizer.make(OptimizerConfig(lr=lr), iterations * EPOCHS[name])
    learner = _learner(name, policy, tx, cfg)
    begin = lambda _, reference: train_step.init_state(learner.init(reference), tx)

    def learn(state, reference, kl_coef, samples, scores, rng):
        seen = learner.annotate(state.params, reference, samples)
        return learner.update(state, {}, kl_coef, rollout.with_rewards(seen, scores, cfg), rng)

    specs = P(DATA), P(), P(), P(DATA), P(DATA), P(DATA)
    return each(begin, (P(DATA), P())), learner.policy_of, each(learn, specs, 0)


def _learner(name, policy, tx, cfg) -> Learner:
    """The method `name` on a language model."""
    epochs = EPOCHS[name]
    if name == "ppo":
        critic = networks.actor_critic(policy)
        return ppo.make_learner(policy.policy_fn, critic, tx, ppo.PPOConfig(epochs=epochs), cfg)
    preset = {"rloo": policy_gradient.RLOO, "grpo": policy_gradient.GRPO}[name]
    preset = replace(preset, group=GROUP[name], epochs=epochs)
    return policy_gradient.make_learner(policy.policy_fn, tx, preset, cfg)


def gold(lab: Lab, kind: str, rows: np.ndarray, samples: Samples) -> np.ndarray:
    """What samples [S, B, ...] to the prompts of `rows` [S, B] are worth [S, B]."""
    S, B = rows.shape
    flat = jax.tree.map(lambda x: x.reshape(S * B, *x.shape[2:]), samples)
    return labs.gold(lab, kind, [lab.prompts[row] for row in rows.ravel()], flat).reshape(S, B)


def from_comparisons(
    lab: Lab, method: Method, seeds: Sequence[Seed], *, kind: str, pairs: int
) -> Trained:
    """Policies trained on the comparisons of each data seed: DPO on both sides, SFT on what was chosen."""
    policy, devices, S = lab.lms[lab.cfg.policy], lab.devices, len(seeds)
    data = labs.filled(devices, compare(lab, kind, pairs, seeds))
    seeds = labs.filled(devices, [*seeds])
    reference = devices.share(lab.trunks[lab.cfg.policy])
    batch_size = min(method.batch_size, pairs)
    passes = 1 / method.strength if method.name == "sft" else method.epochs
    steps = max(1, round(passes * pairs / batch_size))
    tx = optimizer.make(OptimizerConfig(lr=method.lr, warmup=min(20, steps // 5)), steps)
    if method.name == "dpo":
        ref = devices.each(preference.make_reference_logprobs(policy.policy_fn), (P(), P(DATA)))
        sides = [devices.fetch(ref(reference, devices.put_batch(side))) for side in data.sides]
        data = PreferenceBatch(data, *sides)
        cfg = PreferenceConfig(beta=method.strength)
        step = preference.make_train_step(policy.policy_fn, tx, cfg)
    else:
        data = data.chosen
        step = sft.make_train_step(policy.policy_fn, tx)
    step = devices.each(step, (P(DATA), P(), P(DATA)), 0)
    rng = labs.keys(devices, [seed.policy for seed in seeds], stage=3)
    start = devices.each(lambda _, params: train_step.init_state(params, tx), (P(DATA), P()))
    state = start(rng, reference)
    losses = []
    for i in range(steps):
        rows = np.stack([rows_at(pairs, batch_size, seed.policy, i) for seed in seeds])
        state, metrics = step(state, {}, devices.put_batch(labs.batch_of(data, rows)))
        losses.append(metrics["preference/loss" if method.name == "dpo" else "sft/loss"])
    curves = {"loss": np.stack([devices.fetch(loss) for loss in losses], axis=1)[:S]}
    return Trained(_first(S, devices.fetch(state.params)), curves)


@cache
def _logprobs(each: Callable, policy_fn):
    """(params, tokens [S, N, L], attention_mask) -> log-probabilities [S, N, T], on the devices."""
    last = labs.LENGTH
    fn = lambda params, tokens, mask: policy_fn(params, tokens, mask, last=last)[0]
    return each(fn, (P(), P(DATA), P(DATA)))


def logprob(lab: Lab, params, samples: Samples) -> np.ndarray:
    """log pi(y | x) of each response [S, N] under one policy of the lab's policy size."""
    devices, (S, N) = lab.devices, samples.tokens.shape[:2]
    fn = _logprobs(devices.each, lab.lms[lab.cfg.policy].policy_fn)
    params = devices.share(params)
    both = labs.filled(devices, (samples.tokens, samples.attention_mask))
    ask = lambda rows: fn(params, *devices.put_batch(tuple(x[:, rows] for x in both)))
    tokens = labs.in_chunks(devices, ask, S, N)
    return np.where(samples.mask, tokens, 0.0).sum(axis=2)


def examine(
    lab: Lab, params, seeds: Sequence[Seed], *, kind: str, draws: int = 8
) -> tuple[Samples, np.ndarray, np.ndarray]:
    """What policies [S] say to each held-out prompt `draws` times: (samples, gold, log-ratio) [S, N]."""
    every = np.arange(len(lab.asked)).reshape(-1, lab.cfg.pool_draws)[:, :draws].ravel()
    prompts = jax.tree.map(lambda x: x[every], lab.asked_encoded)
    said = labs.respond(lab, params, prompts, [seed.policy for seed in seeds], stage=4)
    asked, flat = (
        [lab.asked[row] for row in every] * len(seeds),
        lambda x: x.reshape(-1, *x.shape[2:]),
    )
    golds = labs.gold(lab, kind, asked, jax.tree.map(flat, said)).reshape(len(seeds), -1)
    ratio = said.logprobs.sum(axis=2) - logprob(lab, lab.trunks[lab.cfg.policy], said)
    return said, golds, ratio
