"""Weights and sums over the global batch, however it is sharded.

Every loss is an inner product of unreduced losses with weights that sum to one over the global batch. Such
partial sums add up: microbatches, devices and hosts are summed, and nothing is divided again.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def psum(tree, axis_name: str | None):
    """Sum of `tree` over the mapped device axis; `tree` itself without one."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def normalise(weights, axis_name: str | None = None):
    """Each array of `weights` as float32, scaled to sum to one over the global batch.

    An all-zero array stays zero, so its term of the loss drops out.
    """

    def scale(w):
        w = w.astype(jnp.float32)
        total = psum(jnp.sum(w), axis_name)
        return w / jnp.where(total > 0, total, 1.0)

    return jax.tree.map(scale, weights)


def gather(tree, axis_name: str | None):
    """The global batch on every device, rows in order; `tree` itself without a mapped axis."""
    return tree if axis_name is None else jax.lax.all_gather(tree, axis_name, tiled=True)


def share(rows: Int[Array, "... n"], axis_name: str | None) -> Int[Array, "... m"]:
    """This device's part of the last axis of `rows`; all of it without a mapped axis.

    Raises ValueError where the rows do not divide over the devices.
    """
    if axis_name is None:
        return rows
    devices = jax.lax.axis_size(axis_name)
    if rows.shape[-1] % devices:
        raise ValueError(
            f"a minibatch of {rows.shape[-1]} rows does not divide over {devices} devices: "
            "use fewer minibatches or a larger batch"
        )
    width = rows.shape[-1] // devices
    start = jax.lax.axis_index(axis_name) * width
    return jax.lax.dynamic_slice_in_dim(rows, start, width, axis=-1)


def whiten(
    x: Float[Array, "*shape"],
    weights: Float[Array, "*shape"],
    *,
    shift_mean: bool = True,
    axis_name: str | None = None,
) -> Float[Array, "*shape"]:
    """`x` with mean zero and variance one under `weights` (which sum to one); zero where the weights are
    zero.

    The variance is biased (divided by n). `shift_mean=False` keeps the mean, as for rewards in Ziegler et
    al. (2019): (x - mean) / sqrt(var + 1e-8) + mean.
    """
    mean = psum(jnp.sum(weights * x), axis_name)
    variance = psum(jnp.sum(weights * jnp.square(x - mean)), axis_name)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(weights > 0, white if shift_mean else white + mean, 0.0)
