"""Formats of other projects, each read into items and the judgements that were made there."""

import gzip
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from feedback.formats import (
    arena,
    argilla,
    chosen,
    label_studio,
    oasst,
    ours,
    raw,
    safe_rlhf,
    ultrafeedback,
)
from feedback.formats.found import Found, Said
from feedback.store.records import Item

__all__ = ["FORMATS", "Found", "Said", "detect", "read", "rows_of"]

FORMATS = {
    x.NAME: x
    for x in (
        raw,
        ultrafeedback,
        safe_rlhf,
        oasst,
        arena,
        label_studio,
        argilla,
        chosen,
        ours,
    )
}
"""Readers by name, in the order in which they are tried: NAME, fits(row) and read(row)."""


def detect(row: Mapping) -> str:
    """The name of the first format that has a row's fields; a ValueError names them where none has."""
    for name, one in FORMATS.items():
        if one.fits(row):
            return name
    raise ValueError(
        f"no format has the fields {', '.join(map(repr, row)) or 'none'}: known are {', '.join(FORMATS)}"
    )


def read(source: str | pathlib.Path | Iterable[tuple[str, Any]], name: str = "") -> list[Found]:
    """What a file holds (JSON Lines, or a JSON array; .gz too), or rows that come with their places.

    The format is `name`, or that of the first row's fields. A ValueError names the file and the line.
    """
    if name and name not in FORMATS:
        raise ValueError(f"format is {name!r}, and must be one of {', '.join(FORMATS)}")
    found: list[Found] = []
    for where, row in rows_of(source) if isinstance(source, str | pathlib.Path) else source:
        try:
            if not isinstance(row, Mapping):
                raise ValueError(f"a row is {row!r:.60}, and must be an object")
            name = name or detect(row)
            for one in FORMATS[name].read(row):
                Item.of(without_repeats(one.item))
                found.append(one._replace(source=name))
        except (ValueError, TypeError, AttributeError, KeyError) as e:
            raise ValueError(f"{where}: {_reason(e, name)}") from e
    if not found:
        raise ValueError(f"{source} holds nothing to judge: give rows with responses")
    return found


def without_repeats(item: Mapping) -> dict:
    """The item of a raw export as one of work, where it is a repeat: those are made here alone."""
    new = {k: v for k, v in item.items() if k != "repeats"}
    return new | ({"purpose": "work"} if item.get("purpose") == "repeat" else {})


def _reason(e: Exception, name: str) -> str:
    return str(e) if isinstance(e, ValueError) else f"this is no row of the format {name}"


def rows_of(path: str | pathlib.Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of each line of JSON Lines, or of each element of a JSON array."""
    path = pathlib.Path(path)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            yield from ((f"{path}[{n}]", row) for n, row in enumerate(json.loads(text)))
            return
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is no JSON in UTF-8: {e}") from e
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{n}", json.loads(line)
            except (ValueError, RecursionError) as e:
                raise ValueError(f"{path}:{n} is no JSON: {e}") from e
