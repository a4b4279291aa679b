"""Reward models of single responses: the optimum of each loss, in closed form, for a table of rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_step
from rlhf_jax.algorithms import pointwise
from rlhf_jax.batches import Ratings, Sequences


def rated(items, scores, weight=None):
    """Ratings of items, whose number is the one token of their row."""
    tokens = np.asarray(items, np.int32)[:, None]
    ones = np.ones(tokens.shape, bool)
    weight = np.ones(len(tokens)) if weight is None else np.asarray(weight)
    scores, weight = (np.asarray(x, np.float32) for x in (scores, weight))
    return Ratings(Sequences(tokens, ones, ones), scores, weight)


def reward_of(params, tokens, attention_mask):
    """A reward for each item."""
    return params[tokens[:, 0]]


def trained(batch, kind, items, microbatches=1, steps=800):
    """The rewards of items after training on all of a batch."""
    tx = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    step = pointwise.make_train_step(reward_of, tx, kind, microbatches=microbatches)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: (step(s, {}, batch)[0], None), state, None, steps)[0]

    return np.asarray(train(train_step.init_state(jnp.zeros(items), tx)).params)


GOOD = np.array([1, 3, 5, 8])  # labels of 1 among the ten of each item
ITEMS, LABELS = np.repeat(np.arange(4), 10), (np.arange(10) < GOOD[:, None]).ravel()


def test_the_logistic_function_of_a_reward_becomes_the_frequency_of_good_labels():
    got = trained(rated(ITEMS, LABELS), "binary", 4)
    np.testing.assert_allclose(got, np.log(GOOD / (10 - GOOD)), atol=5e-3)


def test_a_share_of_votes_teaches_as_its_votes_do():
    votes = rated(np.arange(4), GOOD / 10)
    np.testing.assert_allclose(
        trained(votes, "binary", 4), trained(rated(ITEMS, LABELS), "binary", 4), atol=1e-4
    )


def test_regression_recovers_the_mean_score_of_each_item():
    scores = np.random.default_rng(0).normal(size=40)
    got = trained(rated(ITEMS, scores), "regression", 4)
    np.testing.assert_allclose(got, scores.reshape(4, 10).mean(axis=1), atol=5e-3)


def test_a_row_counts_by_its_weight():
    """A label of weight 3 is three labels, and one of weight 0 may be anything."""
    heavy = rated([0, 0, 0], [1, 0, 1], weight=[3, 1, 0])
    np.testing.assert_allclose(trained(heavy, "binary", 1), np.log(3), atol=5e-3)


@pytest.mark.parametrize(
    ("kind", "score", "want"),
    [
        ("binary", 1.0, 0.1269280110),  # log(1 + e^-2)
        ("binary", 0.0, 2.1269280110),
        ("binary", 0.25, 0.25 * 0.1269280110 + 0.75 * 2.1269280110),
        ("regression", -1.0, 9.0),
    ],
)
def test_the_loss_of_a_reward_of_2_by_hand(kind, score, want):
    total, metrics = pointwise.loss(
        jnp.array([2.0]), {}, rated([0], [score]), jnp.ones(1), reward_fn=reward_of, kind=kind
    )
    np.testing.assert_allclose(total, want, rtol=1e-6)
    assert metrics["reward/loss"] == total
    right = {"reward/accuracy": float(score > 0.5)} if kind == "binary" else {}
    assert {name: x for name, x in metrics.items() if "accuracy" in name} == right


def test_a_huge_reward_has_a_finite_loss_and_gradient():
    of = lambda r: pointwise.pointwise_loss(r, jnp.array([0.0, 1.0]), "binary").sum()
    value, gradient = jax.value_and_grad(of)(jnp.array([1e4, -1e4]))
    assert value == 2e4
    np.testing.assert_allclose(gradient, [1, -1])


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_microbatches_change_nothing(kind):
    rng = np.random.default_rng(1)
    batch = rated(rng.integers(0, 4, 12), rng.random(12), rng.random(12))
    got, want = (trained(batch, kind, 4, n, steps=5) for n in (4, 1))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.all(want != 0)
