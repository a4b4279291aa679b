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
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import generation, keys, learners, on_policy, scoring, stages, texts
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.pipeline.rl_settings import CriticRLConfig, GroupRLConfig, PolicyGradientRun, PPORun
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.runs import metrics
from rlhf_jax.sampling import SampleConfig

B, WIDTH, T, V, K = 16, 4, 6, 20, 2  # rows, prompt columns, response columns, vocabulary, draws
LM = networks.language_model(
    ModelConfig(vocab_size=V, context=WIDTH + T, layers=1, d_model=16, heads=2)
)
HOW = {"iterations": 2, "batch_size": B, "optimizer": OptimizerConfig(lr=1e-2)}
LOOP, CRITIC = GroupRLConfig(**HOW), CriticRLConfig(**HOW)
PPO = PPOConfig(epochs=2, minibatches=2)
GROUPS = policy_gradient.PolicyGradientConfig(epochs=2, minibatches=2, group=K)
PG_OF = lambda run, params: learners.with_policy_gradient(run, "rloo", params)
PPO_OF = lambda run, params: learners.with_ppo(run, params, None)
METHODS = {
    "ppo": (PPO_OF, PPORun(ppo=PPO, rl=CRITIC)),
    "ppo, shared trunk": (
        PPO_OF, PPORun(ppo=PPO, rl=replace(CRITIC, value="shared"))
    ),
    "policy gradient": (
        PG_OF, PolicyGradientRun(pg=GROUPS, rl=LOOP)
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


@pytest.mark.parametrize(
    "name",
    ["ppo", pytest.param("ppo, shared trunk", marks=pytest.mark.more), "policy gradient", "raft"],
)
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


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_method_starts_from_the_policy_where_that_is_not_the_reference(name, rank):
    with_method, cfg = METHODS[name]
    adapters = lora.LoraConfig(rank)
    reference, start = (jax.device_get(jax.jit(LM.init)(jax.random.key(i))) for i in range(2))
    run = run_of(vars(cfg) | {"lora": adapters}, parallel.on_device())
    method = with_method(run._replace(load_policy=lambda: start), reference)
    params = method.learner.policy_of(lora.join(method.base, method.trained, adapters))
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params), start)


def test_no_two_purposes_share_a_key():
    every = [keys.key_of(3, stage) for stage in keys.STAGES]
    every += [keys.adapters(3, stage) for stage in ("sft", "reward", "held_out_reward", "policy")]
    every += [
        jax.random.fold_in(keys.key_of(3, x), i) for x in ("rollout", "update") for i in range(99)
    ]
    every += [keys.key_of(4, stage) for stage in keys.STAGES]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in every}) == len(every)


FIRST = """
def first(prompts, responses):
    with open({log!r}, "a") as log:
        log.write("".join(said + "\\n" for said in responses))
    return [float(said.split()[0]) for said in responses]
"""


def trained(monkeypatch, folder, weight=0.5, refill=0, policy=None):
    """The responses [rollouts, B], as ids, and the metrics of three iterations.

    There is one prompt and nothing is learned, so that only keys can make two rollouts differ.
    """
    file, log = folder / "first.py", folder / "log"
    file.write_text(FIRST.format(log=str(log)))
    python = {"reward": f"{file}:first", "reward_model_weight": weight, "refill": refill}
    python["eval_every"] = 0  # whose responses the log would hold too
    rl = replace(LOOP, iterations=3, optimizer=OptimizerConfig(lr=1e-12), **python)
    cfg = PolicyGradientRun(
        pg=replace(policy_gradient.RLOO, group=K), rl=rl, sample=SampleConfig(length=T),
        rollout=RolloutConfig(missing_eos_penalty=0.0),
    )  # fmt: skip
    row, zero = texts.Row("say", {}, "say"), np.zeros(1, np.int32)
    one = Prompts(np.ones((1, WIDTH), np.int32), np.ones((1, WIDTH), bool), zero, zero)
    monkeypatch.setattr(on_policy, "encode_prompts", lambda *args: one)
    devices = parallel.on_device()
    write = lambda samples: [" ".join(map(str, row)) for row in samples.tokens[:, -T:].tolist()]
    generator = generation.make_generator(cfg.sample, devices, LM, None, WIDTH, B)
    run = run_of(vars(cfg), devices)._replace(
        load_policy=policy and (lambda: policy),
        folder=folder,
        generator=generator._replace(texts=write),
        texts=texts.Texts([], [], [row], [row], None, [], 0, None),
        scorer=scoring.python_reward(cfg, texts.Texts([], [], [row], [row], None, [], 0, None)),
    )
    params = jax.device_get(jax.jit(LM.init)(jax.random.key(0)))
    last = Reward(lambda scale, tokens, mask: scale * tokens[:, -1], np.float32(2))
    on_policy.train(run, learners.with_policy_gradient(run, "rloo", params), params, last)
    said = np.reshape(log.read_text().splitlines(), (-1, B))
    return said, metrics.read(folder / "metrics.jsonl")


def test_no_two_rollouts_draw_with_one_key(monkeypatch, tmp_path):
    said, _ = trained(monkeypatch, tmp_path)
    assert len(said) == 3 and len({*said.ravel()}) > 0.9 * said.size


def test_further_rounds_of_dynamic_sampling_draw_with_keys_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(np, "ptp", lambda x, axis: 0 * x[:, 0])  # all groups without signal
    said, _ = trained(monkeypatch, tmp_path, refill=2)
    assert len(said) == 9 and len({*said.ravel()}) > 0.9 * said.size


def test_the_first_kl_is_that_of_the_policy_to_another_reference(monkeypatch, tmp_path):
    """The mean over responses of the sum over tokens of log p - log q, by two forward passes."""
    reference, policy = (jax.device_get(jax.jit(LM.init)(jax.random.key(i))) for i in range(2))
    policy = jax.tree.map(lambda x: 4 * x, policy)
    said, rows = trained(monkeypatch, tmp_path, policy=policy)
    ids = np.array([x.split() for x in said[0]], np.int32)
    tokens = np.concatenate([np.ones((B, WIDTH), np.int32), ids], axis=1)
    p, q = (
        jax.jit(partial(LM.policy_fn, last=T))(params, tokens, np.ones(tokens.shape, bool))[0]
        for params in (policy, reference)
    )
    want = float((p - q).sum(axis=1).mean())
    assert want > 1 and rows[0]["objective/kl"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_what_is_maximised_is_the_weighted_sum_of_both_rewards(monkeypatch, tmp_path, weight):
    said, rows = trained(monkeypatch, tmp_path, weight=weight)
    ids = np.array([x.split() for x in said.ravel()], float).reshape(*said.shape, T)
    python, model = ids[:, :, 0], 2 * ids[:, :, -1]
    got = [row["objective/score"] for row in rows]
    np.testing.assert_allclose(got, (weight * model + python).mean(axis=1), rtol=1e-5)
