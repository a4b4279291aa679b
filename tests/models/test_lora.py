"""Low-rank adapters: nothing at first, the same when merged, and all that is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import ppo, sft
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.batches import PPORollout, Samples, Sequences
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.optimizer import OptimizerConfig

B, P, T, V = 4, 3, 4, 13
MODEL = ModelConfig(
    vocab_size=V, context=P + T, layers=3, d_model=12, heads=6, kv_heads=2, positions="rotary",
    norm="rmsnorm", activation="swiglu", bias=False, qkv_bias=True, tied=False,
)  # fmt: skip
EVERY = ("query", "key", "value", "attention_out", "gate", "up", "down")
CFG = LoraConfig(rank=2, alpha=6.0, matrices=EVERY)
LM = networks.language_model(MODEL)
AC = networks.actor_critic(LM)
TX = optimizer.make(OptimizerConfig(lr=0.05, weight_decay=0.1), 10)
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, V, (B, P + T), np.int32))
REAL = jnp.concatenate(
    [np.arange(P) >= [[0], [1], [2], [0]], np.arange(T) < [[4], [1], [3], [2]]], axis=1
)
BATCH = Sequences(TOKENS, REAL, REAL[:, P:])


def noisy(tree, deviation=0.5):
    """The tree with noise in every leaf, so that no adapter is zero."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [
        x + deviation * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noise)


@pytest.fixture(scope="module")
def params():
    return noisy(jax.jit(LM.init)(jax.random.key(0)), 0.1)


@jax.jit
def logprobs(params):
    return LM.policy_fn(params, TOKENS, REAL, last=T)[0]


def test_adapters_change_nothing_at_first_and_share_the_base(params):
    base, trained = lora.split(jax.random.key(1), params, CFG)
    joined = lora.join(base, trained, CFG)
    assert np.array_equal(logprobs(joined), logprobs(params))
    shared = {id(x) for x in jax.tree.leaves(joined)} & {id(x) for x in jax.tree.leaves(params)}
    assert len(shared) == len(jax.tree.leaves(params))
    assert {x.shape[-1] for x in jax.tree.leaves(trained)} <= {CFG.rank, 12, 4, 48}
    a = trained["blocks"]["down"]["lora_a"]
    assert 0.8 * 48**-0.5 < jnp.max(jnp.abs(a)) <= 48**-0.5 and a.shape == (3, 48, 2)
    assert not np.array_equal(
        a, lora.split(jax.random.key(2), params, CFG)[1]["blocks"]["down"]["lora_a"]
    )


def test_what_is_added_is_alpha_over_rank_times_a_b_and_merging_it_changes_nothing(params):
    base, trained = lora.split(jax.random.key(1), params, CFG)
    trained = noisy(trained)
    joined = lora.join(base, trained, CFG)
    by_hand = jax.tree.map(np.asarray, params)
    for name in EVERY:
        a, b = (np.asarray(trained["blocks"][name][x], np.float64) for x in ("lora_a", "lora_b"))
        block = by_hand["blocks"][name]
        block["kernel"] = (block["kernel"] + 6.0 / 2 * np.einsum("lnr,lrm->lnm", a, b)).astype(
            np.float32
        )
    merged = lora.merge(joined)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), merged, by_hand)
    assert jnp.max(jnp.abs(logprobs(merged) - logprobs(params))) > 0.1
    np.testing.assert_allclose(logprobs(joined), logprobs(merged), atol=2e-5)

    prefill = jax.jit(lambda params: LM.prefill_fn(params, TOKENS[:, :P], REAL[:, :P], 1))
    (logits, cache), (want, _) = prefill(joined), prefill(merged)
    np.testing.assert_allclose(logits, want, atol=2e-5)
    logits, _ = jax.jit(LM.decode_fn)(joined, cache, TOKENS[:, P])
    so_far = TOKENS[:, : P + 2], REAL.at[:, P].set(True)[:, : P + 2]
    want = jax.jit(LM.logits_fn, static_argnames="last")(merged, *so_far, last=1)[:, 0]
    np.testing.assert_allclose(logits, want, atol=2e-5)


def rollout():
    samples = Samples(
        TOKENS,
        REAL,
        REAL[:, P:],
        np.where(REAL[:, P:], -2.0, 0.0).astype(np.float32),
        np.ones(B, bool),
    )
    noise = lambda: RNG.normal(size=(B, T)).astype(np.float32) * REAL[:, P:]
    return PPORollout(samples, noise(), samples.logprobs, samples.logprobs - 0.1, noise())


def test_ppo_moves_adapters_and_heads_alone_by_the_gradient_that_the_whole_tree_has(params):
    base, trained = lora.split(jax.random.key(1), AC.init(params), CFG)
    make = lambda fn: ppo.make_update(fn, TX, PPOConfig(epochs=2, minibatches=2))
    update = jax.jit(lora.over_base(make, AC.fn, CFG))
    state = train_step.init_state(trained, TX)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(state.opt_state) < 2 * count(trained) + 5 < 2 * count(params)
    after, metrics = update(state, {"base": base}, 0.1, rollout(), jax.random.key(2))
    assert metrics["ppo/steps"] == 4 and jax.tree.structure(after) == jax.tree.structure(state)
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), trained, after.params)
    assert moved["value"]["head"] and moved["value"]["bias"]
    assert all(jax.tree.leaves(moved["policy"])) and all(jax.tree.leaves(moved["value"]["trunk"]))
    joined = lora.join(base, after.params, CFG)
    ours = lambda tree: {k: v for k, v in tree["policy"]["blocks"]["up"].items() if k == "kernel"}
    assert ours(joined) == ours(base)  # the very array

    # the gradient of an adapter, by the chain rule from that of W
    frozen, weights = {}, sft.weights_of(BATCH) / BATCH.mask.sum()
    joined = lora.join(*lora.split(jax.random.key(1), params, CFG), CFG)
    loss = lambda p: sft.loss(p, frozen, BATCH, weights, policy_fn=LM.policy_fn)[0]
    of_w = jax.jit(jax.grad(loss))(lora.merge(joined))["blocks"]
    base, trained = lora.split(jax.random.key(1), params, CFG)
    of_b = jax.jit(jax.grad(lambda t: loss(lora.join(base, t, CFG))))(trained)["blocks"]
    for name in EVERY:
        want = 3 * jnp.einsum(
            "lnr,lnm->lrm", trained["blocks"][name]["lora_a"], of_w[name]["kernel"]
        )
        np.testing.assert_allclose(of_b[name]["lora_b"], want, atol=1e-6)
        assert not np.any(of_b[name]["lora_a"])  # B is zero


def test_without_a_rank_all_is_trained_and_the_step_is_the_plain_one(params):
    base, trained = lora.split(jax.random.key(1), params, LoraConfig())
    joined = lora.join(base, trained, LoraConfig())
    assert base == {} and trained is params
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x is y, joined, params)))
    make = lambda fn: sft.make_train_step(fn, TX)
    args = train_step.init_state(params, TX), {"base": base}, BATCH
    got = jax.make_jaxpr(lora.over_base(make, LM.policy_fn, LoraConfig()))(*args)
    assert str(got) == str(jax.make_jaxpr(make(LM.policy_fn))(*args))


def test_the_compiled_step_holds_no_gradient_and_no_moment_of_the_base():
    big = dataclasses.replace(MODEL, d_model=96, layers=12, remat=True)
    lm = networks.language_model(big)
    params, cfg = jax.eval_shape(lm.init, jax.random.key(0)), LoraConfig(rank=2)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    def memory(cfg):
        base, trained = jax.eval_shape(
            lambda k, p: lora.split(k, p, cfg), jax.random.key(0), params
        )
        step = lora.over_base(lambda fn: sft.make_train_step(fn, TX), lm.policy_fn, cfg)
        state = jax.eval_shape(lambda p: train_step.init_state(p, TX), trained)
        args = state, {"base": base}, BATCH
        found = jax.jit(step, donate_argnums=0).lower(*args).compile().memory_analysis()
        return found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes

    base = size(params)
    arguments, output, temporary = memory(cfg)
    assert arguments < 1.1 * base and output < 0.1 * base and temporary < 0.4 * base
    arguments, output, temporary = memory(LoraConfig())  # and all of these would be seen
    assert arguments > 3 * base and output > 3 * base and temporary > 0.9 * base


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": -1}, "LoraConfig.rank = -1"),
        ({"rank": 2, "matrices": ()}, r"LoraConfig.matrices = \(\)"),
        (
            {"rank": 2, "matrices": ("query", "gates")},
            'has "gates": this model has attention_out, down',
        ),
        ({"rank": 2, "matrices": ("query_norm",)}, 'has "query_norm"'),
    ],
)
def test_what_cannot_be_adapted_is_refused(params, settings, words):
    with pytest.raises(ValueError, match=words):
        lora.split(jax.random.key(0), params, LoraConfig(**settings))
