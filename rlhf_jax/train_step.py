"""One gradient step, shared by every algorithm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from rlhf_jax.ops.reduce import normalise, psum


class TrainState(NamedTuple):
    """State of training, arrays only: the input and output of a step, and the content of a checkpoint."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


def init_state(params, tx) -> TrainState:
    """Initial state for training `params` with `tx`, an optax transformation or `optimizer.Optimizer`."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))


def make_train_step(loss_fn, weights_fn, tx, *, microbatches: int = 1, axis_name=None):
    """Turns a loss into `step(state, frozen, batch) -> (state, {name: scalar})`.

    `weights_fn(batch)` returns the weight of each token, sequence or pair; every array in it is scaled to
    sum to one over the global batch. `loss_fn(params, frozen, batch, weights)` returns the inner product of
    its unreduced losses with these weights, and metrics of the same form. Microbatches and devices are
    summed. `frozen` is read and not trained. A loss that needs noise reads keys from its batch, one per
    row.

    Gradients are summed, measured and passed to `tx` in float32, whatever the dtype of the parameters. A
    step whose gradient is not finite, or whose weights are all zero, leaves params and opt_state unchanged
    and counts in `train/skipped`; `train/grad_norm` is measured before clipping. `train/learning_rate` is
    there where `tx` is an `optimizer.Optimizer`.
    """
    grad_fn = jax.grad(loss_fn, has_aux=True)

    def split(x):  # [B, ...] -> [n, B / n, ...]; strided, so that a sharded B stays where it is
        if microbatches < 1 or len(x) % microbatches:
            raise ValueError(
                f"microbatches = {microbatches} does not divide the {len(x)} rows of a minibatch: "
                "choose a divisor"
            )
        return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def train_step(state: TrainState, frozen, batch):
        weights = normalise(weights_fn(batch), axis_name)

        def accumulate(sums, xs):
            return jax.tree.map(jnp.add, sums, grad_fn(state.params, frozen, *xs)), None

        if microbatches == 1:
            sums = grad_fn(state.params, frozen, batch, weights)
        else:
            xs = jax.tree.map(split, (batch, weights))
            first = jax.tree.map(lambda x: x[0], xs)
            like = jax.eval_shape(grad_fn, state.params, frozen, *first)
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "float32")), like
            )
            sums, _ = jax.lax.scan(accumulate, zeros, xs)
        wide = lambda x: x.astype(jnp.promote_types(x.dtype, "float32"))
        grads, metrics = psum(jax.tree.map(wide, sums), axis_name)

        norm = optax.tree.norm(grads)
        total = psum(sum(jnp.sum(jnp.abs(w)) for w in jax.tree.leaves(weights)), axis_name)
        usable = jnp.isfinite(norm) & (total > 0)

        def take(params, opt_state):
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        old = state.params, state.opt_state
        # a branch: a choice of all numbers afterwards would copy the old ones first
        params, opt_state = jax.lax.cond(usable, take, lambda *old: old, *old)
        metrics |= {"train/grad_norm": norm, "train/skipped": 1.0 - usable.astype(jnp.float32)}
        if rate := getattr(tx, "rate", None):
            metrics["train/learning_rate"] = jnp.float32(rate(state.opt_state))
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step
