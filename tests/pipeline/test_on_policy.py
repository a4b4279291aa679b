"""What the loop of on-policy methods asks of a method, on every layout: to annotate, and to update."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import layouts
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments.methods import online_dpo, raft
from rlhf_jax.algorithms import policy_gradient, rollout
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.batches import Samples
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import on_policy, stages
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.sampling import SampleConfig

B, WIDTH, T, V, K = 16, 4, 6, 20, 2  # rows, prompt columns, response columns, vocabulary, draws
LM = networks.language_model(
    ModelConfig(vocab_size=V, context=WIDTH + T, layers=1, d_model=16, heads=2)
)
LOOP = on_policy.RLConfig(iterations=2, batch_size=B, optimizer=OptimizerConfig(lr=1e-2))
PPO = PPOConfig(epochs=2, minibatches=2)
GROUPS = policy_gradient.PolicyGradientConfig(epochs=2, minibatches=2, group=K)
PPO_OF = lambda run, params: on_policy.with_ppo(run, params, None)
METHODS = {
    "ppo": (PPO_OF, on_policy.PPORun(ppo=PPO, rl=LOOP)),
    "ppo, shared trunk": (
        PPO_OF, on_policy.PPORun(ppo=PPO, rl=replace(LOOP, value="shared"))
    ),
    "policy gradient": (
        on_policy.with_policy_gradient, on_policy.PolicyGradientRun(pg=GROUPS, rl=LOOP)
    ),
    "online dpo": (online_dpo.with_pairs, online_dpo.Config(rl=replace(LOOP, kl_coef=0.0))),
    "raft": (raft.with_winners, raft.Config(raft=raft.RAFTConfig(draws=K, batch_size=8), rl=LOOP)),
}  # fmt: skip


def samples(seed):
    """Uneven, and no token that ends a response."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < (1 + np.arange(B) * T // B)[:, None]
    prompt = np.arange(WIDTH) >= rng.integers(0, WIDTH, (B, 1))
    tokens = rng.integers(1, V, (B, WIDTH + T), np.int32)
    logprobs = np.where(mask, 0.3 * rng.normal(size=(B, T)) - 3, 0).astype(np.float32)
    ended = np.arange(B) % 2 > 0
    return Samples(tokens, np.concatenate([prompt, mask], axis=1), mask, logprobs, ended)


def run_of(settings, devices) -> Prepared:
    """What a method asks of a run."""
    nothing = Prepared(*[None] * len(Prepared._fields))  # pyright: ignore[reportArgumentType]
    return nothing._replace(
        cfg=SimpleNamespace(**settings),
        devices=devices,
        lm=LM,
        key=jax.random.key(1),
        name="rloo",
    )


@layouts.marked
@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("ppo", 2),
        ("ppo, shared trunk", 0),
        ("policy gradient", 2),
        ("online dpo", 0),
        ("raft", 0),
    ],
)
def test_what_a_method_makes_of_samples_does_not_depend_on_the_layout(name, rank, names):
    """All of two iterations but the sampling: of all parameters, or of adapters over a base."""
    with_method, cfg = METHODS[name]
    adapters = lora.LoraConfig(rank, matrices=("query", "value", "attention_out", "up", "down"))
    settings = vars(cfg) | {"lora": adapters}
    params = jax.device_get(jax.jit(LM.init)(jax.random.key(0)))
    scores = np.random.default_rng(1).normal(size=(2, B)).astype(np.float32)
    scores[:, : 3 * K] = 0.0  # three prompts' draws tie, and those pairs weigh nothing

    def run(devices):
        method = with_method(run_of(settings, devices), params)
        reference, seen = devices.share(params), []
        base, state = (
            devices.share(method.base),
            stages.init_state_on(devices, method.trained, method.tx),
        )
        with_rewards = devices.compile(
            partial(rollout.with_rewards, cfg=RolloutConfig()), (P(DATA), P(DATA)), P(DATA)
        )
        for i in range(2):
            whole, rows = lora.join(base, state.params, adapters), devices.put_batch(samples(i))
            rolled = with_rewards(
                method.learner.annotate(whole, reference, rows), devices.put_batch(scores[i])
            )
            seen.append(devices.fetch(rolled))
            state, metrics = method.learner.update(
                state, {"base": base}, np.float32(0.1), rolled, jax.random.key(2 + i)
            )
        return seen, devices.host((state, metrics))

    _, (state, metrics) = layouts.compare(run, names, atol=1e-4, rtol=1e-4)
    assert state.step == {"ppo": 8, "policy gradient": 8}.get(name.split(",")[0], 2)
    assert metrics["objective/kl"] != 0 and metrics["train/grad_norm"] > 0
    blocks = state.params.get("policy", state.params)["blocks"]
    assert all(np.abs(x["lora_b"]).max() > 1e-3 for x in blocks.values() if rank)


@pytest.mark.parametrize("name", ["ppo", "ppo, shared trunk", "policy gradient", "raft"])
def test_a_learner_reads_policy_and_reference_at_the_temperature_of_the_samples(name):
    with_method, cfg = METHODS[name]
    once = {
        "ppo": replace(PPO, epochs=1, minibatches=1),
        "pg": replace(GROUPS, epochs=1, minibatches=1),
    }
    engine = RolloutConfig(recompute_logprobs=True)
    settings = vars(cfg) | once | {"rollout": engine, "sample": SampleConfig(temperature=0.5)}
    devices, params = parallel.on_device(), jax.jit(LM.init)(jax.random.key(0))
    method, seen = with_method(run_of(settings, devices), params), samples(0)
    state = stages.init_state_on(devices, method.trained, method.tx)
    rolled = method.learner.annotate(state.params, params, seen)
    at_half = networks.at_temperature(LM.policy_fn, 0.5)
    want, _ = jax.jit(partial(at_half, last=T))(params, seen.tokens, seen.attention_mask)
    for got in (rolled.logprobs, rolled.ref_logprobs):
        np.testing.assert_allclose(got, np.where(seen.mask, want, 0.0), atol=1e-5)
    if name != "raft":
        rolled = rollout.with_rewards(rolled, np.arange(B, dtype=np.float32), engine)
        _, metrics = method.learner.update(
            state, {"base": method.base}, np.float32(0.1), rolled, jax.random.key(2)
        )
        assert metrics[f"{method.learner.area}/approx_kl"] < 1e-8  # half the square of 1e-4
