"""Sharding of arrays on a mesh with axes data, fsdp and tensor, by rules on parameter paths.

Rows of a batch are sharded along data and fsdp. Of a matrix, fsdp shards the dimension of the residual
stream and tensor the other one (Shoeybi et al., 2019): a block's first matrices by their outputs and its
last by their inputs, so that tensor needs one sum after attention and one after the MLP. Optimizer moments
are sharded as their parameters. Decoding cuts that other dimension by fsdp too (`models.decoding.ready`).
"""

import re
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.ops.layout import DATA, FSDP, ROWS, TENSOR

AXES = (DATA, FSDP, TENSOR)
FIRST, LAST = "(query|key|value|gate|up)", "(attention_out|down)"  # matrices of a block
RULES = {
    f"{FIRST}/kernel": (FSDP, TENSOR),
    f"{FIRST}/bias": (TENSOR,),
    f"{FIRST}/lora_a": (FSDP, None),
    f"{FIRST}/lora_b": (None, TENSOR),
    f"{LAST}/kernel": (TENSOR, FSDP),
    f"{LAST}/lora_a": (TENSOR, None),
    f"{LAST}/lora_b": (None, FSDP),
    "position_embedding/embedding": (None, FSDP),
    "embedding/embedding": (TENSOR, FSDP),
    "unembedding/kernel": (FSDP, TENSOR),
    "head": (
        None,
        FSDP,
        TENSOR,
    ),  # several heads over a vocabulary; a scalar head has fewer dimensions
}
"""Patterns of path ends, with the axes of the last dimensions; all other parameters are replicated."""


def spec_of(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
    """The spec of a parameter or its moments, such as "policy/blocks/query/kernel" [layers, D, H h].

    An axis that does not divide its dimension (an odd vocabulary) is dropped.
    """
    for rule, axes in RULES.items():
        if re.search(rf"(^|/){rule}$", path) and len(shape) >= len(axes):
            free = len(shape) - len(axes)
            pairs = zip(axes, shape[free:], strict=True)
            fits = (a if a and n % sizes[a] == 0 and sizes[a] > 1 else None for a, n in pairs)
            return P(*[None] * free, *fits)
    return P()


def shardings(tree, mesh: Mesh):
    """Shardings of a tree of parameters, of an optimizer's state, or of anything that holds them."""
    name = lambda path: "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))
    sizes = dict(mesh.shape)
    return jax.tree.map_with_path(
        lambda path, x: NamedSharding(mesh, spec_of(name(path), jax.numpy.shape(x), sizes)), tree
    )


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of any array with rows."""
    return NamedSharding(mesh, P(ROWS))


def check(sizes: Mapping[str, int], dimensions: Mapping[str, tuple[int, str]]):
    """Raises ValueError for a dimension that its axis does not divide; `dimensions` is {setting: (value,
    axis)}."""
    for setting, (n, axis) in dimensions.items():
        if n % sizes[axis]:
            fits = [d for d in range(1, n + 1) if n % d == 0]
            nearest = min(fits, key=lambda d: abs(d - sizes[axis]))
            raise ValueError(
                f"devices: {axis} = {sizes[axis]} does not divide {setting} = {n}: use {axis}={nearest}"
            )
