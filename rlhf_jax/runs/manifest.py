"""Manifests: JSON files that hold the sha256 of other files, and of themselves.

manifest.write(place, {"files": manifest.hashes(root)})
manifest.damage(root, manifest.read(place)["files"])      None, or one clause that says what is wrong
"""

import hashlib
import json
import os
import pathlib

SUFFIX = ".manifest.json"
UNREADABLE = ValueError, KeyError, TypeError, AttributeError, RecursionError
"""The errors of reading a damaged manifest."""


def hashes(root: pathlib.Path) -> dict[str, str]:
    """Names below `root` to the sha256 of all its files, which are on the disk by then.

    The name is empty where `root` is itself a file.
    """
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    for path in paths:  # a manifest must not reach the disk before the files that it vouches for
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {_name(path, root): sha256(path) for path in paths}


def sha256(path: pathlib.Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(place: pathlib.Path, content: dict) -> None:
    """Writes `content` and its own hash to `place`, whole or not at all."""
    partial = place.with_name(f"{place.name}.partial")
    with partial.open("w") as file:
        json.dump({"sha256": _sha256_of(content)} | content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, place)


def read(place: pathlib.Path) -> dict:
    """The content given to `write`. Raises one of `UNREADABLE` where the manifest is damaged."""
    content = json.loads(place.read_bytes())
    if content.pop("sha256") != _sha256_of(content):
        raise ValueError("the manifest's own hash does not fit")
    return content


def damage(root: pathlib.Path, files: dict[str, str]) -> str | None:
    """The fault of the files below `root`, as a clause; None where each has its hash."""
    if not files:
        return "its manifest vouches for no file"
    for name, digest in files.items():
        path = root / name if name else root
        if not path.is_file():
            return f"{name or path.name} is missing"
        if sha256(path) != digest:
            return f"{name or path.name} is not what was written"
    return None


def _name(path, root):
    return "" if path == root else str(path.relative_to(root))


def _sha256_of(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
