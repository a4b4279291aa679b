"""Mixtures of several sources of rows, each with a weight, by Grain's `MapDataset`."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

MOST = 1000
"""Largest ratio of two weights."""


def parse(source: str) -> list[tuple[float, str]]:
    """The weights and sources of a string such as "0.7:a.jsonl,0.3:tfds:gsm8k:train"; [] without weights.

    A weight is a number before a source's first colon. Raises ValueError where only some sources have one,
    and where one is not a positive number.
    """
    if os.path.isfile(source):  # a colon may be part of a file's name
        return []
    parts = [(_weight(part), part.strip()) for part in source.split(",")]
    if all(weight is None for weight, _ in parts):
        return []
    found = []
    for weight, part in parts:
        if weight is None or not 0 < weight < math.inf:
            why = "no weight beside others" if weight is None else "a weight that is not positive"
            raise ValueError(
                f"{source!r}: {part!r} has {why}: write a positive number before each source, as in "
                "0.7:a.jsonl,0.3:b.jsonl"
            )
        found.append((weight, part.partition(":")[2].strip()))
    weights, names = zip(*found, strict=True)
    if len({*names}) < len(names):
        raise ValueError(f"{source!r} names a source twice: give it one weight")
    if max(weights) > MOST * min(weights):
        raise ValueError(
            f"{source!r}: the weights differ by more than {MOST}, so that one source would hardly be read: "
            "leave it out, or give it more weight"
        )
    return found


def mix(
    sources: Sequence[Sequence[Any]],
    weights: Sequence[float],
    seed: int = 0,
    *,
    change: Callable[[Any], Any] | None = None,
    keep: Callable[[Any], bool] | None = None,
    epochs: int = 1,
) -> list[Any]:
    """Rows of all sources in proportion to the weights, in one list, which ends where a source runs out.

    Each source is changed by `change`, filtered by `keep` (for example by length), and shuffled, in another
    order in each of its `epochs` passes. The list is as long as the proportions allow with no row in it
    more than `epochs` times. Its beginnings have these proportions too: a source's number of rows differs
    from its share by less than 1 between two sources, and by less than their number between several.
    Grain counts weights in hundredths of the smallest. Raises ValueError where a source has no rows to
    give.
    """
    import grain  # slow

    parts = []
    for number, rows in enumerate(sources):
        data = grain.MapDataset.source(rows)
        data = data.map(change) if change else data
        if keep:
            kept = data.filter(keep)  # None in place of other rows
            found = (kept[i] for i in range(len(kept)))
            data = grain.MapDataset.source([row for row in found if row is not None])
        if not len(data):
            raise ValueError(
                f"source {number + 1} of a mixture has no rows left of {len(rows)}: leave it out, or give "
                "it other rows or another filter"
            )
        parts.append(data.shuffle((seed + number) % 2**32).repeat(epochs))
    hundredths = [round(100 * weight / min(weights)) for weight in weights]
    mixed = grain.MapDataset.mix(parts, hundredths)
    return [mixed[i] for i in range(len(mixed))]


def _weight(part: str) -> float | None:
    """The number before the first colon; None without a number, or without a colon."""
    before, colon, _ = part.partition(":")
    try:
        return float(before) if colon else None
    except ValueError:
        return None
