"""Reward modelling from comparisons (Bradley and Terry, 1952; Stiennon et al., 2020)."""

from functools import partial

import jax.numpy as jnp

from rlhf_jax import losses, train_step
from rlhf_jax.batches import Comparisons


def weights_of(batch: Comparisons):
    """Every pair counts the same."""
    return jnp.ones(len(batch.chosen.tokens))


def loss(params, frozen, batch: Comparisons, weights, rng, *, reward_fn):
    """Negative log-likelihood that the chosen response is preferred, in nats per pair."""
    del frozen, rng
    chosen, rejected = (
        reward_fn(params, side.tokens, side.attention_mask)
        for side in (batch.chosen, batch.rejected)
    )  # [B]
    total = jnp.vdot(weights, losses.pairwise_loss(chosen, rejected))
    return total, {
        "reward/loss": total,
        "reward/accuracy": jnp.vdot(weights, (chosen > rejected).astype(jnp.float32)),
        "reward/margin": jnp.vdot(weights, chosen - rejected),
    }


def make_train_step(reward_fn, tx, *, microbatches=1, axis_name=None):
    """`step(state, frozen, Comparisons, rng) -> (state, metrics)`."""
    return train_step.make_train_step(
        partial(loss, reward_fn=reward_fn),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )


def centre(params, mean):
    """`params` with `mean` taken off its bias: `mean` is its mean score of demonstrations, now 0.

    Bradley-Terry leaves the zero of rewards free; PPO's penalties and values do not
    (the bias of Stiennon et al., 2020, and InstructGPT).
    """
    return params | {"bias": params["bias"] - mean}
