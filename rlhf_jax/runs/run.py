"""A run on disk: its folder and its settings.

    run = open_run("sentiment", cfg, cfg.run)                        runs/sentiment/1f0c5a77b2/

A folder holds `config.json`, `metrics.jsonl`, `tensorboard/`, `data/` and `stages/STAGE/` (checkpoints).
The same command on a folder goes on where it was: what is finished is read, the rest continues.
"""

import atexit
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from rlhf_jax.devices import hosts
from rlhf_jax.runs import checkpoint, identity, surroundings
from rlhf_jax.runs.disk import plain, read_json, write_json
from rlhf_jax.runs.identity import changes_of, differences, flat, in_words

CONFIG = "config.json"
_locks = {}  # folder to its open lock file: a lock lasts until this process ends


def open_run(
    experiment: str,
    cfg: Any,
    directory: str | None = None,
    *,
    content: Callable[[], dict[str, dict[str, str]]] = dict,
) -> pathlib.Path:
    """The folder of this run, `runs/EXPERIMENT/HASH-OF-CONFIG` or `directory`, locked to this process.

    A run goes on where every setting is equal; one that it is older than stood at its default in the class of
    `cfg`. Settings that change no result (`identity.incidental`) neither enter the hash, which is of settings
    that differ from their defaults, nor keep a run from going on. A larger value of one of `identity.lengths`
    is written into config.json, and the report is made again. `content()` gives, by setting and file, the
    sha256 of what the run learns from; the first process asks for it.

    Raises ValueError if the folder holds something else, was begun with another config or with other content
    of those files, or is in use.
    """
    begun = {"experiment": experiment, "settings": plain(cfg)}
    defaults, ignored = flat(plain(type(cfg)())), identity.incidental(cfg)

    def compared(config):
        known = {n: x for n, x in (defaults | flat(config["settings"])).items() if n not in ignored}
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
            _take_up(run, begun, compared, content, identity.lengths(cfg))
        else:
            write_json(config, begun | {"content": content()} | surroundings.surroundings())
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


def _take_up(
    run: pathlib.Path, begun: dict, compared: Callable, content: Callable, lengths: dict[str, str]
):
    """Raises ValueError where `run` is not what it was `begun` as, but for a larger one of `lengths`."""
    old = read_config(run)
    there, here = compared(old), compared(begun)
    changes = differences(there, here)
    longer = [n for n in changes if n in lengths and there.get(n, 0) < here.get(n, 0)]
    if changes and set(changes) == {*longer}:
        for name in longer:
            if (schedule := here[lengths[name]]) != "constant":
                raise ValueError(
                    f"run {run} cannot be lengthened from {name} = {there[name]} to {here[name]}, for its "
                    f"learning rate falls to zero at its end ({lengths[name]} is {schedule}): begin another "
                    "run with --run NEW_FOLDER, and with "
                    f"--{lengths[name]} constant if it is to be lengthened later"
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
    versions = [n for n, v in surroundings.versions().items() if old["versions"].get(n) != v]
    if versions:
        print(
            f"note: {run} was begun with other versions of {', '.join(versions)}", file=sys.stderr
        )
    if longer:
        print(f"{run} is lengthened: {in_words(changes)}", flush=True)
        before = {"command": old.get("command"), "settings": {n: there[n] for n in longer}}
        after = {"settings": begun["settings"], "command": surroundings.command()}
        # first, so that a run which is stopped in between is not taken for finished
        (run / "report.html").unlink(missing_ok=True)
        write_json(run / CONFIG, old | after | {"lengthened": [*old.get("lengthened", []), before]})


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


def read_config(run: pathlib.Path) -> dict:
    """The config.json of a run: "experiment", "settings", "versions", and "lengthened" where it was.

    Raises ValueError where it is damaged.
    """
    remedy = "put back a copy of it, or begin another run with --run NEW_FOLDER"
    config = read_json(run / CONFIG, remedy)
    for name, kind in (("experiment", str), ("settings", dict), ("versions", dict)):
        if not isinstance(config, dict) or not isinstance(config.get(name), kind):
            raise ValueError(f"{run / CONFIG} is damaged, it has no {name}: {remedy}")
    return config | {"settings": identity.current(config["settings"])}


def is_run(name: str | pathlib.Path) -> bool:
    """True for the folder of a run that has trained a stage, which no other folder with a config.json has."""
    folder = pathlib.Path(name)
    return (folder / CONFIG).exists() and (folder / "stages").is_dir()


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
    """True where `iterate` took `stage` to its end."""
    return (run / "stages" / stage / "done.json").exists()


def seconds(run: pathlib.Path) -> dict[str, float]:
    """How long each finished stage took, over all sessions."""
    clocks = sorted(run.glob("stages/*/done.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: read_json(path)["seconds"] for path in clocks}


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
