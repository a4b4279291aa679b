"""Pairs of which the first response is the better one with a probability: losses, gradients and optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax import train_step
from rlhf_jax.algorithms import preference, reward_model
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import Comparisons, PreferenceBatch, Sequences
from rlhf_jax.ops.reduce import normalise
from rlhf_jax.optimizer import OptimizerConfig, make

SHARES = [0.0, 0.3, 0.5, 1.0]
KINDS = [kind for kind in preference.LOSSES]
B, V, L, T = 6, 11, 7, 4


def sequences(seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(L) < rng.integers(L - T + 1, L + 1, (B, 1))
    return Sequences(rng.integers(0, V, (B, L)).astype(np.int32), mask, mask[:, -T:])


def reward_fn(params, tokens, attention_mask):
    """The mean strength of the tokens."""
    mask = jnp.asarray(attention_mask, jnp.float32)
    return jnp.sum(params[tokens] * mask, axis=1) / mask.sum(axis=1)


def policy_fn(params, tokens, attention_mask, *, last):
    """Each token by the one before it."""
    logprobs = jax.nn.log_softmax(params[tokens[:, :-1]], axis=-1)
    said = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[:, -last:, 0]
    return said, jnp.zeros_like(said)


def pairs(probability, weight=None):
    weight = np.arange(1, B + 1, dtype=np.float32) if weight is None else weight
    full = np.full(B, probability, np.float32)
    return Comparisons(sequences(0), sequences(1), weight, full)


def both_ways(batch):
    """The pairs as rows whose labels are certain: each once for each order, by its share of the weight."""
    join = lambda *x: jax.tree.map(lambda *y: np.concatenate(y), *x)
    p = batch.probability
    weight = np.concatenate([batch.weight * p, batch.weight * (1 - p)])
    sides = join(*batch.sides), join(*batch.sides[::-1])
    return Comparisons(*sides, weight, np.ones(2 * len(p), np.float32))


@pytest.mark.parametrize("p", SHARES)
def test_the_reward_models_loss_and_gradient_are_the_closed_form(p):
    strengths = jnp.asarray(np.random.default_rng(2).normal(size=V), jnp.float32)
    batch = pairs(p)
    weights = batch.weight / batch.weight.sum()
    loss = lambda x: reward_model.loss(x, {}, batch, weights, reward_fn=reward_fn)
    (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(strengths)
    sides = [(side.tokens, side.attention_mask) for side in batch.sides]
    a, b = (np.asarray(reward_fn(strengths, *side), float) for side in sides)
    softplus = lambda x: np.log1p(np.exp(x))
    want = weights @ (p * softplus(b - a) + (1 - p) * softplus(a - b))
    np.testing.assert_allclose(total, want, rtol=1e-6)
    right = p * (a > b) + (1 - p) * (b > a)
    np.testing.assert_allclose(metrics["reward/accuracy"], weights @ right, rtol=1e-6)
    away = weights * (expit(a - b) - p)  # of each margin
    slopes = [np.asarray(jax.jacobian(reward_fn)(strengths, *side), float) for side in sides]
    np.testing.assert_allclose(gradient, away @ (slopes[0] - slopes[1]), atol=1e-7)


@pytest.mark.parametrize("p", SHARES)
@pytest.mark.parametrize("kind", [*KINDS, "reward"])
def test_a_soft_label_is_the_mean_of_both_labels_by_their_shares(kind, p):
    """Of every loss of pairs, and its gradient: those of two rows for each pair, one for each order."""
    rng = np.random.default_rng(3)
    ref, change = rng.normal(size=(2, V, V)).astype(np.float32)
    params = ref + 0.3 * change if kind != "reward" else ref[0]

    def loss(params, batch):
        weights = normalise(batch.weight)
        if kind == "reward":
            return reward_model.loss(params, {}, batch, weights, reward_fn=reward_fn)
        refs = [preference.response_logprobs(ref, x, policy_fn=policy_fn) for x in batch.sides]
        batch = PreferenceBatch(batch, *refs)
        cfg = PreferenceConfig(kind=kind)
        return preference.loss(params, {}, batch, weights, policy_fn=policy_fn, cfg=cfg)

    of = jax.value_and_grad(loss, has_aux=True)
    (got, metrics), gradient = of(params, pairs(p))
    (want, others), slope = of(params, both_ways(pairs(p)))
    np.testing.assert_allclose(got, want, rtol=2e-5)
    np.testing.assert_allclose(gradient, slope, atol=2e-5 * np.abs(slope).max() + 1e-7)
    area = "reward" if kind == "reward" else "preference"
    shared = {f"{area}/{x}" for x in ("loss", "accuracy", "sft_loss")} & metrics.keys()
    assert len(shared) == (3 if kind == "orpo" else 2)
    for name in shared:
        np.testing.assert_allclose(metrics[name], others[name], rtol=2e-5)


@pytest.mark.parametrize("kind", [*KINDS, "reward"])
def test_a_certain_label_and_a_pair_turned_round_train_the_same_bits(kind):
    """With probability 1 as it stands, and with probability 0 with its sides exchanged."""
    tx = make(OptimizerConfig(lr=0.1, schedule="constant"), 5)
    rng = np.random.default_rng(4)
    ref = jnp.asarray(rng.normal(size=(V, V)), jnp.float32)
    refs = [preference.response_logprobs(ref, x, policy_fn=policy_fn) for x in pairs(1).sides]

    def trained(turned):
        batch = pairs(1.0)
        batch = batch._replace(chosen=batch.rejected, rejected=batch.chosen) if turned else batch
        batch = batch._replace(probability=np.full(B, 0.0 if turned else 1.0, np.float32))
        if kind == "reward":
            step, start = reward_model.make_train_step(reward_fn, tx), ref[0]
        else:
            batch = PreferenceBatch(batch, *(refs[::-1] if turned else refs))
            step = preference.make_train_step(policy_fn, tx, PreferenceConfig(kind=kind))
            start = ref
        step, state = jax.jit(step), train_step.init_state(start, tx)
        for _ in range(5):
            state, _ = step(state, {}, batch)
        return np.asarray(state.params)

    one, other = trained(False), trained(True)
    assert np.any(one != np.asarray(ref if kind != "reward" else ref[0]))
    np.testing.assert_array_equal(one, other)


def test_a_reward_model_ends_at_the_log_odds_of_the_share():
    """Whatever the batch: single pairs, whose weights are all the batch, keep their shares."""
    token = lambda n: np.full((1, 1), n, np.int32)
    side = lambda n: Sequences(token(n), token(n) == n, token(n) == n)
    shares = [0.9, 0.25, 0.5]
    rows = [
        Comparisons(side(2 * n), side(2 * n + 1), np.float32([5.0]), np.float32([p]))
        for n, p in enumerate(shares)
    ]
    params = jnp.zeros(6)
    slope = jax.jit(
        jax.grad(
            lambda x, row: reward_model.loss(
                x, {}, row, normalise(row.weight), reward_fn=lambda x, t, m: x[t[:, 0]]
            )[0]
        )
    )
    for step in range(900):
        params = params - slope(params, rows[step % 3])
    margins = params[::2] - params[1::2]
    np.testing.assert_allclose(expit(margins), shares, atol=1e-5)
