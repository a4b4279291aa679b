"""Packing of several sequences into one row, so that few columns are padding."""

import numpy as np
from jaxtyping import Int

from rlhf_jax.batches import Sequences


def pack(sequences: Sequences, length: int) -> Sequences:
    """The sequences [N, L] without their padding, in as few rows [M, length] as `first_fit` finds.

    Each sequence stands whole in one row. `attention_mask` numbers the sequences of a row from 1 in the
    order of their columns, and is 0 for the padding at the row's end; `mask` is [M, length - 1]. Raises
    ValueError where a sequence has no tokens, or more than `length`.
    """
    real = np.asarray(sequences.attention_mask, bool)
    sizes = real.sum(1)
    if not np.all((sizes > 0) & (sizes <= length)):
        raise ValueError(
            f"sequences of {sizes.min()} to {sizes.max()} tokens cannot be packed into rows of {length}: "
            "each must have 1 token or more, and fit"
        )
    rows, starts, numbers = _places(sizes, first_fit(sizes, length))
    learned = np.zeros(real.shape, bool)
    learned[:, -sequences.mask.shape[1] :] = sequences.mask
    inside = np.concatenate([np.arange(size) for size in sizes])
    to = np.repeat(rows, sizes), np.repeat(starts, sizes) + inside  # of each token, in order
    shape = rows.max() + 1, length
    tokens, segments = (np.zeros(shape, np.int32) for _ in range(2))
    mask = np.zeros(shape, bool)
    tokens[to] = sequences.tokens[real]
    segments[to] = np.repeat(numbers, sizes)
    mask[to] = learned[real]
    mask[rows, starts] = False  # no token precedes it
    return Sequences(tokens=tokens, attention_mask=segments, mask=mask[:, 1:])


def first_fit(sizes: Int[np.ndarray, " N"], length: int) -> Int[np.ndarray, " N"]:
    """The row of each sequence by first fit decreasing (Johnson, 1973).

    The longest sequence comes first (of equal ones the earliest), and each goes to the first row that has
    room for it. At most 11/9 of the fewest possible rows, and one more, are used. `sizes` lie between 1
    and `length`.
    """
    order = np.argsort(-sizes, kind="stable")
    rows, room = np.zeros(len(sizes), int), np.zeros(0, int)
    for same in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):
        size = sizes[same[0]]
        fresh = -(-len(same) // (length // size))
        room = np.concatenate([room, np.full(fresh, length)])
        rows[same] = np.searchsorted(np.cumsum(room // size), np.arange(len(same)), side="right")
        room -= size * np.bincount(rows[same], minlength=len(room))
        room = room[room < length]  # the rows in use, which come first
    return rows


def _places(sizes, rows):
    """Row, first column, and number from 1 within the row, of each sequence."""
    order = np.lexsort((-sizes, rows))  # stable: sequences of one row in the order of `first_fit`
    ends = np.cumsum(sizes[order])
    first = np.searchsorted(rows[order], np.arange(rows.max() + 1))[rows[order]]
    starts, numbers = np.zeros((2, len(sizes)), int)
    starts[order] = ends - sizes[order] - (ends - sizes[order])[first]
    numbers[order] = np.arange(len(sizes)) - first + 1
    return rows, starts, numbers
