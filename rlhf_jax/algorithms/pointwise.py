"""Reward modelling from single responses with a label or a score."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from rlhf_jax import train_step
from rlhf_jax.batches import Array, Ratings

Kind = Literal["binary", "regression"]
"""Scores that are probabilities of a good label, or standardised real numbers."""


def pointwise_loss(
    rewards: Float[Array, "*n"], score: Float[Array, "*n"], kind: Kind
) -> Float[Array, "*n"]:
    """-y log s(r) - (1 - y) log s(-r), in nats, for "binary"; (r - y)^2 for "regression".

    r is the reward, y the score and s the logistic function. A binary score is a label of 0 or 1, or a
    share of votes between them. The expected loss is lowest where s(r), or r, is the mean score.
    """
    if kind == "binary":
        return -score * jax.nn.log_sigmoid(rewards) - (1.0 - score) * jax.nn.log_sigmoid(-rewards)
    return jnp.square(rewards - score)


def weights_of(batch: Ratings):
    """The weight of each row."""
    return batch.weight


def loss(params, frozen, batch: Ratings, weights, *, reward_fn, kind: Kind):
    """Mean over rows of `pointwise_loss`.

    `reward/accuracy`, for "binary", is the share of rows whose reward is positive if and only if the score
    is above 1/2.
    """
    del frozen
    rewards = reward_fn(params, batch.responses.tokens, batch.responses.attention_mask)  # [B]
    total = jnp.vdot(weights, pointwise_loss(rewards, batch.score, kind))
    if kind == "regression":
        return total, {"reward/loss": total}
    right = (rewards > 0) == (batch.score > 0.5)
    return total, {
        "reward/loss": total,
        "reward/accuracy": jnp.vdot(weights, right.astype(jnp.float32)),
    }


def make_train_step(reward_fn, tx, kind: Kind, *, microbatches=1, axis_name=None):
    """`step(state, frozen, Ratings) -> (state, metrics)`."""
    return train_step.make_train_step(
        partial(loss, reward_fn=reward_fn, kind=kind),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )
