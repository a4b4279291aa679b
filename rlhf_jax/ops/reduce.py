"""Weights and sums over the global batch, however it is sharded.

Every loss is an inner product of unreduced losses with weights that sum to one over the global batch. Such
partial sums add up: microbatches, devices and hosts are summed, and nothing is divided again.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

# the axes of a mesh: rows lie on the first two, parameters are cut along the last two
DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = (DATA, FSDP)


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


def spread(tree):
    """`tree` with its rows constrained to the row axes of the current mesh; `tree` itself without a mesh.

    Rows picked by a permutation have no layout: without the constraint, every device of a mesh computes the
    whole minibatch. Where parameters are sharded along fsdp, it makes XLA gather them, one layer at a time,
    instead of the activations. Arrays whose rows do not divide are left alone.
    """
    sizes = _mesh()
    rows = tuple(name for name in ROWS if name in sizes)
    if not rows:
        return tree
    count = math.prod(sizes[name] for name in rows)

    def constrain(x):
        if x.shape[0] % count:
            return x
        free = [P.UNCONSTRAINED] * (x.ndim - 1)
        return jax.lax.with_sharding_constraint(x, P(rows, *free))

    return jax.tree.map(constrain, tree)


def whole(x):
    """`x` with its last axis whole on every device of the current mesh: a table before a look-up."""
    if not _mesh():
        return x
    free = [P.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, P(*free, None))


def gathered(x):
    """`x` with its rows spread over data alone: devices that hold parts of the parameters all have them.

    Where a step has few rows, as in decoding, they move to the weights in place of the weights to them
    (weight-stationary: Pope et al., 2023).
    """
    sizes = _mesh()
    if FSDP not in sizes:
        return x
    free = [P.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, P(_that_divide(x.shape[0], (DATA,), sizes), *free))


def apart(x):
    """Attention's heads [B, L, width] as a cache lies: rows spread, or `gathered` where they do not divide,
    and the width cut by tensor alone.
    """
    sizes = _mesh()
    if FSDP not in sizes:
        return x
    rows = _that_divide(x.shape[0], ROWS, sizes) or _that_divide(x.shape[0], (DATA,), sizes)
    width = _that_divide(x.shape[-1], (TENSOR,), sizes)
    return jax.lax.with_sharding_constraint(x, P(rows, *[None] * (x.ndim - 2), width))


def divided(matrix, axis: int):
    """`matrix` with its dimension `axis` alone cut, by tensor and fsdp, for rows that are `gathered`.

    A matrix whose dimension does not divide stays as it lies.
    """
    sizes = _mesh()
    cut = FSDP in sizes and _that_divide(matrix.shape[axis], (TENSOR, FSDP), sizes)
    if not cut:
        return matrix
    spec = [cut if i == axis else None for i in range(matrix.ndim)]
    return jax.lax.with_sharding_constraint(matrix, P(*spec))


def _that_divide(n: int, names: tuple[str, ...], sizes: dict[str, int]):
    """Those of `names` that the mesh has, where n divides over them; else None."""
    names = tuple(name for name in names if name in sizes)
    return names if names and n % math.prod(sizes[name] for name in names) == 0 else None


def _mesh() -> dict[str, int]:
    """Sizes of the current mesh's axes; none where there is no mesh, or each device sees its part alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if AxisType.Manual in mesh.axis_types else dict(mesh.shape)


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
