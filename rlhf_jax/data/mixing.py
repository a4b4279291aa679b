"""Mixtures of several sources of rows, each with a weight, by Grain's `MapDataset`."""

import math
import os
from collections.abc import Sequence
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


def mix(sources: Sequence[Sequence[Any]], weights: Sequence[float], seed: int = 0) -> list[Any]:
    """Rows of all sources in proportion to the weights, in one list, which ends where a source runs out.

    Each source is shuffled, and no row comes twice. The list's beginnings have these proportions too: a
    source's number of rows differs from its share by less than 1 between two sources, and by less than their
    number between several. Grain counts weights in hundredths of the smallest.
    """
    import grain  # slow

    parts = [
        grain.MapDataset.source(rows).shuffle((seed + number) % 2**32)
        for number, rows in enumerate(sources)
    ]
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
