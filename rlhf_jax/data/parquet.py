"""Rows of Parquet files, by place."""

import gzip
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet


class Parquet:
    """A Parquet file as a source: its number of rows, and row `i` as a dict of Python values.

    Raises ValueError for a file that is damaged, and for two columns of one name.
    """

    def __init__(self, path: str):
        self.files = [path]
        try:
            with open(path, "rb") as raw:
                zipped = raw.peek(2)[:2] == b"\x1f\x8b"
                # of the file alone: a reader of data sets would take columns from the names of folders
                whole = io.BytesIO(gzip.decompress(raw.read())) if zipped else raw
                table = pyarrow.parquet.ParquetFile(whole).read()
        except (pa.ArrowException, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{path} cannot be read as Parquet ({reason}): write it again"
            ) from error
        names = table.column_names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{path}: the column {twice[0]!r} comes twice: rename one")
        self._size = len(table)
        self._columns = {name: table.column(name) for name in names}

    def __len__(self):
        return self._size

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i].as_py() for name, column in self._columns.items()}
