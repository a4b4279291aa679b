"""Raw exports: every judgement with all that was shown, from which a database is filled again."""

from collections.abc import Iterator, Mapping
from typing import Any

from feedback.formats.found import Found, Said, take

NAME = "raw"


def fits(row: Mapping) -> bool:
    """True for a row of a raw export."""
    return {"key", "kind", "item", "annotator"} <= row.keys() and isinstance(row["item"], Mapping)


def read(row: Mapping) -> Iterator[Found]:
    """The item and the judgement of a row, which keeps all its columns."""
    take(row, "at", (int, float))
    take(row, "stands", bool)
    item = {**take(row, "item", dict)}
    if take(row, "kind") not in ("judge", "surplus", "skip", "undo"):
        raise ValueError(
            f"field 'kind' is {row['kind']!r}, and must be judge, surplus, skip or undo"
        )
    said: dict[str, Any] = {x: row.get(x) for x in ("preference", "degree", "rating", "ranks")}
    said |= {x: row.get(x) or "" for x in ("comment", "better")}
    yield Found(item, [Said(take(row, "annotator"), key=take(row, "key"), raw=row, **said)])
