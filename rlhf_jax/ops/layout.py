"""Layouts of arrays on the current mesh: constraints that change where numbers lie, and no number.

Without a mesh every function returns what it is given.
"""

import math

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

# the axes of a mesh: rows lie on the first two, parameters are cut along the last two
DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = (DATA, FSDP)


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
