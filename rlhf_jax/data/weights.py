"""The weight of a row: how much it counts beside others in training and in what is measured."""

from collections.abc import Sequence

from rlhf_jax.data.bad_records import BadRecord
from rlhf_jax.data.sources import Row, field

LARGEST = 1e30
"""Largest weight, which float32 can still add up."""


def weight_of(row: Row, name: str) -> float:
    """The weight in the field `name`; 1 where the row has none, and where `name` is empty.

    Raises BadRecord unless it is a number from 0 to `LARGEST`.
    """
    if name not in row:
        return 1.0
    value = field(row, name, float)
    if not 0 <= value <= LARGEST:
        raise BadRecord(
            row.where,
            f"field {name!r} must be a weight from 0 to {LARGEST:g}",
            f", and is {value!r}",
        )
    return float(value)


def tell_weightless(count: int, source: str | Sequence[str]) -> None:
    """Prints how many rows of a source were left out because their weight is 0; nothing where none was."""
    if count:
        print(f"left out: {count} rows of {source}, whose weight is 0", flush=True)
