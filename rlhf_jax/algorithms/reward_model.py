"""Reward modelling from comparisons (Bradley and Terry, 1952; Stiennon et al., 2020)."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax.numpy as jnp

from rlhf_jax import train_step
from rlhf_jax.batches import Comparisons
from rlhf_jax.bounds import Bound, NonNegative, Settings
from rlhf_jax.ops import losses


@dataclass(frozen=True)
class RewardLossConfig(Settings):
    """Terms added to the negative log-likelihood of the comparisons; none by default."""

    label_smoothing: Annotated[float, Bound(ge=0, lt=0.5)] = 0.0
    """Assumed probability that a label is wrong, which bounds the learned margin of a pair (0.1: Wang et
    al., 2024)."""
    centring: NonNegative = 0.0
    """Weight of the mean of (chosen + rejected)^2, which pulls scores towards zero (0.01: Eisenstein et
    al., 2023)."""


def weights_of(batch: Comparisons):
    """The weight of each pair."""
    return batch.weight


def loss(params, frozen, batch: Comparisons, weights, *, reward_fn, cfg=RewardLossConfig()):
    """Mean over pairs of f(d) + centring (r_chosen + r_rejected)^2, d = r_chosen - r_rejected.

    By default f(d) = -log sigmoid(d), the negative log-likelihood, in nats, that the chosen response is
    preferred; label smoothing changes it as in `losses.pairwise_loss`. A pair whose first response is the
    better one with probability p has p f(d) + (1 - p) f(-d), and counts so in `reward/accuracy`.
    `reward/margin` is the mean of d.
    """
    del frozen
    chosen, rejected = (
        reward_fn(params, side.tokens, side.attention_mask) for side in batch.sides
    )  # [B]
    of = partial(losses.pairwise_loss, label_smoothing=cfg.label_smoothing)
    unreduced = batch.expected(of(chosen, rejected), of(rejected, chosen))
    if cfg.centring:
        unreduced += cfg.centring * jnp.square(chosen + rejected)
    total = jnp.vdot(weights, unreduced)
    return total, {
        "reward/loss": total,
        "reward/accuracy": jnp.vdot(weights, batch.expected(chosen > rejected, rejected > chosen)),
        "reward/margin": jnp.vdot(weights, chosen - rejected),
    }


def make_train_step(reward_fn, tx, cfg=RewardLossConfig(), *, microbatches=1, axis_name=None):
    """`step(state, frozen, Comparisons) -> (state, metrics)`."""
    return train_step.make_train_step(
        partial(loss, reward_fn=reward_fn, cfg=cfg),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )


def centre(params, mean):
    """`params` with `mean` subtracted from the bias: a mean score of `mean` on demonstrations becomes 0.

    Bradley-Terry leaves the zero of rewards free, but PPO's penalties and values depend on it (the bias of
    Stiennon et al., 2020, and InstructGPT).
    """
    return params | {"bias": params["bias"] - mean}
