"""Rows of text from files and from random-access sources; every row knows where it came from."""

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Row(dict):
    """One record; `where` names its file and line, `group` what it is told apart by, if not by its prompt."""

    def __init__(self, fields: Mapping[str, Any], where: str, group: str | None = None):
        super().__init__(fields)
        self.where, self.group = where, group


def read_jsonl(patterns: str | Sequence[str], required: tuple[str, ...] = ()) -> list[Row]:
    """The rows of JSONL files, plain or .gz, in the order of the files and lines.

    `patterns` are paths or globs (`~` allowed): a sequence, or one string with commas between them. A
    file that is named twice is read once; blank lines are skipped. Every row holds a string in each field
    of `required`. Raises ValueError, in one sentence that names the path and line, for a pattern that no
    file matches, a file without rows, and a row that is no JSON object or lacks a field.
    """
    rows = []
    for path in paths(patterns):
        before = len(rows)
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                rows.append(_row(line, f"{path}:{number}"))
                for name in required:
                    field(rows[-1], name, str)
        if len(rows) == before:
            raise ValueError(f"{path} holds no rows: give a file with one JSON object on each line")
    return rows


def field(row: Row, name: str, kind: type) -> Any:
    """The field `name` of a row, which must be there and be a `kind`.

    A whole number passes for a float, and True for no number.
    Raises ValueError that names the row's place, the field that is wanted and those that are there.
    """
    if name not in row:
        found = ", ".join(repr(key) for key in row) or "none"
        raise ValueError(f"{row.where}: field {name!r} is wanted, and the fields found are {found}")
    value = row[name]
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        wanted, got = _KINDS.get(kind, kind.__name__), _KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{row.where}: field {name!r} must be {wanted}, and is {got}")
    return value


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, compressed where the path ends in .gz.

    The file appears whole or not at all, and equal rows make equal bytes.
    """
    path = Path(path)
    data = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows).encode()
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(part, path)


def rows_from_source(source: Any, name: str, required: tuple[str, ...] = ()) -> list[Row]:
    """The rows of any random-access source (`len(source)`, `source[i]` a mapping), read into memory.

    Bytes become text, NumPy scalars Python's and arrays lists. This is what TFDS data sources, Grain
    `MapDataset`s and plain lists of dicts offer. Raises ValueError as `read_jsonl`, naming `name[i]`.
    """
    rows = []
    for i in range(len(source)):
        rows.append(Row({key: _plain(value) for key, value in source[i].items()}, f"{name}[{i}]"))
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
    """The files that the patterns name, each once, in order."""
    patterns = patterns.split(",") if isinstance(patterns, str) else patterns
    named = []
    for pattern in patterns:
        pattern = os.path.expanduser(pattern.strip())
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [path for path in found if os.path.isfile(path)]
        if not found:
            raise ValueError(f"no such file: {pattern!r}, check the path")
        named += found
    return list(dict.fromkeys(named))


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file, which may be compressed."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _row(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: the line is not UTF-8, convert the file") from error
    except json.JSONDecodeError as error:
        message = f"{error.msg} at column {error.colno}"
        raise ValueError(
            f"{where}: the line is not JSON ({message}), one object is wanted"
        ) from error
    if not isinstance(value, dict):
        got = _KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{where}: the line must be a JSON object, and is {got}")
    return Row(value, where)


def _plain(value: Any) -> Any:
    """Text for bytes, and Python's own numbers and lists for NumPy's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
