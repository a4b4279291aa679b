"""A run on disk: its folder, its settings, and what was computed there once.

    run = open_run("sentiment", cfg, cfg.run)                        runs/sentiment/1f0c5a77b2/

A folder holds `config.json`, `metrics.jsonl`, `tensorboard/`, `data/` and `stages/STAGE/` (checkpoints).
The same command on a folder goes on where it was: what is finished is read, the rest continues. What was
computed there once has a manifest of hashes beside it, and is made again where it is damaged.
"""

import atexit
import contextlib
import dataclasses
import enum
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlhf_jax.devices import hosts
from rlhf_jax.runs import checkpoint, manifest

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
LENGTHS = {
    "rl.iterations": "rl.optimizer.schedule",
    "q.steps": "q.optimizer.schedule",
    "dpo.epochs": "dpo.optimizer.schedule",
}
"""Settings that a run may go on with at a larger value, where this schedule of its learning rate is constant:
no step before the old end depends on them then."""
CONFIG = "config.json"
REMEDY = "delete it, and the same command makes it again"
_locks = {}  # folder to its open lock file: a lock lasts until this process ends


# --- the folder


def open_run(
    experiment: str,
    cfg: Any,
    directory: str | None = None,
    *,
    ignore: tuple[str, ...] = UNTELLING,
    content: Callable[[], dict[str, dict[str, str]]] = dict,
) -> pathlib.Path:
    """The folder of this run, `runs/EXPERIMENT/HASH-OF-CONFIG` or `directory`, locked to this process.

    A run goes on where every setting is equal; one that it is older than stood at its default in the class of
    `cfg`. `ignore` names (dotted) the settings that change no result: they neither enter the hash, which is
    of settings that differ from their defaults, nor keep a run from going on. A larger value of one of
    `LENGTHS` is written into config.json, and the report is made again. `content()` gives, by setting and
    file, the sha256 of what the run learns from; the first process asks for it.

    Raises ValueError if the folder holds something else, was begun with another config or with other content
    of those files, or is in use.
    """
    begun = {"experiment": experiment, "settings": plain(cfg)}
    defaults = flat(plain(type(cfg)()))

    def compared(config):
        known = {n: x for n, x in (defaults | flat(config["settings"])).items() if n not in ignore}
        return {"experiment": config["experiment"]} | known

    here = compared(begun)
    run = pathlib.Path(directory or _folder_of(experiment, here, defaults, compared))
    check_folder("run", directory or str(run))
    checkpoint.check_path(run)
    config = run / CONFIG
    if run.is_dir() and not config.exists():
        strangers = sorted(
            p.name for p in run.iterdir() if not p.name.startswith((".lock", ".config"))
        )
        if strangers:
            raise ValueError(
                f"run {run} holds {strangers[0]} and no config.json, so it is no run: "
                "give another folder or an empty one"
            )
    if hosts.is_first():
        _lock(run)
        if config.exists():
            _take_up(run, begun, compared, content)
        else:
            write_json(config, begun | {"content": content()} | _surroundings())
    hosts.wait("opened")  # a run that is lengthened has no report from here on, for any process
    return run


def _folder_of(experiment: str, here: dict, defaults: dict, compared: Callable) -> pathlib.Path:
    """Where a run that is given no folder stands: one from before that is equal, or by its hash."""
    telling = {n: x for n, x in here.items() if n not in defaults or x != defaults[n]}
    text = json.dumps([experiment, telling], sort_keys=True)
    place = pathlib.Path("runs", experiment, hashlib.sha256(text.encode()).hexdigest()[:10])
    if not (place / CONFIG).exists():
        for config in sorted(place.parent.glob(f"{'[0-9a-f]' * 10}/{CONFIG}")):
            with contextlib.suppress(OSError, ValueError):  # it is damaged, or another's
                if compared(read_config(config.parent)) == here:
                    return config.parent
    return place


def _take_up(run: pathlib.Path, begun: dict, compared: Callable, content: Callable):
    """Raises ValueError where `run` is not what it was `begun` as, but for a larger one of `LENGTHS`."""
    old = read_config(run)
    there, here = compared(old), compared(begun)
    changes = differences(there, here)
    longer = [n for n in changes if n in LENGTHS and there.get(n, 0) < here.get(n, 0)]
    if changes and set(changes) == {*longer}:
        for name in longer:
            if (schedule := here[LENGTHS[name]]) != "constant":
                raise ValueError(
                    f"run {run} cannot be lengthened from {name} = {there[name]} to {here[name]}, for its "
                    f"learning rate falls to zero at its end ({LENGTHS[name]} is {schedule}): begin another "
                    "run with --run NEW_FOLDER, and with "
                    f"--{LENGTHS[name]} constant if it is to be lengthened later"
                )
    elif changes:
        raise ValueError(
            f"run {run} was begun with another config ({in_words(changes)}): "
            "give another folder, or the settings it was begun with"
        )
    now = content()
    if "content" not in old and now:
        print(
            f"note: {run} was begun before runs knew the content of their files: that nothing of "
            f"{', '.join(now)} has changed is not checked",
            file=sys.stderr,
        )
    changed = changes_of(old.get("content", now), now)
    if changed:
        raise ValueError(
            f"run {run} was begun with other content: {changed}. Put back what it was begun with, or begin "
            "another run with --run NEW_FOLDER"
        )
    versions = [n for n, v in _versions().items() if old["versions"].get(n) != v]
    if versions:
        print(
            f"note: {run} was begun with other versions of {', '.join(versions)}", file=sys.stderr
        )
    if longer:
        print(f"{run} is lengthened: {in_words(changes)}", flush=True)
        before = {"command": old.get("command"), "settings": {n: there[n] for n in longer}}
        after = {"settings": begun["settings"], "command": _command()}
        # first, so that a run which is stopped in between is not taken for finished
        (run / "report.html").unlink(missing_ok=True)
        write_json(run / CONFIG, old | after | {"lengthened": [*old.get("lengthened", []), before]})


def differences(there: dict, here: dict) -> dict[str, tuple]:
    """The settings that differ, each with both values."""
    names = (n for n in there | here if there.get(n, "absent") != here.get(n, "absent"))
    return {n: (there.get(n, "absent"), here.get(n, "absent")) for n in names}


def in_words(changes: dict[str, tuple]) -> str:
    """`differences` as clauses."""
    return ", ".join(f"{n} is {old!r} there and {new!r} here" for n, (old, new) in changes.items())


def check_folder(setting: str, value: str) -> None:
    """Raises ValueError where `value` can be no local folder: an address, a file, a link to nowhere."""
    address, folder = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", value), pathlib.Path(value)
    if address and len(address[1]) > 1:
        raise ValueError(
            f"{setting} = {value!r} is an address, and only local folders are written to: name a folder of "
            "this machine, or one that a file system is mounted on"
        )
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise ValueError(
                f"{setting} = {value!r}: {place} is a link that leads nowhere, mend it or name another folder"
            )
        if place.exists() and not place.is_dir():
            raise ValueError(f"{setting} = {value!r}: {place} is a file, name a folder")


def changes_of(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> str:
    """What differs between two `content`s, as clauses; empty where nothing does."""
    said = []
    for setting in before | now:
        old, new = before.get(setting, {}), now.get(setting, {})
        for file in old | new:
            if file not in new:
                said.append(f"{file} of {setting} is gone")
            elif file not in old:
                said.append(f"{file} of {setting} is new")
            elif old[file] != new[file]:
                said.append(
                    f"{file} of {setting} has changed (sha256 {old[file][:12]} then, {new[file][:12]} now)"
                )
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def read_config(run: pathlib.Path) -> dict:
    """The config.json of a run: "experiment", "settings", "versions", and "lengthened" where it was.

    Raises ValueError where it is damaged.
    """
    remedy = "put back a copy of it, or begin another run with --run NEW_FOLDER"
    config = read_json(run / CONFIG, remedy)
    for name, kind in (("experiment", str), ("settings", dict), ("versions", dict)):
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            raise ValueError(f"{run / CONFIG} is damaged, it has no {name}: {remedy}")
    return config


def opened() -> str:
    """The folders that this process has opened, as words."""
    return ", ".join(map(str, _locks)) or "the disk"


def record(run: pathlib.Path, name: str, value: Any) -> None:
    """Puts `value` into the config.json of a run, under `name`."""
    if hosts.is_first():
        config = read_config(run)
        if config.get(name) != plain(value):
            write_json(run / CONFIG, config | {name: plain(value)})


def finished(run: pathlib.Path, stage: str) -> bool:
    """Whether `iterate` took `stage` to its end."""
    return (run / "stages" / stage / "done.json").exists()


def cached(run: pathlib.Path, name: str, make: Callable[[], Any]) -> Any:
    """What `run/name` holds (.json or .jsonl); `make()` is called and written there if it is absent.

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

    The folder is `kept`. `like` is any tree of that structure.
    """

    def write(partial):
        partial.mkdir()
        for n, x in enumerate(jax.tree.leaves(make())):
            np.save(partial / f"{n}.npy", x)

    kept(folder, write)
    read = lambda n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r"))
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [read(n) for n in range(len(leaves))])


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


def read_json(path: pathlib.Path, remedy: str = REMEDY) -> Any:
    """What `write_json` wrote: a list of rows where the name ends in .jsonl.

    Raises ValueError, which names the file and the `remedy`, where it is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(row) for row in text.splitlines()]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, and no JSON ({error}): {remedy}") from None


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


def flat(tree, prefix="") -> dict[str, Any]:
    """Dotted names to values, lists whole."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {k: v for name, x in tree.items() for k, v in flat(x, f"{prefix}{name}.").items()}


def _lock(run):
    run.mkdir(parents=True, exist_ok=True)
    if run.resolve() in _locks:
        return
    try:
        file = (run / ".lock").open("w")
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and not os.access(run, os.W_OK):
            return  # nobody writes here: a finished run can be shown, and another fails as it writes
        raise
    try:
        # lockf, not flock: a child that outlives this process must not hold the folder
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise ValueError(
                f"run {run} is in use by another process: wait for it or stop it"
            ) from None
        print(
            f"note: the file system of {run} has no locks ({error.strerror}): take care that no other "
            "process uses this run",
            file=sys.stderr,
        )
    _locks[run.resolve()] = file
    atexit.register(file.close)


def _versions():
    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _command() -> list[str]:
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]


def _surroundings():
    devices = jax.devices()
    return {
        "command": _command(),
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
