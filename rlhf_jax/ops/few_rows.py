"""Products of few rows with large matrices, as in decoding.

XLA's CPU back end packs the right factor of a product anew at every call. With the matrix as the left
factor, 16 rows take half to nine tenths of the time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW = 128
"""Most rows of which the matrix is the left factor; there both orders take as long."""


def transposed(tree) -> Any:
    """Parameters with each "kernel" [..., n, m] as "transposed" [..., m, n], for `product`."""
    if isinstance(tree, tuple):
        return tuple(map(transposed, tree))
    if not isinstance(tree, dict):
        return tree
    turned = {name: transposed(x) for name, x in tree.items() if name != "kernel"}
    return turned | ({"transposed": tree["kernel"].mT} if "kernel" in tree else {})


def product(x: Float[Array, "B n"], matrix: Float[Array, "m n"], dtype=None) -> Float[Array, "B m"]:
    """x times the transposed `matrix`, summed in `dtype`."""
    if len(x) > FEW:
        return jnp.dot(x, matrix.T, preferred_element_type=dtype)
    y = jnp.dot(matrix, x.T, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y).T  # or XLA swaps the factors back
