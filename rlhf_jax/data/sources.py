"""Rows of text from files, data sets and random-access sources; every row knows its origin.

One string names a source:

    rows.jsonl, more/*.jsonl.gz, rows.parquet     files and globs, with commas between them
    tfds:gsm8k:train[:90%]                        TensorFlow Datasets: tfds:NAME[/CONFIG][:SPLIT]
    FOLDER[:SPLIT]                                a folder of TFDS, or of `save_to_disk` of `datasets`
    hf:openai/gsm8k/main:test                     the Hugging Face Hub: hf:NAME[/CONFIG][:SPLIT]
"""

import codecs
import contextlib
import dataclasses
import glob
import gzip
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.data import jsonl, mixing
from rlhf_jax.data.bad_records import BadRecord, BadRecords

SHOWN = 60
"""Characters of a value that a message shows."""
_TFDS, _HUB = "tfds:", "hf:"


class Row(dict):
    """One record; `where` names its file and line, `group` its split key unless that is its prompt's."""

    def __init__(self, fields: Mapping[str, Any], where: str, group: str | None = None):
        super().__init__(fields)
        self.where, self.group = where, group


def field(row: Row, name: str, kind: type) -> Any:
    """The field `name` of a row, which must exist and be a `kind`.

    A whole number is accepted as a float, a float without a fraction (1.0, as pandas writes it) as a whole
    number, and True as neither; of a list of texts that a dotted name leads to, the first is the text.
    Raises BadRecord, which names the row's origin, the field and the fields found.
    """
    if name not in row:
        found = ", ".join(repr(key) for key in row) or "none"
        more = f", and the fields found are {found}"
        raise BadRecord(row.where, f"field {name!r} is missing", more)
    value = row[name]
    if kind is str and "." in name and isinstance(value, list) and value:
        value = value[0]  # of several texts at the end of a path
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    kinds = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        wanted = jsonl.KINDS.get(kind, kind.__name__)
        more = f", and is {jsonl.kind_of(value)}"
        raise BadRecord(row.where, f"field {name!r} must be {wanted}", more)
    return value


def field_names(names: str) -> list[str]:
    """The field names in a setting, where commas separate them."""
    return [name.strip() for name in names.split(",") if name.strip()]


def paths(fields: Any) -> list[str]:
    """The dotted names in settings of field names."""
    values = (getattr(fields, x.name) for x in dataclasses.fields(fields))
    names = (name for value in values if isinstance(value, str) for name in field_names(value))
    return [name for name in names if "." in name]


def reached(row: Row, names: Sequence[str]) -> Row:
    """The row with what dotted names lead to, under these names.

    "answers.text" leads into the object in the field "answers", or into each of a list of objects, whose
    texts become a list; "turns.0" leads to the first of a list. A field that is called so itself stays, and
    one whose beginning is missing is not added. Raises BadRecord for a name that leads nowhere.
    """
    begins = [name for name in names if name not in row and name.partition(".")[0] in row]
    found = {name: _end(row, name) for name in begins}
    return Row({**row, **found}, row.where, row.group) if found else row


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


def read(
    source: str | Sequence[str], required: tuple[str, ...] = (), bad: BadRecords | None = None
) -> list[Row]:
    """The rows of a source, in the order of its parts, files and lines.

    `source` names files, globs (`~` allowed), folders and data sets as at the top of this file: a sequence,
    or one string with commas between them (or one path that contains commas). With a weight before each
    (`mixing.parse`), their rows are mixed as by `mixing.mix` with seed 0. A part that is named twice is
    read once; blank lines and byte-order marks are skipped. Every row holds a string in each field of
    `required`. Raises ValueError, in one sentence, for a part that is not there or holds no rows, and
    BadRecord, which names file and line, for a row that is no JSON object, has a duplicate key or an
    unpaired surrogate, is not UTF-8, or lacks a field; with `bad`, such rows may be skipped (see BadRecords).
    """
    if parts := _weighted(source):
        return _mixed(parts, required, bad)
    rows, bad = [], bad or BadRecords()
    for place in places(source):
        opened, before = _opened(place), bad.total
        if opened is None:
            rows += _rows_of_lines(place, required, bad)
        else:
            rows += rows_from_source(opened, place, required, bad)
        if bad.total == before:
            wanted = "with one JSON object on each line" if opened is None else "that has some"
            raise ValueError(f"{place} holds no rows: name a source {wanted}")
    bad.check(rows, source)
    return rows


def rows_from_source(
    source: Any, name: str, required: tuple[str, ...] = (), bad: BadRecords | None = None
) -> list[Row]:
    """The rows of any random-access source (`len(source)`, `source[i]` a mapping), read into memory.

    Bytes become text, NumPy scalars Python's, arrays lists, and values without a JSON form (dates) their
    text. TFDS data sources, Grain `MapDataset`s and plain lists of dicts are such sources. Raises BadRecord
    as `read`, naming `name[i]`.
    """
    rows, bad = [], bad or BadRecords()
    for i in range(len(source)):
        bad.total += 1
        with bad:
            where = f"{name}[{i}]"
            try:
                row = Row(_plain(source[i]), where)
            except UnicodeDecodeError as error:
                raise BadRecord(where, "a text is not UTF-8", ", convert it") from error
            jsonl.check_characters(row, where)
            rows.append(_with(row, required))
    return rows


def files(source: str | Sequence[str]) -> list[str]:
    """The files on disk that hold the rows of a source, by which it is known again."""
    found = []
    for place in places(source):
        opened = _opened(place)
        found += [place] if opened is None else opened.files
    return list(dict.fromkeys(found))


def places(source: str | Sequence[str]) -> list[str]:
    """The files, folders and data sets that a source names, each once, in order.

    Raises ValueError for a pattern without files.
    """
    source = [part for _, part in _weighted(source)] or source
    if isinstance(source, str):  # a comma may be part of a name
        whole = os.path.exists(os.path.expanduser(source.strip()))
        source = [source] if whole else source.split(",")
    named = []
    for part in source:
        part = os.path.expanduser(part.strip())
        named += [part] if part.startswith((_TFDS, _HUB)) or _folder(part) else _matching(part)
    return list(dict.fromkeys(named))


def _weighted(source: str | Sequence[str]) -> list[tuple[float, str]]:
    """Weights and sources of a mixture; [] for anything else."""
    return mixing.parse(source) if isinstance(source, str) else []


def _mixed(
    parts: list[tuple[float, str]], required: tuple[str, ...], bad: BadRecords | None
) -> list[Row]:
    """The mixture of these sources; prints how many rows of each it holds."""
    weights, names = zip(*parts, strict=True)
    every = [read(name, required, bad) for name in names]
    rows = mixing.mix(every, weights)
    used = {id(row) for row in rows}
    counts = [sum(id(row) in used for row in part) for part in every]
    if not all(counts):
        raise ValueError(
            f"no row of {names[counts.index(0)]} fits its weight beside {max(map(len, every))} rows of "
            "another source: give it more rows, or other weights"
        )
    shares = (f"{n} of {len(part)} rows" for n, part in zip(counts, every, strict=True))
    told = ", ".join(f"{n} of {name}" for n, name in zip(shares, names, strict=True))
    print(f"mixture: {told}", flush=True)
    return rows


def _matching(pattern: str) -> list[str]:
    """The files that match a pattern."""
    found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not found:  # a folder's name may have brackets
        found = sorted(glob.glob(pattern.replace("[", "[[]"), recursive=True))
    matching = [path for path in found if os.path.isfile(path)]
    if not matching:
        why = (
            "no file that can be read twice: write its lines to one" if found else "check the path"
        )
        if any(os.path.isdir(path) for path in found):
            why = f"a folder: name its files, as in {pattern}/*.jsonl"
        raise ValueError(f"no such file: {pattern!r}, {why}")
    return matching


def _folder(place: str) -> tuple[str, str] | None:
    """(folder of a data set, split) of FOLDER[:SPLIT]; None for files, and for a folder of files."""
    folder, split = (place, "") if os.path.isdir(place) else _divided(place)
    there = os.path.isdir(folder) and (_is_saved(folder) or _prepared(folder))
    return (folder, split) if there else None


def _divided(place: str) -> tuple[str, str]:
    """(name, split) of NAME[:SPLIT], whose split may have slices with colons of their own."""
    found = re.fullmatch(r"(.*?)(?::(\w[^/]*))?", place, re.DOTALL)
    return (found[1], found[2] or "") if found else (place, "")


def _opened(place: str) -> Any:
    """The random-access source at a place; None for a file of lines.

    The libraries that read it are imported here, because they would slow down the start of every run.
    """
    name, split = _divided(place.removeprefix(_TFDS).removeprefix(_HUB))
    if not place.startswith((_TFDS, _HUB)) and (folder := _folder(place)):
        name, split = folder
        place = _HUB if _is_saved(name) else _TFDS
        if place == _TFDS:
            name = _only(name)
    if place.startswith(_HUB):
        from rlhf_jax.data.hub_datasets import HubDataset

        return HubDataset(name, split)
    if place.startswith(_TFDS):
        from rlhf_jax.data.tfds import TFDS

        return TFDS(name, split)
    if not _is_parquet(place):
        return None
    from rlhf_jax.data.parquet import Parquet

    return Parquet(place)


def _is_parquet(path: str) -> bool:
    """True for a Parquet file, whatever its name; it may be gzipped."""
    with contextlib.suppress(OSError, EOFError):  # not whole: its reader says so
        for opened in (open, gzip.open):
            with opened(path, "rb") as file:
                if file.read(4) == b"PAR1":
                    return True
    return False


def _is_saved(folder: str) -> bool:
    """True for a folder that `save_to_disk` of `datasets` wrote."""
    return any(Path(folder, mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def _prepared(folder: str) -> list[str]:
    """The folders of prepared TFDS data in a folder: itself, or those up to three levels below it."""
    levels = (f"{'*/' * depth}dataset_info.json" for depth in range(4))
    found = (path.parent for level in levels for path in Path(folder).glob(level))
    return sorted(str(path) for path in found if not path.name.startswith("incomplete."))


def _only(folder: str) -> str:
    """The one folder of prepared TFDS data in a folder."""
    first, *others = _prepared(folder)
    if others:
        raise ValueError(
            f"{folder} holds {1 + len(others)} prepared data sets: name one of them, as in {first}"
        )
    return first


def _rows_of_lines(path: str, required: tuple[str, ...], bad: BadRecords) -> list[Row]:
    """The rows of a file with a JSON object on each line."""
    rows = []
    for number, line in enumerate(jsonl.lines(path), 1):
        line = line.removeprefix(codecs.BOM_UTF8)  # a mark may follow where files were joined
        if not line.strip():
            continue
        bad.total += 1
        with bad:
            where = f"{path}:{number}"
            rows.append(_with(Row(jsonl.parse(line, where), where), required))
    return rows


def _end(row: Row, name: str) -> Any:
    """The value that a dotted name leads to; null where it leads through null."""
    value, *keys = row[name.partition(".")[0]], *name.split(".")[1:]
    for key in keys:
        if value is None:
            return None
        inside = value if isinstance(value, list) else [value]
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif all(isinstance(item, dict) and key in item for item in inside):
            within = [item[key] for item in inside]
            value = within if isinstance(value, list) else within[0]
        else:
            said = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
            raise BadRecord(
                row.where,
                f"field {name!r} leads nowhere",
                f": there is no {key!r} in {said}: name what each row has",
            )
    if value == []:
        raise BadRecord(row.where, f"field {name!r} leads to an empty list", ": leave the row out")
    return value


def _with(row: Row, required: tuple[str, ...]) -> Row:
    """The row, which must hold a string in each of these fields."""
    for name in required:
        field(row, name, str)
    return row


def _plain(value: Any) -> Any:
    """A value of JSON: text for bytes and for other kinds, Python's numbers and lists for NumPy's."""
    if isinstance(value, np.floating):
        return float(str(value))  # 0.1 of float32 is 0.1, and not 0.10000000149011612
    if isinstance(value, np.ndarray):
        return _plain(list(value) if value.ndim else value[()])
    if isinstance(value, np.generic):
        return _plain(value.tolist())
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):  # TFDS has its own for messages
        return [_plain(item) for item in value]
    return str(value)
