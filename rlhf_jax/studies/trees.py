"""Trees of arrays with a leading axis of seeds [S, ...]."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf_jax.devices.parallel import Devices

CHUNK = 256  # rows that are sampled or scored at once, for each seed


def tree_index(tree, index):
    """The entries `index` (a number, a slice, or row numbers) of the leading axis of every array."""
    return jax.tree.map(lambda x: x[index], tree)


def tree_repeat(tree, n: int = 1):
    """The tree with a leading axis of n equal entries."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], n, axis=0), tree)


def tree_stack(trees):
    """One tree from several of the same structure, stacked along a leading axis."""
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def rows_of_seeds(tree, rows):
    """The rows [S, B] of a tree of arrays [S, N, ...], chosen for each seed: [S, B, ...]."""
    return jax.tree.map(lambda x: x[np.arange(len(rows))[:, None], rows], tree)


def pad_to_devices(devices: Devices, tree) -> Any:
    """A tree [S, ...] padded to a multiple of the devices, with copies of the last entry."""
    S = len(jax.tree.leaves(tree)[0])
    rows = _padded_rows(devices, S)
    return tree if len(rows) == S else jax.tree.map(lambda x: x[rows], tree)


def pad_list_to_devices(devices: Devices, entries: Sequence) -> list:
    """A list padded to a multiple of the devices, with copies of the last entry."""
    return [entries[row] for row in _padded_rows(devices, len(entries))]


def _padded_rows(devices: Devices, S: int) -> np.ndarray:
    return np.minimum(np.arange(-(-S // devices.count) * devices.count), S - 1)


def in_chunks(devices: Devices, fn: Callable, S: int, N: int, size: int = CHUNK):
    """Joins the results [padded S, size, ...] of `fn(rows)` for `size` of N rows at a time to [S, N, ...].

    The last chunk is padded with copies of the last row, so that jit compiles for one shape.
    """
    parts = [fn(np.minimum(np.arange(i, i + size), N - 1)) for i in range(0, N, size)]
    parts = [devices.fetch(part) for part in parts]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:S, :N], *parts)
