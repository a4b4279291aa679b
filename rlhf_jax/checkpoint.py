"""Checkpoints that are whole or are not there: Orbax, and beside each step a manifest of hashes.

Orbax finalises a step atomically, but loads a flipped bit without a word and casts dtypes
silently. So each step is followed by `STEP.manifest.json`, which holds the shape and dtype of every
array and the sha256 of every file. A step without a manifest was never finished.

A leaf is an array (JAX or NumPy) or a plain number; every host of a run saves and restores.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rlhf_jax import hosts

SUFFIX = ".manifest.json"


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
    later: a run that saves those again was wound back.
    """
    directory = pathlib.Path(directory).absolute()
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
        manager = manager or _manager(directory, is_async=True)  # it remembers what it finds
        manager.save(iteration, args=ocp.args.StandardSave(items), force=True)
        kinds = {path: _kind(leaf) for path, leaf in leaves.items()}
        value = value if value is not None and math.isfinite(value) else None
        under_way.append(background.submit(finish, manager, iteration, kinds, value))

    def finish(manager, iteration, kinds, value):
        manager.wait_until_finished()  # of all hosts, on the first
        if hosts.is_first():
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
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # it is damaged
            values[step] = _read_manifest(directory, step).get("value")
    values = {step: value for step, value in values.items() if value is not None}
    return max(values, key=values.__getitem__, default=None)


def restore(directory, iteration: int, like) -> Any:
    """Step `iteration` as a tree like `like`: its structure, its shardings, the bits of the save.

    `like` holds arrays or `jax.ShapeDtypeStruct`s. Raises ValueError, naming the path, if a file
    is damaged or if structure, shape or dtype are not those that were saved.
    """
    directory = pathlib.Path(directory).absolute()
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
    directory = pathlib.Path(directory).absolute()
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

    A damaged step is named on stderr and the one before it is taken. Raises ValueError when all
    are damaged.
    """
    directory = pathlib.Path(directory).absolute()
    steps = sorted(_manifests(directory), reverse=True)
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
    names = {path.name for path in directory.glob("*")} if directory.is_dir() else set()
    return {int(name) for name in names if name.isdigit()}


def _manifests(directory) -> set[int]:
    return {int(path.name.removesuffix(SUFFIX)) for path in directory.glob(f"*{SUFFIX}")}


def _remove(directory, steps):
    for step in steps:
        # The manifest goes first: what is half removed is no longer whole.
        (directory / f"{step}{SUFFIX}").unlink(missing_ok=True)
        shutil.rmtree(directory / str(step), ignore_errors=True)


def _hash(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write_manifest(directory, step, arrays, value):
    root = directory / str(step)
    files = {
        str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()
    }
    for path in files.values():  # the manifest must not reach the disk before what it vouches for
        with path.open("rb") as file:
            os.fsync(file.fileno())
    hashes = {name: _hash(path) for name, path in files.items()}
    content = {"arrays": arrays, "files": hashes, "value": value}
    final, partial = directory / f"{step}{SUFFIX}", directory / f"{step}{SUFFIX}.partial"
    with partial.open("w") as file:
        json.dump({"sha256": _hash_of(content)} | content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, final)


def _read_manifest(directory, step) -> dict:
    """`arrays`: path to shape and dtype; `files`: name to sha256; `value`. ValueError if it is damaged."""
    content = json.loads((directory / f"{step}{SUFFIX}").read_bytes())
    if content.pop("sha256") != _hash_of(content):
        raise ValueError("the manifest's own hash does not fit")
    return content


def _damage(directory, step) -> str | None:
    """What is wrong with a step, or None."""
    try:
        files = _read_manifest(directory, step)["files"]
    except FileNotFoundError:
        return "it has no manifest, so its save never ended"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    for name, digest in files.items():
        path = directory / str(step) / name
        if not path.is_file():
            return f"{name} is missing"
        if _hash(path) != digest:
            return f"{name} is not what was written"
    return None
