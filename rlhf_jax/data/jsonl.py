"""Lines of JSON files, plain or gzipped, and the object on each."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress

from rlhf_jax.data.bad_records import BadRecord

LONG = 2**26
"""File size in bytes from which reading shows its progress."""
DEEP = 100
"""Deepest allowed nesting of lists and objects in a row."""


def lines(path: str) -> Iterator[bytes]:
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


def parse(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line. Raises BadRecord for anything else, a duplicate key or an unpaired surrogate."""
    deep = f"lists and objects stand more than {DEEP} deep in each other", ": take that field out"
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise BadRecord(where, "the line is not UTF-8", ", convert the file") from error
    except json.JSONDecodeError as error:
        more = f" ({error.msg} at column {error.colno}): write one whole object on each line"
        raise BadRecord(where, "the line is not JSON", more) from error
    except RecursionError as error:
        raise BadRecord(where, *deep) from error
    except ValueError as error:  # a key twice, or a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise BadRecord(where, "the line cannot be read", f" ({reason}): mend the row") from error
    if not isinstance(value, dict):
        raise BadRecord(where, "the line must be a JSON object", f", and is {kind_of(value)}")
    if line.count(b"[") + line.count(b"{") > DEEP and _depth(value) > DEEP:
        raise BadRecord(where, *deep)
    if _HALF.search(line):
        check_characters(value, where)
    return value


def check_characters(value: Any, where: str) -> None:
    """Raises BadRecord for an unpaired surrogate, which no tokenizer and no file accepts."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        more = f" ({half}, of an emoji that was cut in two, for example): take it out, or write it whole"
        raise BadRecord(where, "the row holds half of a character", more) from None


def kind_of(value: Any) -> str:
    """The kind of a value in words."""
    return KINDS.get(type(value), type(value).__name__)


KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
"""Kinds of JSON values in words."""

_HALF = re.compile(
    rb"\\u[dD][89a-fA-F]"
)  # how JSON escapes half of a character, most often beside its other


def _depth(value: Any) -> int:
    """Nesting depth of lists and objects."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = [x.values() if isinstance(x, dict) else x for x in level]
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
    return depth


def _once(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object with distinct keys; JSON itself silently keeps the last of two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found
