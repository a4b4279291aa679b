"""JSON and arrays of a run on disk, each written whole or not at all, and computed once.

What is computed once has a manifest of hashes beside it, and is made again where it is damaged.
"""

import contextlib
import dataclasses
import enum
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from rlhf_jax.devices import hosts
from rlhf_jax.runs import manifest

REMEDY = "delete it, and the same command makes it again"


def cached(run: pathlib.Path, name: str, make: Callable[[], Any]) -> Any:
    """The content of `run/name` (.json or .jsonl); the result of `make()` is written there if it is absent.

    Every process calls it, for it may use the devices.
    """
    place = run / name
    if not hosts.agreed(hosts.is_first() and _stands(place)):
        made = make()
        if hosts.is_first():
            _make(place, lambda partial: write_json(partial, made))
        hosts.wait("cached")
    return read_json(place)


def kept(place: pathlib.Path, make: Callable[[pathlib.Path], Any]) -> None:
    """The file or folder `place`, which `make(path)` writes if it is absent; it appears whole or not at all.

    The first process alone calls `make`. A manifest beside `place` holds its hashes: what is damaged is told
    on stderr and made again. Raises ValueError where that gives something else.
    """
    hosts.once(lambda: _stands(place), lambda: _make(place, make))


def mapped(folder: pathlib.Path, make: Callable[[], Any], like: Any) -> Any:
    """The tree of arrays that `make()` gives, as files of `folder` that are mapped into memory, read-only.

    The folder is `kept`. `like` is any tree of that structure; a folder of fewer arrays is an older
    version's, and made again.
    """

    def write(partial):
        partial.mkdir()
        for n, x in enumerate(jax.tree.leaves(make())):
            np.save(partial / f"{n}.npy", x)

    kept(folder, write)
    last = folder / f"{len(jax.tree.leaves(like)) - 1}.npy"
    hosts.once(last.exists, lambda: (_delete(folder), _make(folder, write)))
    read = lambda n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r"))
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [read(n) for n in range(len(leaves))])


def write_json(path: pathlib.Path, obj: Any) -> None:
    """Writes `obj` to `path` all at once; as rows where the name ends in .jsonl.

    Dataclasses become objects, arrays lists; what is not finite becomes null. Process 0 alone writes.
    """
    if jax.process_index() > 0:
        return
    obj = plain(obj)
    rows = (
        [json.dumps(row) for row in obj] if path.suffix == ".jsonl" else [json.dumps(obj, indent=1)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, rows)


def write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    """Writes lines of text to `path` all at once."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: pathlib.Path, remedy: str = REMEDY) -> Any:
    """The content that `write_json` wrote: a list of rows where the name ends in .jsonl.

    Raises ValueError, which names the file and the `remedy`, where it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(row) for row in text.splitlines()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, and no JSON ({error}): {remedy}") from None


def plain(x) -> Any:
    """`x` in types of JSON: dataclasses as objects, arrays as lists, null for numbers that are not finite."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {field.name: plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {str(name): plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return plain(np.asarray(x).tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, enum.Enum):
        return x.name
    if isinstance(x, pathlib.PurePath):
        return str(x)
    if x is None or isinstance(x, (str, int)):
        return x
    raise ValueError(f"{x!r} is a {type(x).__name__}: settings and results hold plain values")


def _stands(place: pathlib.Path) -> bool:
    """Whether `place` is there as it was written; what is wrong with it is told."""
    beside = place.with_name(place.name + manifest.SUFFIX)
    if not place.exists():
        return False
    if not beside.exists():  # an older run's, or a kill came between the two
        manifest.write(beside, {"files": manifest.hashes(place)})
        return True
    damage = "its manifest cannot be read"
    with contextlib.suppress(*manifest.UNREADABLE):
        damage = manifest.damage(place, manifest.read(beside)["files"])
    if damage:
        print(f"{place} is damaged: {damage}; it is made again", file=sys.stderr)
    return not damage


def _make(place: pathlib.Path, make: Callable[[pathlib.Path], Any]) -> None:
    """Makes `place` and its manifest. Raises ValueError where an older manifest wants other hashes."""
    beside = place.with_name(place.name + manifest.SUFFIX)
    partial = place.with_name(f".partial.{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    _delete(partial)
    make(partial)
    before, files = None, manifest.hashes(partial)
    if place.exists():
        with contextlib.suppress(OSError, *manifest.UNREADABLE):
            before = manifest.read(beside)["files"]
    if before not in (None, files):
        raise ValueError(
            f"{place} is damaged, and what is made in its place is not what it was (by other versions or "
            "devices?): put back a copy of it, or begin another run with --run NEW_FOLDER"
        )
    _delete(place)
    partial.replace(place)
    manifest.write(beside, {"files": files})


def _delete(place: pathlib.Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
