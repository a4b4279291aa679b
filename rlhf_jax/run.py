"""A run on disk: its folder, its settings, and what was computed there once.

    run = open_run("sentiment", cfg, cfg.run)                        runs/sentiment/1f0c5a77b2/

A folder holds `config.json`, `metrics.jsonl`, `tensorboard/`, `data/` and `stages/STAGE/` (checkpoints).
The same command on a folder goes on where it was: what is finished is read, the rest continues.
"""

import atexit
import dataclasses
import enum
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax import hosts

PACKAGES = (
    "rlhf_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)
UNTELLING = (
    "run",
    "wandb",
    "devices",
    "sample.slots",
    "rl.keep",
    "rl.best",
    "rl.scorer.threads",
    "rl.scorer.processes",
    "rl.scorer.samples_per_call",
    "rl.scorer.timeout",
)  # settings that change no result
_locks = {}  # folder to its open lock file: a lock lasts until this process ends


# --- the folder


def open_run(
    experiment: str,
    cfg: Any,
    directory: str | None = None,
    *,
    ignore: tuple[str, ...] = UNTELLING,
) -> pathlib.Path:
    """The folder of this run, `runs/EXPERIMENT/HASH-OF-CONFIG` or `directory`, locked to this process.

    `ignore` names (dotted) the settings that change no result: they neither enter the hash nor
    keep a run from going on. Raises ValueError if the folder holds something else, was begun with
    another config, or is in use.
    """
    settings = _flat(plain(cfg))
    telling = {name: x for name, x in settings.items() if name not in ignore}
    digest = hashlib.sha256(json.dumps([experiment, telling], sort_keys=True).encode()).hexdigest()
    run = pathlib.Path(directory or pathlib.Path("runs", experiment, digest[:10]))
    config = run / "config.json"
    if run.exists() and not run.is_dir():
        raise ValueError(f"run {run} is a file: give a folder")
    if run.is_dir() and not config.exists():
        strangers = sorted(
            p.name for p in run.iterdir() if not p.name.startswith((".lock", ".config"))
        )
        if strangers:
            raise ValueError(
                f"run {run} holds {strangers[0]} and no config.json, so it is no run: "
                "give another folder or an empty one"
            )
    if jax.process_index() > 0:
        return run
    _lock(run)
    if not config.exists():
        write_json(config, {"experiment": experiment, "settings": plain(cfg)} | _surroundings())
        return run
    old = read_json(config)
    before = {n: x for n, x in _flat(old["settings"]).items() if n not in ignore}
    before, telling = (
        {"experiment": old["experiment"]} | before,
        {"experiment": experiment} | telling,
    )
    names = [n for n in (before | telling) if before.get(n, "absent") != telling.get(n, "absent")]
    if names:
        changes = ", ".join(
            f"{n} is {before.get(n, 'absent')!r} there and {telling.get(n, 'absent')!r} here"
            for n in names
        )
        raise ValueError(
            f"run {run} was begun with another config ({changes}): "
            "give another folder, or the settings it was begun with"
        )
    changed = [n for n, v in _versions().items() if old["versions"].get(n) != v]
    if changed:
        print(f"note: {run} was begun with other versions of {', '.join(changed)}", file=sys.stderr)
    return run


def finished(run: pathlib.Path, stage: str) -> bool:
    """Whether `iterate` took `stage` to its end."""
    return (run / "stages" / stage / "done.json").exists()


def cached(run: pathlib.Path, name: str, make: Callable[[], Any]) -> Any:
    """What `run/name` holds (.json or .jsonl); `make()` is called and written there if it is absent.

    Every process calls it, for it may use the devices.
    """
    if not hosts.agreed((run / name).exists()):
        write_json(run / name, make())
        hosts.wait("cached")
    return read_json(run / name)


def mapped(folder: pathlib.Path, make: Callable[[], Any], like: Any) -> Any:
    """The tree of arrays that `make()` gives, as files of `folder` that are mapped into memory, read-only.

    The first process alone calls `make`, where `folder` does not stand; it appears whole or not at all.
    `like` is any tree of that structure.
    """

    def write():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for n, x in enumerate(jax.tree.leaves(make())):
            np.save(partial / f"{n}.npy", x)
        partial.replace(folder)

    hosts.once(folder.exists, write)
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
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(f"{row}\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> Any:
    """What `write_json` wrote: a list of rows where the name ends in .jsonl."""
    text = path.read_text()
    return (
        [json.loads(row) for row in text.splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )


def seconds(run: pathlib.Path) -> dict[str, float]:
    """How long each finished stage took, over all sessions."""
    clocks = sorted(run.glob("stages/*/done.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: read_json(path)["seconds"] for path in clocks}


def peak_memory() -> float:
    """The most memory this process has held at once, in GiB; that of devices is not in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def plain(x) -> Any:
    """What JSON can hold of `x`: dataclasses as objects, arrays as lists, null for what is not finite."""
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


def _flat(tree, prefix="") -> dict[str, Any]:
    """Dotted names to values, lists whole."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {k: v for name, x in tree.items() for k, v in _flat(x, f"{prefix}{name}.").items()}


def _lock(run):
    run.mkdir(parents=True, exist_ok=True)
    if run.resolve() in _locks:
        return
    file = (run / ".lock").open("w")
    try:
        # lockf, not flock: a child that outlives this process must not hold the folder
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(
            f"run {run} is in use by another process: wait for it or stop it"
        ) from None
    _locks[run.resolve()] = file
    atexit.register(file.close)


def _versions():
    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _surroundings():
    devices = jax.devices()
    return {
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": _versions(),
        "platform": platform.platform(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind}
        | {"count": len(devices), "processes": jax.process_count()},
        "commit": _commit(),
    }


def _commit():
    """The commit of the source tree and whether it was changed since; None if it is no checkout."""

    def git(*args):
        command = ["git", "-C", str(here.parent), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    here = pathlib.Path(__file__).resolve()
    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # an installed copy may lie in another checkout
        dirty = bool(git("status", "--porcelain", ":/").strip())
        return {"hash": git("rev-parse", "HEAD").strip(), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None
