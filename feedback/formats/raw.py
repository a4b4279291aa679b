"""Raw exports: every judgement with all that was shown, from which a database is filled again."""

from collections.abc import Iterator, Mapping

from feedback.formats.found import Found, Said, take

NAME = "raw"
ITEM = ("id", "kind", "scale", "question", "wanted", "purpose", "gold", "reason", "metadata")
"""Fields of an item in a row, beside its prompt, its responses and the item that it repeats."""


def fits(row: Mapping) -> bool:
    """True for a row of a raw export."""
    return {"key", "kind", "item", "annotator"} <= row.keys() and isinstance(row["item"], Mapping)


def read(row: Mapping) -> Iterator[Found]:
    """The item and the judgement of a row, which keeps all its columns."""
    take(row, "at", (int, float))
    item = {**take(row, "item", dict)}
    if take(row, "kind") not in ("judge", "surplus", "skip", "undo"):
        raise ValueError(f"field 'kind' is {row['kind']!r}, and must be judge, surplus, skip or undo")
    columns = ("preference", "degree", "rating", "ranks", "comment", "better")
    said = {x: row.get(x) for x in columns} | {x: row.get(x) or "" for x in columns[-2:]}
    yield Found(item, [Said(take(row, "annotator"), key=take(row, "key"), raw=row, **said)])
