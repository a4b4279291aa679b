from functools import partial

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import ensemble, reward_model
from rlhf_jax.algorithms.ensemble import EnsembleConfig
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.batches import Comparisons, Sequences
from rlhf_jax.devices import parallel
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

KEY = jax.random.key(0)
M, B, V, L = 3, 16, 13, 7
LM = networks.language_model(ModelConfig(vocab_size=V, context=L, layers=1, d_model=8, heads=2))
LOSS = RewardLossConfig(label_smoothing=0.1, centring=0.01)
SCORES = jnp.array([[1.0, -2.0, 0.5], [3.0, 4.0, 0.5]])  # two members, three rows


def sequences(seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(L) < rng.integers(3, L + 1, (B, 1))
    return Sequences(rng.integers(0, V, (B, L), np.int32), mask, mask[:, 2:])


def pairs(seed):
    return Comparisons(sequences(seed), sequences(seed + 100), *np.ones((2, B), np.float32))


def stacked(batches):
    return jax.tree.map(lambda *x: np.stack(x, 1), *batches)


def member(tree, m):
    return jax.tree.map(lambda x: x[m], tree)


def bag_init(key, trunk):
    return {"trunk": trunk, "head": jax.random.normal(key, (8,)), "bias": jnp.float32(0.0)}


def bag_fn(params, tokens, attention_mask):
    """The mean embedding, bent, and a head: a reward model that compiles at once."""
    mask = jnp.asarray(attention_mask, jnp.float32)
    mean = jnp.einsum("bl,bld->bd", mask, params["trunk"]["embedding"][tokens])
    hidden = jnp.tanh(mean / mask.sum(axis=1, keepdims=True))
    return hidden @ params["head"] + jax.lax.stop_gradient(params["bias"])


BAG = networks.Network(fn=bag_fn, init=bag_init)


@pytest.fixture(scope="module")
def trunk():
    return {"embedding": jax.random.normal(jax.random.key(1), (V, 8))}


@pytest.fixture(scope="module")
def params(trunk):
    return ensemble.init(BAG.init, KEY, trunk, EnsembleConfig(members=M))


def test_members_start_as_single_models_do_each_with_its_own_head_or_with_one(trunk, params):
    for m in range(M):
        alone = BAG.init(jax.random.fold_in(KEY, m), trunk)
        jax.tree.map(np.testing.assert_array_equal, member(params, m), alone)
    assert len(np.unique(params["head"][:, 0])) == M
    shared = ensemble.init(BAG.init, KEY, trunk, EnsembleConfig(members=M, combine="warm"))
    assert len(np.unique(shared["head"][:, 0])) == 1
    np.testing.assert_array_equal(shared["head"][M - 1], params["head"][0])


def assert_close(got, want):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), got, want)


def compare_with_single_models(network, params, devices, microbatches=1):
    """Two steps of the ensemble, and of each member alone on one device."""
    tx = optimizer.make(optimizer.OptimizerConfig(lr=1e-2, warmup=1), steps=8)
    step = devices.compile(
        ensemble.make_train_step(
            network.fn, tx, LOSS, microbatches=microbatches, axis_name=devices.axis_name
        ),
        (P(), P(), P(DATA)),
        (P(), P()),
    )
    batches = [[pairs(10 * i + m) for m in range(M)] for i in range(2)]
    state = devices.put(ensemble.init_state(params, tx))
    for batch in batches:
        state, metrics = step(state, {}, devices.put_batch(stacked(batch)))

    single = jax.jit(reward_model.make_train_step(network.fn, tx, LOSS))
    measured = []
    for m in range(M):
        alone = train_step.init_state(member(params, m), tx)
        for batch in batches:
            alone, seen = single(alone, {}, batch[m])
        assert_close(member(jax.device_get(state), m), alone)
        measured.append(seen)
    assert_close(jax.device_get(metrics), jax.tree.map(lambda *x: np.mean(x), *measured))
    moved = np.abs(jax.device_get(state.params["head"]) - params["head"]).max(axis=1)
    assert moved.min() > 1e-3


@layouts.some
def test_a_step_of_the_ensemble_is_the_single_step_of_every_member(params, names):
    """On any layout; each member is clipped by its own norm."""
    for name in names:
        compare_with_single_models(BAG, params, layouts.EVERY[name]())


def compare_transformers(devices):
    transformer = networks.reward_model(LM)
    params = ensemble.init(transformer.init, KEY, jax.jit(LM.init)(KEY), EnsembleConfig(M))
    compare_with_single_models(transformer, params, devices, microbatches=2)


def test_a_step_of_an_ensemble_of_transformers_is_the_single_step_of_every_member():
    compare_transformers(parallel.on_device())


@layouts.marked
def test_a_step_of_an_ensemble_of_transformers_does_not_depend_on_the_layout(names):
    for name in names:
        compare_transformers(layouts.EVERY[name]())


def test_a_member_that_diverged_is_skipped_and_the_others_learn(params):
    tx = optax.sgd(0.1)
    broken = params | {"head": params["head"].at[1].set(jnp.nan)}
    step = jax.jit(ensemble.make_train_step(BAG.fn, tx, LOSS))
    batch = stacked([pairs(m) for m in range(M)])
    state, metrics = step(ensemble.init_state(broken, tx), {}, batch)
    moved = np.any(np.asarray(state.params["head"] != params["head"]), axis=1)
    assert np.isnan(state.params["head"][1]).all() and moved[0] and moved[2]
    np.testing.assert_array_equal(
        state.params["trunk"]["embedding"][1],
        params["trunk"]["embedding"][1],
    )
    np.testing.assert_allclose(metrics["train/skipped"], 1 / M, rtol=1e-6)


def test_the_combinations_by_hand():
    combine = lambda how, k=0.0: ensemble.combine(SCORES, EnsembleConfig(2, how, k))
    np.testing.assert_allclose(ensemble.disagreement(SCORES), [1.0, 3.0, 0.0])
    np.testing.assert_allclose(combine("mean"), [2.0, 1.0, 0.5])
    np.testing.assert_allclose(combine("min"), [1.0, -2.0, 0.5])
    np.testing.assert_allclose(combine("uwo"), [2.0, 1.0, 0.5])
    np.testing.assert_allclose(combine("uwo", 0.5), [1.5, -0.5, 0.5])
    np.testing.assert_allclose(combine("uwo", 1.0), combine("min"))  # of two members


def test_the_least_score_lies_between_the_mean_and_the_mean_less_sqrt_m_minus_1_deviations():
    """Samuelson (1968): no member lies further out, and with one outlier below it lies there."""
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(5, 400)), jnp.float32)
    scores = jnp.concatenate([scores, jnp.array([[0.0], [0.0], [-1.0], [0.0], [0.0]])], axis=1)
    low, mean, bound = (
        ensemble.combine(scores, EnsembleConfig(5, combine=how, uncertainty_coef=2.0))
        for how in ("min", "mean", "uwo")
    )
    assert jnp.all(low <= scores.min(axis=0)) and jnp.all(low < mean)
    assert jnp.all(bound <= low + 1e-5)
    np.testing.assert_allclose(bound[-1], low[-1], atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "min", "uwo", "warm"])
def test_the_score_of_members_that_agree_is_theirs(params, how):
    cfg, seqs = EnsembleConfig(M, combine=how), sequences(5)
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * M), params)
    score = jax.jit(ensemble.make_score(BAG.fn, cfg))
    alone = BAG.fn(member(params, 0), seqs.tokens, seqs.attention_mask)
    got = score(same, seqs.tokens, seqs.attention_mask)
    np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "min", "uwo"])
def test_the_score_is_the_combination_of_what_each_member_says(params, how):
    cfg, seqs = EnsembleConfig(M, combine=how, uncertainty_coef=0.7), sequences(6)
    each = np.stack(
        [BAG.fn(member(params, m), seqs.tokens, seqs.attention_mask) for m in range(M)]
    ).astype(float)
    want = {
        "mean": each.mean(0),
        "min": each.min(0),
        "uwo": each.mean(0) - 0.7 * np.sqrt(((each - each.mean(0)) ** 2).mean(0)),
    }[how]
    got = jax.jit(ensemble.make_score(BAG.fn, cfg))(params, seqs.tokens, seqs.attention_mask)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_averaging_linear_heads_on_one_trunk_averages_scores_and_averaging_trunks_does_not(params):
    seqs = sequences(7)
    scored = lambda params, how: jax.jit(
        ensemble.make_score(BAG.fn, EnsembleConfig(M, combine=how))
    )(params, seqs.tokens, seqs.attention_mask)
    np.testing.assert_allclose(scored(params, "warm"), scored(params, "mean"), rtol=1e-4, atol=1e-5)
    average = ensemble.weight_average(params)
    assert jax.tree.map(jnp.shape, average) == jax.tree.map(jnp.shape, member(params, 0))
    moved = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), params)
    assert np.abs(scored(moved, "warm") - scored(moved, "mean")).max() > 0.01


def test_centring_takes_the_mean_off_each_member(params):
    seqs = sequences(8)
    members = jax.vmap(BAG.fn, in_axes=(0, None, None))
    means = members(params, seqs.tokens, seqs.attention_mask).mean(axis=1)
    centred = reward_model.centre(params, means)
    after = members(centred, seqs.tokens, seqs.attention_mask)
    np.testing.assert_allclose(after.mean(axis=1), 0.0, atol=1e-6)
    assert np.abs(means).max() > 1e-3


@pytest.mark.parametrize(("setting", "value"), [("members", 1), ("uncertainty_coef", -0.1)])
def test_bad_settings_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=rf"EnsembleConfig\.{setting} = {value}"):
        EnsembleConfig(**{setting: value})


def test_averaged_weights_have_no_scores_to_combine():
    with pytest.raises(ValueError, match='"warm" does not combine scores'):
        ensemble.combine(SCORES, EnsembleConfig(combine="warm"))
