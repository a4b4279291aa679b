"""JSONL files as data sets of TensorFlow Datasets (TFDS), in a format that needs no TensorFlow.

The format is array_record, of which TFDS reads any row by its number. Rows keep their order.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.sources import Row, field, read, write_jsonl

Columns = Mapping[str, Any]
"""The TFDS feature of each column."""

TEXT = tfds.features.Text()
TEXTS = tfds.features.Sequence(TEXT)
NUMBER = tfds.features.Scalar(np.int64)
NUMBERS = tfds.features.Sequence(NUMBER)
REAL = tfds.features.Scalar(np.float32)
MESSAGES = tfds.features.Dataset({"role": TEXT, "content": TEXT})
"""The messages of a dialogue, read as a sequence of mappings."""

_SCALARS = {
    str: TEXT,
    bool: tfds.features.Scalar(np.bool_),
    int: NUMBER,
    float: REAL,
}


@dataclasses.dataclass(eq=False, kw_only=True)
class Layout(tfds.core.BuilderConfig):
    """The columns of a data set, and the JSONL file of each split."""

    columns: Columns
    """The feature of each column; every row has all of them."""
    files: Mapping[str, str]
    """The file of each split: its name in TFDS's `manual_dir`, or a URL, which TFDS downloads."""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the builders: rows of JSONL files, with the columns and files of a `Layout`.

    A builder is made with `config=Layout(...)` and `file_format="array_record"`, which must be named because
    the default of TFDS needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the JSONL files that the Layout names into manual_dir."
    LAYOUTS: ClassVar[Mapping[str, Columns]] = {}
    """The columns of common data sets of this kind. A data set has those of one of them, and any others."""

    @property
    def layout(self) -> Layout:
        """The builder's `config`. Raises ValueError where it has another one, or none."""
        if not isinstance(self.builder_config, Layout):
            raise ValueError(f"{self.name} have no default config: give config=Layout(...)")
        return self.builder_config

    @classmethod
    def fits(cls, names: Iterable[str]) -> bool:
        """True where a data set with these columns is of this kind."""
        return any(columns.keys() <= {*names} for columns in cls.LAYOUTS.values())

    @classmethod
    def kept(cls, rows: list[Row]) -> list[Row]:
        """The rows that a data set of this kind holds."""
        return rows

    def _info(self) -> tfds.core.DatasetInfo:
        columns = self.layout.columns
        if not self.fits(columns):
            known = dict.fromkeys(" and ".join(map(repr, x)) for x in self.LAYOUTS.values())
            raise ValueError(
                f"{self.name} need the fields {', or '.join(known)}, and the fields found are "
                f"{', '.join(map(repr, columns)) or 'none'}: rename yours"
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(dict(columns)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        files = self.layout.files
        found = dl_manager.download({s: x for s, x in files.items() if "://" in x})
        found |= {s: dl_manager.manual_dir / x for s, x in files.items() if s not in found}
        return {split: self._generate_examples(found[split]) for split in files}

    def _generate_examples(self, path) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(map(dict, self.kept(read([os.fspath(path)]))))


def prepare(
    kind: type[Builder], splits: Mapping[str, list[Row]], to: pathlib.Path
) -> dict[str, int]:
    """Writes the rows of each split as a TFDS data set of that kind, and counts them.

    The folder `to` appears whole or not at all; `tfds.builder_from_directory` reads it. Raises
    ValueError for rows that `columns_of` or the kind refuses.
    """
    splits = {split: kind.kept(rows) for split, rows in splits.items()}
    columns = columns_of([row for rows in splits.values() for row in rows])
    files = {split: f"{split}.jsonl" for split in splits}
    tfds.display_progress_bar(sys.stderr.isatty())
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as partial:
        made = kind(
            config=Layout(name="jsonl", columns=columns, files=files),
            data_dir=partial,
            file_format="array_record",
        )
        for split, rows in splits.items():
            write_jsonl(os.path.join(partial, files[split]), rows)
        settings = tfds.download.DownloadConfig(manual_dir=partial)
        with contextlib.redirect_stdout(io.StringIO()):  # it would name the partial folder
            made.download_and_prepare(
                download_dir=os.path.join(partial, "downloads"), download_config=settings
            )
        os.rename(made.data_path, to)
    return {split: info.num_examples for split, info in made.info.splits.items()}


def columns_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The TFDS feature of each column of the rows, found from all values.

    Columns are texts, whole numbers, true or false, numbers of seven digits, lists of these, objects, and
    lists of objects (messages). Raises ValueError, naming the row's origin and the field, where a row lacks
    a column, has null in it or a value of another kind, and for lists that hold lists or null.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _feature(name, rows) for name in names}


def _feature(name: str, rows: Sequence[Row], inside: bool = False) -> Any:
    """The feature of one column; `inside` a list, there is no other list."""
    kinds = {type(row[name]) for row in rows if row.get(name) is not None}
    first = next((type(row[name]) for row in rows if row.get(name) is not None), None)
    if first is None:
        raise ValueError(f"{rows[0].where}: field {name!r} is null in every row: leave it out")
    kind = float if kinds == {int, float} else first
    values = [(row.where, field(row, name, kind)) for row in rows]
    if kind in _SCALARS:
        return _scalar(name, kind, values)
    if kind is dict:
        objects = [Row(value, where) for where, value in values]
        keys = dict.fromkeys(key for row in objects for key in row)
        return {key: _feature(key, objects, inside) for key in keys}
    if inside:
        raise ValueError(
            f"{values[0][0]}: field {name!r} is a list inside a list, which TFDS stores with TensorFlow "
            "alone: write each inner list as a text"
        )
    items = [Row({name: item}, where) for where, value in values for item in value]
    item = _feature(name, items, inside=True) if items else TEXT
    return tfds.features.Dataset(item) if isinstance(item, dict) else tfds.features.Sequence(item)


def _scalar(name: str, kind: type, values: list[tuple[str, Any]]) -> Any:
    for where, value in values:
        if kind is int and abs(value) >= 2**63:
            raise ValueError(f"{where}: field {name!r} is {value}, beyond 64 bits: write a text")
        if kind is float and float(str(np.float32(value))) != value:
            raise ValueError(
                f"{where}: field {name!r} is {value}, and TFDS keeps seven digits of a number: write a text, "
                "or fewer digits"
            )
    return _SCALARS[kind]
