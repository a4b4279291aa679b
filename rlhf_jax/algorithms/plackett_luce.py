"""Reward modelling from ranks of several responses (Luce, 1959; Plackett, 1975)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from rlhf_jax import train_step
from rlhf_jax.batches import Array, Rankings


def plackett_luce_loss(rewards: Float[Array, "B K"], rank: Int[Array, "B K"]) -> Float[Array, " B"]:
    """Sum over responses i of -log(exp r_i / (exp r_i + sum of exp r_j over all j ranked below i)), in nats.

    Without ties this is the negative log-likelihood of the order, where the best of the remaining responses
    is drawn by a softmax of their rewards, again and again; for two responses it is Bradley and Terry's.
    Responses with equal ranks are not compared with each other, so a tie of all responses has a loss of 0.
    Responses of rank -1 are missing, and left out.
    """
    rivals = ordered(rank) | jnp.eye(rank.shape[1], dtype=bool)[None]
    of_rivals = jnp.where(rivals, rewards[:, None, :], -jnp.inf)
    unreduced = jax.nn.logsumexp(of_rivals, axis=2) - rewards
    return jnp.sum(unreduced, axis=1)  # a response without rivals adds 0


def ordered(rank: Int[Array, "B K"]) -> Bool[Array, "B K K"]:
    """Mask [b, i, j] of the pairs in which response i is ranked above response j, and neither is missing."""
    better, worse = rank[:, :, None], rank[:, None, :]
    return (better < worse) & (better >= 0)


def weights_of(batch: Rankings):
    """The weight of each prompt."""
    return batch.weight


def loss(params, frozen, batch: Rankings, weights, *, reward_fn):
    """Mean over prompts of `plackett_luce_loss`.

    `reward/accuracy` is the share of a prompt's ordered pairs whose better response has the higher reward,
    and `reward/margin` the mean difference of their rewards; both are means over prompts.
    """
    del frozen
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.responses)
    rewards = reward_fn(params, flat.tokens, flat.attention_mask).reshape(
        batch.rank.shape
    )  # [B, K]
    total = jnp.vdot(weights, plackett_luce_loss(rewards, batch.rank))
    pairs = ordered(batch.rank)
    share = pairs / jnp.maximum(pairs.sum(axis=(1, 2), keepdims=True), 1)
    margins = rewards[:, :, None] - rewards[:, None, :]
    over_pairs = lambda x: jnp.vdot(weights, jnp.sum(share * x, axis=(1, 2)))
    return total, {
        "reward/loss": total,
        "reward/accuracy": over_pairs(margins > 0),
        "reward/margin": over_pairs(margins),
    }


def make_train_step(reward_fn, tx, *, microbatches=1, axis_name=None):
    """`step(state, frozen, Rankings) -> (state, metrics)`."""
    return train_step.make_train_step(
        partial(loss, reward_fn=reward_fn),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )
