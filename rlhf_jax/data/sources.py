"""Rows of text from files and from random-access sources; every row knows its origin."""

import codecs
import glob
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from rlhf_jax.data import mixing

LONG = 2**26
"""File size in bytes from which reading shows its progress."""
DEEP = 100
"""Deepest allowed nesting of lists and objects in a row."""


class Row(dict):
    """One record; `where` names its file and line, `group` its split key unless that is its prompt's."""

    def __init__(self, fields: Mapping[str, Any], where: str, group: str | None = None):
        super().__init__(fields)
        self.where, self.group = where, group


def read_jsonl(patterns: str | Sequence[str], required: tuple[str, ...] = ()) -> list[Row]:
    """The rows of JSONL files, plain or gzipped, in the order of the files and lines.

    `patterns` are paths or globs (`~` allowed): a sequence, or one string with commas between them (or the
    name of one file that contains commas). With a weight before each (`mixing.parse`), their rows are mixed
    as by `mixing.mix` with seed 0. A file that is named twice is read once; blank lines and
    byte-order marks are skipped. Every row holds a string in each field of `required`. Raises ValueError,
    in one sentence that names the path and line, for a pattern without files, a file without rows, and a
    row that is no JSON object, has a duplicate key or an unpaired surrogate, or lacks a field.
    """
    if parts := _weighted(patterns):
        return _mixed([name for _, name in parts], [weight for weight, _ in parts], required)
    rows = []
    for path in paths(patterns):
        before = len(rows)
        for number, line in enumerate(_lines(path), 1):
            line = line.removeprefix(codecs.BOM_UTF8)  # a mark may follow where files were joined
            if line.strip():
                rows.append(_row(line, f"{path}:{number}"))
                for name in required:
                    field(rows[-1], name, str)
        if len(rows) == before:
            raise ValueError(f"{path} holds no rows: give a file with one JSON object on each line")
    return rows


def field(row: Row, name: str, kind: type) -> Any:
    """The field `name` of a row, which must exist and be a `kind`.

    A whole number is accepted as a float, a float without a fraction (1.0, as pandas writes it) as a whole
    number, and True as neither. Raises ValueError that names the row's origin, the field and the fields
    found.
    """
    if name not in row:
        found = ", ".join(repr(key) for key in row) or "none"
        raise ValueError(
            f"{row.where}: field {name!r} is missing, and the fields found are {found}"
        )
    value = row[name]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        wanted, got = _KINDS.get(kind, kind.__name__), _KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{row.where}: field {name!r} must be {wanted}, and is {got}")
    return value


def texts(row: Row, names: Sequence[str]) -> str:
    """The texts of these fields, joined by newlines; blank and null ones are dropped."""
    found = (field(row, name, str) for name in names if name not in row or row[name] is not None)
    found = [text for text in found if text.strip()]
    return found[0] if len(found) == 1 else "\n".join(found)  # one text stays what it is


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, gzipped where the path ends in .gz.

    The file appears whole or not at all, and equal rows make equal bytes.
    """
    path = Path(path)
    data = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode()
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(part, path)


def rows_from_source(source: Any, name: str, required: tuple[str, ...] = ()) -> list[Row]:
    """The rows of any random-access source (`len(source)`, `source[i]` a mapping), read into memory.

    Bytes become text, NumPy scalars Python's and arrays lists. TFDS data sources, Grain `MapDataset`s and
    plain lists of dicts are such sources. Raises ValueError as `read_jsonl`, naming `name[i]`.
    """
    rows = []
    for i in range(len(source)):
        where = f"{name}[{i}]"
        try:
            rows.append(_whole(Row(_plain(source[i]), where)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: a text is not UTF-8, convert it") from error
        for wanted in required:
            field(rows[-1], wanted, str)
    return rows


def rows_from_tfds(
    name: str, split: str, required: tuple[str, ...] = (), data_dir: str | None = None
) -> list[Row]:
    """The rows of a TensorFlow Datasets split, read without TensorFlow.

    The dataset must be on disk in the array_record format. Raises ImportError where TFDS is missing.
    """
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"reading {name!r} needs TensorFlow Datasets: pip install tensorflow-datasets array-record"
        ) from error
    return rows_from_source(
        tfds.data_source(name, split=split, data_dir=data_dir), f"{name}/{split}", required
    )


_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def paths(patterns: str | Sequence[str]) -> list[str]:
    """The files that match the patterns, each once, in order."""
    patterns = [name for _, name in _weighted(patterns)] or patterns
    if isinstance(patterns, str):  # a comma may be part of a file's name
        patterns = [patterns] if os.path.isfile(patterns) else patterns.split(",")
    named = []
    for pattern in patterns:
        pattern = os.path.expanduser(pattern.strip())
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:  # a folder's name may have brackets
            found = sorted(glob.glob(pattern.replace("[", "[[]"), recursive=True))
        files = [path for path in found if os.path.isfile(path)]
        if not files:
            why = (
                f"a folder: name its files, as in {pattern}/*.jsonl" if found else "check the path"
            )
            raise ValueError(f"no such file: {pattern!r}, {why}")
        named += files
    return list(dict.fromkeys(named))


def _weighted(patterns: str | Sequence[str]) -> list[tuple[float, str]]:
    """Weights and sources of a mixture; [] for anything else."""
    return mixing.parse(patterns) if isinstance(patterns, str) else []


def _mixed(names: list[str], weights: list[float], required: tuple[str, ...]) -> list[Row]:
    """The mixture of these sources; prints how many rows of each it holds."""
    read = [read_jsonl(name, required) for name in names]
    rows = mixing.mix(read, weights)
    used = {id(row) for row in rows}
    counts = (f"{sum(id(row) in used for row in part)} of {len(part)} rows" for part in read)
    told = ", ".join(f"{n} of {name}" for n, name in zip(counts, names, strict=True))
    print(f"mixture: {told}", flush=True)
    return rows


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file, which is decompressed if it is gzipped, whatever its name."""
    try:
        with open(path, "rb") as raw:
            size, zipped = os.fstat(raw.fileno()).st_size, raw.peek(2)[:2] == b"\x1f\x8b"
            console = Console()
            with Progress(
                transient=True, console=console, disable=size < LONG or not console.is_terminal
            ) as progress:
                bar = progress.add_task(os.path.basename(path), total=size)
                for number, line in enumerate(gzip.GzipFile(fileobj=raw) if zipped else raw):
                    if number % 1000 == 0:
                        progress.update(bar, completed=raw.tell())
                    yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): download it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _row(line: bytes, where: str) -> Row:
    too_deep = f"lists and objects stand more than {DEEP} deep in each other: take that field out"
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: the line is not UTF-8, convert the file") from error
    except json.JSONDecodeError as error:
        message = f"{error.msg} at column {error.colno}"
        raise ValueError(
            f"{where}: the line is not JSON ({message}): write one whole object on each line"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{where}: {too_deep}") from error
    except ValueError as error:  # a key twice, or a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise ValueError(f"{where}: the line cannot be read ({reason}): mend the row") from error
    if not isinstance(value, dict):
        got = _KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{where}: the line must be a JSON object, and is {got}")
    if line.count(b"[") + line.count(b"{") > DEEP and _depth(value) > DEEP:
        raise ValueError(f"{where}: {too_deep}")
    row = Row(value, where)
    return _whole(row) if _HALF.search(line) else row


def _depth(value: Any) -> int:
    """Nesting depth of lists and objects."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = [x.values() if isinstance(x, dict) else x for x in level]
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
    return depth


_HALF = re.compile(
    rb"\\u[dD][89a-fA-F]"
)  # how JSON escapes half of a character, most often beside its other


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object with distinct keys; JSON itself silently keeps the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _whole(row: Row) -> Row:
    """The row, whose texts must have no unpaired surrogate: no tokenizer and no file accepts one."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(
            f"{row.where}: the row holds {half}, half of a character (of an emoji that was cut in two, for "
            "example): take it out, or write the character whole"
        ) from None
    return row


def _plain(value: Any) -> Any:
    """Text for bytes, and Python numbers and lists for NumPy's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
