"""Epochs of minibatches over one batch, inside one compiled loop."""

import jax
import jax.numpy as jnp

from rlhf_jax.ops.layout import spread
from rlhf_jax.ops.reduce import gather, share


def make_epochs(
    step, *, area: str, epochs: int, minibatches: int, kl_stop: float = 0.0, axis_name=None
):
    """`run(state, frozen, batch, rng) -> (state, metrics)`: `epochs` passes of `minibatches` steps each.

    `step` comes from `train_step.make_train_step`; a batch is any record of rows. Every pass visits the
    rows of the global batch in a fresh order. Metrics are means over the steps taken (`AREA/steps` of
    them); `train/skipped` is a count. With a nonzero `kl_stop`, the step whose `AREA/approx_kl` exceeds it
    is the last one. Raises ValueError when the minibatches do not divide the batch.
    """

    def run(state, frozen, batch, rng):
        # The records are small, so under pmap every device holds them all: minibatches are then the
        # same rows, in the same order, on any layout.
        batch = gather(batch, axis_name)
        rows = len(jax.tree.leaves(batch)[0])
        if rows % minibatches:
            raise ValueError(
                f"{area}.minibatches = {minibatches} does not divide the {rows} rows of a rollout: "
                "choose a divisor"
            )

        def epoch(carry, rng):
            order_rng, _ = jax.random.split(rng)
            order = jax.random.permutation(order_rng, rows).reshape(minibatches, -1)

            def minibatch_step(carry, rows):
                state, going = carry
                minibatch = spread(jax.tree.map(lambda x: x[rows], batch))
                new, metrics = step(state, frozen, minibatch)
                if not kl_stop:
                    return (new, going), (metrics, going)
                state = jax.tree.map(lambda a, b: jnp.where(going, a, b), new, state)
                still = going & (metrics[f"{area}/approx_kl"] <= kl_stop)
                return (state, still), (metrics, going)

            return jax.lax.scan(minibatch_step, carry, share(order, axis_name))

        start = state, jnp.bool_(True)
        (state, _), (metrics, taken) = jax.lax.scan(epoch, start, jax.random.split(rng, epochs))
        steps = jnp.sum(taken, dtype=jnp.float32)
        metrics = {k: jnp.sum(jnp.where(taken, v, 0.0)) / steps for k, v in metrics.items()}
        metrics["train/skipped"] = metrics["train/skipped"] * steps
        return state, metrics | {f"{area}/steps": steps}

    return run


def make_update(step, prepare, *, axis_name=None, **settings):
    """`update(state, frozen, kl_coef, rollout, rng) -> (state, metrics)`: all epochs over one rollout.

    `prepare(rollout, kl_coef) -> (batch, metrics)` makes the record that `step` reads and computes all
    statistics of the whole rollout; the loss finds `kl_coef` in `frozen`. `settings` are those of
    `make_epochs`.
    """
    run = make_epochs(step, axis_name=axis_name, **settings)

    def update(state, frozen, kl_coef, rollout, rng):
        batch, seen = prepare(rollout, kl_coef)
        state, metrics = run(state, frozen | {"kl_coef": kl_coef}, batch, rng)
        return state, seen | metrics

    return update
