"""Checkpoints that are whole or are not there: Orbax, and beside each step a manifest of hashes.

Orbax finalises a step atomically, but loads a flipped bit without a word and casts dtypes
silently. So each step is followed by `STEP.manifest.json`, which holds the shape and dtype of every
array, the sha256 of every file and the step's own number. A step without a manifest was never finished.

A leaf is an array (JAX or NumPy) or a plain number; every host of a run saves and restores.
"""

import concurrent.futures
import contextlib
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from rlhf_jax.devices import hosts
from rlhf_jax.runs import manifest
from rlhf_jax.runs.manifest import SUFFIX, UNREADABLE

UNUSABLE = "*?[\\"
"""The characters that no path of a checkpoint may have: Orbax looks for its own files by a glob."""


def save(directory, iteration: int, tree, *, keep: int = 2) -> None:
    """`tree` as step `iteration`, as `saving` says; returns once it is on disk."""
    with saving(directory, keep=keep) as begin:
        begin(iteration, tree)


@contextlib.contextmanager
def saving(directory, *, keep: int = 2) -> Iterator[Callable]:
    """Yields `begin(iteration, tree, value=None)`, which copies `tree` and writes it in the background.

    What it was given may be donated or changed as soon as it returns. It waits for the save before, and
    the block's end for the last one; where one failed, it raises there. `iteration` becomes the newest
    step there is. Of the older whole ones the newest `keep` stay, that one among them, and besides the one
    of the highest finite `value`. Leftovers that no manifest vouches for go, and steps of `iteration` and
    later: a run that saves those again was wound back. Raises ValueError where the path has a character of
    `UNUSABLE`, and OSError where the disk does not take a save.
    """
    directory = pathlib.Path(os.path.realpath(directory))
    check_path(directory)
    if keep < 1:
        raise ValueError(
            f"keep is {keep}, but at least one checkpoint must stay: set it to 1 or more"
        )
    background = concurrent.futures.ThreadPoolExecutor(1)
    under_way, manager = [], None

    def begin(iteration: int, tree, value: float | None = None):
        nonlocal manager
        leaves = _leaves(tree)
        wait()
        if hosts.is_first():
            whole = _manifests(directory)
            _remove(directory, [step for step in _steps(directory) | whole if step >= iteration])
            _remove(directory, _steps(directory) - whole)
        hosts.wait("checkpoint.cleared")
        # Orbax takes no empty arrays; they have no bits, and `like` says what they were.
        items = {path: _storable(leaf) for path, leaf in leaves.items() if np.size(leaf)}
        with _errors_of_the_disk(directory):
            manager = manager or _manager(directory, is_async=True)  # it remembers what it finds
            manager.save(iteration, args=ocp.args.StandardSave(items), force=True)
        kinds = {path: _kind(leaf) for path, leaf in leaves.items()}
        under_way.append(background.submit(finish, manager, iteration, kinds, value))

    def finish(manager, iteration, kinds, value):
        with _errors_of_the_disk(directory):
            manager.wait_until_finished()  # of all hosts, on the first
        if hosts.is_first():
            _check_names(directory, iteration, kinds)
            _write_manifest(directory, iteration, kinds, value)
            stay = {*sorted(_manifests(directory))[-keep:], best(directory)}
            _remove(directory, _manifests(directory) - stay)

    def wait():
        while under_way:
            under_way.pop().result()

    try:
        yield begin
    except BaseException:
        if jax.process_count() == 1:  # else one of them may be gone, and would be waited for
            wait()
        raise
    wait()
    if manager is not None:
        manager.close()
    background.shutdown()
    hosts.wait("checkpoint.vouched")


def latest(directory) -> int | None:
    """The newest step that was finished, or None; what its files hold is checked on restore."""
    return max(_manifests(pathlib.Path(directory)), default=None)


def best(directory) -> int | None:
    """The first step of the highest value that was saved with one, or None."""
    directory, values = pathlib.Path(directory), {}
    for step in sorted(_manifests(directory)):
        with contextlib.suppress(*UNREADABLE):  # it is damaged
            values[step] = _read_manifest(directory, step).get("value")
    values = {step: value for step, value in values.items() if value is not None}
    return max(values, key=values.__getitem__, default=None)


def restore(directory, iteration: int, like) -> Any:
    """Step `iteration` as a tree like `like`: its structure, its shardings, the bits of the save.

    `like` holds arrays or `jax.ShapeDtypeStruct`s. Raises ValueError, naming the path, if a file
    is damaged or if structure, shape or dtype are not those that were saved.
    """
    directory = pathlib.Path(os.path.realpath(directory))
    damage = _damage(directory, iteration)
    if damage:
        raise ValueError(f"checkpoint {directory / str(iteration)} is damaged: {damage}")
    return _load(directory, iteration, like)


def _load(directory, iteration, like):
    wanted, saved = _leaves(like), _read_manifest(directory, iteration)["arrays"]
    for path in sorted(wanted.keys() | saved.keys()):
        _compare(directory / str(iteration), path, wanted, saved)

    targets = {path: _target(leaf) for path, leaf in wanted.items() if np.prod(_kind(leaf)[0])}
    with _manager(directory) as manager:
        items = manager.restore(iteration, args=ocp.args.StandardRestore(targets))
    restored = [_as_given(items.get(path), leaf) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def read(directory, iteration: int, *below: str) -> dict[str, np.ndarray]:
    """The arrays of step `iteration`, on the host, by path: `jax.tree_util.keystr`'s, as "['state'].params".

    With `below`, paths, only what stands below the first of them that is there is read, by the rest of its
    path. Raises ValueError if a file is damaged.
    """
    directory = pathlib.Path(os.path.realpath(directory))
    damage = _damage(directory, iteration)
    if damage:
        raise ValueError(f"checkpoint {directory / str(iteration)} is damaged: {damage}")
    saved = _read_manifest(directory, iteration)["arrays"]
    top = next((top for top in below if any(path.startswith(top) for path in saved)), None)
    if below and top is None:
        return {}
    kinds = {path: x for path, x in saved.items() if path.startswith(top or "") and np.prod(x[0])}
    args = ocp.args.PyTreeRestore(
        item={
            path: np.broadcast_to(np.zeros((), dtype), shape)
            for path, (shape, dtype) in kinds.items()
        },
        restore_args={path: ocp.RestoreArgs(restore_type=np.ndarray) for path in kinds},
        partial_restore=True,
    )
    with _manager(directory) as manager:
        found = manager.restore(iteration, args=args)
    return {path.removeprefix(top or ""): x for path, x in found.items()}


def restore_latest(directory, like) -> tuple[int, Any] | None:
    """The newest undamaged step and its tree as of `restore`; None where no step was finished.

    A damaged step is named on stderr and the one before it is taken, and so is one whose manifest is gone.
    Raises ValueError when all are damaged.
    """
    directory = pathlib.Path(os.path.realpath(directory))
    steps = sorted(_manifests(directory), reverse=True)
    for step in sorted(_steps(directory)):
        if step > max(steps, default=-1):
            print(
                f"checkpoint {directory / str(step)} has no manifest, which was deleted, or its save never "
                "ended: it is not used",
                file=sys.stderr,
            )
    for step in steps:
        damage = _damage(directory, step)
        if not damage:
            return step, _load(directory, step, like)
        print(f"checkpoint {directory / str(step)} is damaged: {damage}", file=sys.stderr)
    if steps:
        raise ValueError(
            f"every checkpoint in {directory} is damaged: delete that folder to train it anew"
        )
    return None


def _manager(directory, is_async=False):
    options = ocp.CheckpointManagerOptions(
        create=True, enable_async_checkpointing=is_async, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(directory, options=options)


# --- leaves


def _leaves(tree) -> dict[str, Any]:
    leaves = {
        jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    for path, leaf in leaves.items():
        plain = isinstance(leaf, (bool, int, float, np.ndarray, np.generic))
        if not plain and not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
            raise ValueError(f"a checkpoint holds arrays, but {path} is a {type(leaf).__name__}")
        if not plain and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"a checkpoint holds no typed key: give {path} as jax.random.key_data")
    if not any(np.prod(_kind(leaf)[0]) for leaf in leaves.values()):
        raise ValueError("a checkpoint needs at least one array that is not empty, and got none")
    return leaves


def _kind(leaf) -> list:
    """Shape and name of the dtype, as they stand in a manifest."""
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return [list(array.shape), np.dtype(array.dtype).name]


def _storable(leaf):
    return leaf if isinstance(leaf, jax.Array) else np.array(leaf)  # the caller may change its own


def _is_placed(leaf) -> bool:
    """Whether someone chose the leaf's devices. An array nobody placed must come back like that:
    jit moves it to any mesh, and refuses one that is committed elsewhere."""
    if isinstance(leaf, jax.Array):
        return leaf.committed
    return isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None


def _target(leaf):
    shape, dtype = _kind(leaf)
    if _is_placed(leaf):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=leaf.sharding)
    return np.broadcast_to(np.zeros((), dtype), shape)  # tells Orbax "NumPy", and takes no memory


def _as_given(item, leaf):
    if item is None:  # it was empty
        item = np.zeros(*_kind(leaf))
    if isinstance(leaf, (bool, int, float)):
        return type(leaf)(item.item())
    if isinstance(leaf, np.generic):
        return item[()]
    if isinstance(leaf, np.ndarray):
        return item
    return item if isinstance(item, jax.Array) else jnp.array(item)


def _compare(where, path, wanted, saved):
    if path not in wanted or path not in saved:
        holder, other = ("holds", "is not") if path in saved else ("lacks", "is")
        raise ValueError(
            f"checkpoint {where} {holder} {path}, which {other} in the tree to restore: "
            "it was saved by another program or another config"
        )
    kind, found = _kind(wanted[path]), saved[path]
    if kind != found:
        raise ValueError(
            f"checkpoint {where} holds {path} as {found[1]}{found[0]}, but {kind[1]}{kind[0]} is "
            "wanted: it was saved by another program or another config"
        )


# --- manifests


def _steps(directory) -> set[int]:
    """Every step that left anything, whole or not."""
    return {int(path.name) for path in _children(directory) if _is_number(path.name)}


def _manifests(directory) -> set[int]:
    """The steps that have a manifest; strays of copying, as "._4.manifest.json", do not count."""
    names = [path.name.removesuffix(SUFFIX) for path in _children(directory, SUFFIX)]
    return {int(name) for name in names if _is_number(name)}


def _children(directory, suffix="") -> list[pathlib.Path]:
    children = directory.iterdir() if directory.is_dir() else ()
    return [path for path in children if path.name.endswith(suffix)]


def _is_number(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]*", name) is not None


def _remove(directory, steps):
    for step in steps:
        # The manifest goes first: what is half removed is no longer whole.
        (directory / f"{step}{SUFFIX}").unlink(missing_ok=True)
        shutil.rmtree(directory / str(step), ignore_errors=True)


def check_path(directory: pathlib.Path) -> None:
    """Raises ValueError where Orbax would not find what it wrote below `directory`."""
    path = os.path.realpath(directory)
    bad = next((x for x in path if x in UNUSABLE or "\ud800" <= x <= "\udfff"), None)
    if bad is not None:
        raise ValueError(
            f"{path!r} has {bad!r} in it, and no checkpoint can be written below such a path: name a folder "
            f"of plain letters, without {' '.join(UNUSABLE)}"
        )


def _check_names(directory, step, arrays) -> None:
    """Raises OSError where not every array of `arrays` is in the database that was just written."""
    place = directory / str(step) / "default"
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{place}/"}}
    keys = {key.decode() for key in tensorstore.KvStore.open(database).result().list().result()}
    for path, (shape, _) in arrays.items():
        if np.prod(shape) and not any(f"{path}/{of}" in keys for of in (".zarray", "zarr.json")):
            raise OSError(
                f"checkpoint {place} was written without {path}: save to another disk or folder"
            )


@contextlib.contextmanager
def _errors_of_the_disk(directory):
    """Turns what Orbax makes of an error of the disk back into OSError."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(directory)) from error


def _write_manifest(directory, step, arrays, value):
    files = manifest.hashes(directory / str(step))
    finite = value if value is not None and math.isfinite(value) else None
    content = {"step": step, "arrays": arrays, "files": files, "value": finite}
    manifest.write(directory / f"{step}{SUFFIX}", content)


def _read_manifest(directory, step) -> dict:
    """`step`; `arrays`: path to shape and dtype; `files`: name to sha256; `value`."""
    return manifest.read(directory / f"{step}{SUFFIX}")


def _damage(directory, step) -> str | None:
    """What is wrong with a step, or None."""
    try:
        content = _read_manifest(directory, step)
        number, files = content.get("step", step), content["files"]  # older ones have no number
        if number != step:
            return f"it is a copy of step {number}"
        return manifest.damage(directory / str(step), files)
    except FileNotFoundError:
        return "it has no manifest, so its save never ended"
    except UNREADABLE:
        return "its manifest cannot be read"
