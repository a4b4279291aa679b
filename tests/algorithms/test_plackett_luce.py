"""Reward models of ranks: Plackett and Luce's model, against its own sums and a slow twin."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_step
from rlhf_jax.algorithms import plackett_luce
from rlhf_jax.batches import Rankings, Sequences
from rlhf_jax.ops.losses import pairwise_loss

REWARDS = np.array([0.3, -1.2, 2.0, 0.9], np.float32)


def loss_of(rewards, rank):
    """The loss of one ranking, or of several."""
    rewards, rank = jnp.asarray(rewards), jnp.asarray(rank, jnp.int32)
    if rank.ndim == 2:
        return plackett_luce.plackett_luce_loss(rewards, rank)
    return plackett_luce.plackett_luce_loss(rewards[None], rank[None])[0]


def slow(rewards, rank):
    """The loss by loops: each response against all that are ranked below it."""
    total = 0.0
    for r, place in zip(rewards, rank, strict=True):
        below = [x for x, other in zip(rewards, rank, strict=True) if other > place >= 0]
        total += math.log(math.exp(r) + sum(map(math.exp, below))) - r if place >= 0 else 0.0
    return total


def test_the_probabilities_of_all_orders_sum_to_one_and_are_draws_without_replacement():
    orders = np.array(list(itertools.permutations(range(4))))
    rank = np.argsort(orders, axis=1)
    p = np.exp(-np.asarray(loss_of(np.tile(REWARDS, (24, 1)), rank)))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-6)
    worth = np.exp(REWARDS)[orders]  # best first
    left = worth[:, ::-1].cumsum(axis=1)[:, ::-1]
    np.testing.assert_allclose(p, np.prod(worth / left, axis=1), rtol=1e-5)


def test_two_responses_are_bradley_and_terrys_pair():
    first, second = REWARDS[:2], REWARDS[2:]
    got = loss_of(np.stack([first, second], axis=1), np.array([[1, 0], [0, 1]]))
    want = pairwise_loss(jnp.array([second[0], first[1]]), jnp.array([first[0], second[1]]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    "rank", [[0, 1, 2, 3], [3, 0, 1, 2], [0, 0, 2, 2], [1, 0, 1, -1], [0, 3, 1, 1], [0, 1, -1, -1]]
)
def test_ties_and_missing_responses_are_those_of_the_slow_twin(rank):
    got = loss_of(REWARDS, np.array(rank))
    np.testing.assert_allclose(got, slow(REWARDS.tolist(), rank), rtol=1e-5)


@pytest.mark.parametrize("rank", [[0, 0, 0, 0], [0, -1, -1, -1], [2, 2, -1, 2]])
def test_nothing_is_learned_from_a_tie_of_all(rank):
    value, gradient = jax.value_and_grad(lambda r: loss_of(r, rank))(jnp.asarray(REWARDS))
    assert value == 0 and not np.any(gradient)


def test_only_the_order_of_ranks_matters_and_no_reward_overflows():
    a, b = np.array([0, 1, 2, 3]), np.array([2, 5, 6, 40])
    assert loss_of(REWARDS, a) == loss_of(REWARDS, b)
    huge = jnp.array([-1e4, 1e4, 0.0, 1.0])
    value, gradient = jax.value_and_grad(lambda r: loss_of(r, a))(huge)
    np.testing.assert_allclose(value, 2e4 + math.log1p(math.e), rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def ranked(items, rank, weight=None):
    """Rankings of items [B, K], whose number is the one token of their row."""
    tokens = np.asarray(items, np.int32)[..., None]
    ones = np.ones(tokens.shape, bool)
    weight = np.ones(len(tokens)) if weight is None else np.asarray(weight)
    return Rankings(
        Sequences(tokens, ones, ones), np.asarray(rank, np.int32), weight.astype(np.float32)
    )


def reward_of(params, tokens, attention_mask):
    """A reward for each item."""
    return params[tokens[:, 0]]


def trained(batch, items, microbatches=1, steps=600):
    """The rewards of items after training on all of a batch."""
    tx = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    step = plackett_luce.make_train_step(reward_of, tx, microbatches=microbatches)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: (step(s, {}, batch)[0], None), state, None, steps)[0]

    return np.asarray(train(train_step.init_state(jnp.zeros(items), tx)).params)


def test_training_recovers_known_strengths_up_to_a_constant():
    """Each order of three of four items, in the share of its probability."""
    worth = np.array([1.0, 2.0, 3.0, 6.0])
    orders = np.array(list(itertools.permutations(range(4), 3)))
    named = worth[orders]
    left = named[:, ::-1].cumsum(axis=1)[:, ::-1]  # the rivals are the three that were shown
    got = trained(ranked(orders, np.tile(np.arange(3), (24, 1)), np.prod(named / left, axis=1)), 4)
    np.testing.assert_allclose(got - got.mean(), np.log(worth) - np.log(worth).mean(), atol=5e-3)


def test_the_metrics_are_means_over_prompts_of_their_ordered_pairs():
    batch = ranked([[0, 1, 2, 3], [2, 1, 0, 0]], [[0, 1, 2, 2], [0, 1, -1, -1]])
    total, metrics = plackett_luce.loss(
        jnp.asarray(REWARDS), {}, batch, jnp.array([0.25, 0.75]), reward_fn=reward_of
    )
    want = 0.25 * slow(REWARDS.tolist(), [0, 1, 2, 2]) + 0.75 * slow([2.0, -1.2], [0, 1])
    np.testing.assert_allclose(total, want, rtol=1e-5)
    # ordered pairs: 0 over 1, 2, 3 and 1 over 2, 3; then 2 over 1
    np.testing.assert_allclose(metrics["reward/accuracy"], 0.25 * 1 / 5 + 0.75, rtol=1e-6)
    margin = 0.25 * np.mean([1.5, -1.7, -0.6, -3.2, -2.1]) + 0.75 * 3.2
    np.testing.assert_allclose(metrics["reward/margin"], margin, rtol=1e-5)


def test_microbatches_change_nothing():
    rng = np.random.default_rng(1)
    rank = rng.permuted(np.tile([0, 1, 1, -1], (8, 1)), axis=1)
    batch = ranked(rng.integers(0, 5, (8, 4)), rank, rng.random(8))
    got, want = (trained(batch, 5, n, steps=5) for n in (4, 1))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert np.all(want != 0)
