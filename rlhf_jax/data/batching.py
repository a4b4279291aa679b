"""The rows of batch i, as a function of the seed and i, so that a resumed run sees the same data."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Int

Records = TypeVar("Records")


def rows_at(n: int, batch_size: int, seed: int, i: int) -> Int[np.ndarray, " B"]:
    """The rows of batch `i` out of `n`: entries [i B, (i + 1) B) of one endless list.

    The list is a fresh permutation of the rows for each epoch, one after the other: every row comes once
    per epoch, no row is dropped, and a batch may extend into the following epochs. Raises ValueError where
    there are no rows, or batch_size < 1.
    """
    if n < 1:
        raise ValueError("there are no rows to make batches of: check the data's files and filters")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be 1 or more")
    start, stop = i * batch_size, (i + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    order = np.concatenate([np.random.default_rng((seed, e)).permutation(n) for e in epochs])
    first = start - epochs[0] * n
    return order[first : first + batch_size]


def take(records: Records, rows: Int[np.ndarray, "B *rest"]) -> Records:
    """The given rows of any tree of arrays."""
    return jax.tree.map(lambda x: x[rows], records)


def batch_at(
    records: Records, batch_size: int, seed: int, i: int, take: Callable = take
) -> Records:
    """Batch `i` of any tree of arrays whose leading axes are the rows; see `rows_at`.

    With `Devices.take` the batch is placed on the devices, and only this host's part of it is read.
    """
    return take(records, rows_at(_count(records), batch_size, seed, i))


def padded_batches(
    records: Records, batch_size: int
) -> Iterator[tuple[Records, Bool[np.ndarray, " B"]]]:
    """All rows in order, in batches of one size, for evaluation: (batch, mask of real rows).

    The last batch is filled with copies of row 0. Raises ValueError as `rows_at`.
    """
    n = _count(records)
    if n < 1 or batch_size < 1:
        rows_at(n, batch_size, 0, 0)  # refuses, and says why
    for start in range(0, n, batch_size):
        rows = np.arange(start, start + batch_size)
        real = rows < n
        rows = np.where(real, rows, 0)
        yield jax.tree.map(lambda x, rows=rows: x[rows], records), real


def _count(records) -> int:
    """The number of rows, which must agree between all arrays."""
    counts = {len(leaf) for leaf in jax.tree.leaves(records)}
    if len(counts) != 1:
        raise ValueError(f"the arrays of one record have {sorted(counts)} rows: they must agree")
    return counts.pop()
