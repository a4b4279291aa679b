"""Supervised fine-tuning: maximum likelihood of people's responses, given the prompt."""

from functools import partial

import jax.numpy as jnp

from rlhf_jax import train_step
from rlhf_jax.batches import Sequences
from rlhf_jax.ops.reduce import psum


def weights_of(batch: Sequences):
    """Equal weights of all response tokens, EOS included."""
    return batch.mask


def loss(params, frozen, batch: Sequences, weights, *, policy_fn):
    """Mean negative log-likelihood of the response tokens, in nats per token."""
    del frozen
    last = batch.mask.shape[1]
    logprobs, _ = policy_fn(params, batch.tokens, batch.attention_mask, last=last)  # [B, T]
    total = -jnp.vdot(weights, logprobs)
    return total, {"sft/loss": total}


def make_train_step(policy_fn, tx, *, microbatches=1, axis_name=None):
    """`step(state, frozen, Demonstrations) -> (state, metrics)`."""
    return train_step.make_train_step(
        partial(loss, policy_fn=policy_fn),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )


def make_held_out_loss(policy_fn, *, axis_name=None):
    """`held_out(params, Demonstrations, real [B]) -> (sum in nats, number of tokens)` over all real rows."""

    def held_out(params, batch: Sequences, real):
        mask = batch.mask & real[:, None]
        last = batch.mask.shape[1]
        logprobs, _ = policy_fn(params, batch.tokens, batch.attention_mask, last=last)
        return psum((-jnp.sum(jnp.where(mask, logprobs, 0.0)), jnp.sum(mask)), axis_name)

    return held_out
