"""What a foreign file holds: items, and what people said about them elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

KINDS = {
    str: "a text",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
"""Types of JSON, in words."""


@dataclasses.dataclass(frozen=True)
class Said:
    """A judgement that was made elsewhere, in the item's own order: one of preference, rating and ranks."""

    by: str = ""
    """The person who judged, with the source's name; empty: somebody whom the source does not name."""
    preference: str | None = None
    """One of a, b, tie and both_bad."""
    degree: int | None = None
    """From -2 to 2, positive where a is better; None where the source has no degrees."""
    rating: int | None = None
    ranks: list[int] | None = None
    comment: str = ""
    better: str = ""
    key: str = ""
    """Name of the judgement; empty: a hash of all of it."""
    raw: Mapping | None = None
    """The row of a raw export, all of whose columns are kept."""


class Found(NamedTuple):
    """An item, as `records.Item.of` takes it, and the judgements of it."""

    item: dict
    said: Sequence[Said] = ()
    source: str = ""


def take(row: Mapping, path: str, kind: type | tuple[type, ...] = str) -> Any:
    """The field at a path ("completions", "prompt.text"); ValueError unless it is there and of that kind."""
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            there = ", ".join(map(repr, value)) if isinstance(value, Mapping) else "none"
            raise ValueError(f"field {path!r} is missing, and the fields are {there}")
        value = value[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(KINDS[x] for x in kinds)
        raise ValueError(f"field {path!r} is {value!r:.60}, and must be {wanted}")
    return value


def ranks_of(scores: Sequence[float], best: int = 1) -> list[int]:
    """The rank of each score, 1 for the best, where equal ones share a rank; `best` -1: the least is best."""
    return [1 + sum(best * x > best * mine for x in scores) for mine in scores]


def response(text: str, policy: Any = None) -> dict:
    """A response of an item, with the name of its model where the source gives one."""
    return {"text": text, "policy": policy} if isinstance(policy, str) else {"text": text}


def source(name: str, row: Mapping, *fields: str) -> dict:
    """An item's metadata: the format that it came in, and what the row says about itself in some fields."""
    return {"source": name} | {x: row[x] for x in fields if row.get(x) is not None}
