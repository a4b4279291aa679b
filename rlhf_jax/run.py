"""A run on disk: its folder and settings, and the one loop that takes every stage to its end.

    run = open_run("sentiment", cfg, cfg.run)                        runs/sentiment/1f0c5a77b2/
    state = iterate(run, "sft", state, body, iterations=400, save_every=100)

A folder holds `config.json`, `metrics.jsonl`, `tensorboard/` and `stages/STAGE/` with the checkpoints.
The same command on a folder goes on where it was: what is finished is read, the rest continues.
"""

import contextlib
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
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich import progress
from rich.console import Console

from rlhf_jax import checkpoint, metrics

PREEMPTED = 75  # the exit code that asks a batch script to start the same command again
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
HEADLINES = (
    "objective/gold",
    "objective/score",
    "objective/kl",
    "objective/length",
    "reward/loss",
    "reward/accuracy",
    "reward/held_out_accuracy",
    "sft/loss",
    "sft/held_out_loss",
)  # what a progress line shows, where a stage has it; else its first three metrics

_locks = {}  # folder to its open lock file: a lock lasts until this process ends


# --- the folder


def open_run(
    experiment: str,
    cfg: Any,
    directory: str | None = None,
    *,
    ignore: tuple[str, ...] = ("run", "wandb"),
) -> pathlib.Path:
    """The folder of this run, `runs/EXPERIMENT/HASH-OF-CONFIG` or `directory`, locked to this process.

    `ignore` names (dotted) the settings that change no result: they neither enter the hash nor
    keep a run from going on. Raises ValueError if the folder holds something else, was begun with
    another config, or is in use.
    """
    settings = _flat(_plain(cfg))
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
        write_json(config, {"experiment": experiment, "settings": _plain(cfg)} | _surroundings())
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
    """What `run/name` holds (.json or .jsonl); `make()` is called and written there if it is absent."""
    if not (run / name).exists():
        write_json(run / name, make())
    return read_json(run / name)


def write_json(path: pathlib.Path, obj: Any) -> None:
    """Writes `obj` to `path` all at once; as rows where the name ends in .jsonl.

    Dataclasses become objects, arrays lists; what is not finite becomes null. Process 0 alone writes.
    """
    if jax.process_index() > 0:
        return
    obj = _plain(obj)
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


def _plain(x) -> Any:
    """What JSON can hold."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {field.name: _plain(getattr(x, field.name)) for field in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return _plain(np.asarray(x).tolist())
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


# --- the loop


def iterate(
    run: pathlib.Path,
    stage: str,
    carry: Any,
    body: Callable[[Any, int], tuple[Any, dict]],
    *,
    iterations: int,
    save_every: int,
    until: Callable[[Any], bool] | None = None,
    keep: int = 2,
    unit: str = "iterations",
    log_every: int = 1,
    wandb: bool = False,
) -> Any:
    """The carry after `carry, metrics = body(carry, i)` for i < `iterations`, wherever it was stopped.

    `carry` is a tree of arrays, and all that one iteration hands to the next: together with `i` it
    must decide what `body` does, so that a resumed stage ends with the bits of an uninterrupted one.
    It is saved every `save_every` iterations and at the end; restored carries are placed as the
    given one. Metrics (scalars) are fetched and written after every `log_every` iterations and
    at the last. `until(carry)`, asked after each `save_every` iterations, ends the stage early.

    A finished stage is restored, and `body` is not called. On SIGTERM the iteration is ended, the
    carry saved, and SystemExit(75) raised. Raises ValueError if `body` changes the kind of an array.
    """
    for name, value in (("save_every", save_every), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}: set it to 1 or more")
    began = time.perf_counter()
    place = run / "stages" / stage
    clock, done = place / "clock.json", place / "done.json"
    carry = _strong(carry)
    first, carry = checkpoint.restore_latest(place, carry) or (0, carry)
    spent = read_json(clock)["seconds"] if clock.exists() else 0.0
    seconds = lambda: round(spent + time.perf_counter() - began, 3)
    if done.exists():
        if read_json(done)["iterations"] == first:
            print(f"{stage}: finished before, {first} {unit} in {_duration(spent)}", flush=True)
            return carry
        # its last checkpoint is gone or damaged: what came after the one before is done again
        if jax.process_index() == 0:
            done.unlink()
    if first:
        print(f"{stage}: goes on after {first} {unit}", flush=True)

    i, saved = first, first if first else None
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(metrics.open_writer(run, stage, start=first, wandb=wandb))
        told_to_stop = stack.enter_context(_listening_for_sigterm())
        show = stack.enter_context(_progress(stage, unit, first, iterations))
        while i < iterations and not told_to_stop.is_set():
            # Asked here and not after the save: a run that was killed between them asks again.
            if until is not None and i and i % save_every == 0 and until(carry):
                break
            given = _kinds(carry) if i == first else None
            carry, values = body(carry, i)
            carry, i = _strong(carry), i + 1
            if given is not None:
                _check_kinds(stage, given, _kinds(carry))
            logged = jax.device_get(values) if i % log_every == 0 or i == iterations else {}
            if logged:
                write(i - 1, logged)
            show(i, logged)
            if i % save_every == 0 and i < iterations:
                _save(place, i, carry, keep, seconds)
                saved = i
        if saved != i:
            _save(place, i, carry, keep, seconds)
        stopped = told_to_stop.is_set()
    if stopped:
        print(f"{stage}: stopped and saved after {i} {unit}; the same command goes on", flush=True)
        raise SystemExit(PREEMPTED)
    write_json(done, {"iterations": i, "seconds": seconds()})
    early = "" if i == iterations else f" (ended early, {iterations} at most)"
    print(f"{stage}: {i} {unit} in {_duration(seconds())}{early}", flush=True)
    return carry


def _save(place, i, carry, keep, seconds):
    checkpoint.save(place, i, carry, keep=keep)
    write_json(place / "clock.json", {"iterations": i, "seconds": seconds()})


def _strong(tree):
    """Without weak types, which a checkpoint forgets: they decide what later sums are cast to."""
    weak = lambda x: isinstance(x, jax.Array) and x.weak_type
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if weak(x) else x, tree)


def _kinds(tree) -> dict[str, str]:
    """Path to where an array lives, its dtype and its shape."""

    def kind(x):
        if not hasattr(x, "dtype"):
            return f"plain {type(x).__name__}"
        return f"{'JAX' if isinstance(x, jax.Array) else 'NumPy'} {x.dtype}{list(x.shape)}"

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): kind(x) for path, x in leaves}


def _check_kinds(stage, given, got):
    """A carry that changes could be saved, and not be restored as the one that `iterate` is given."""
    for path in given | got:
        if given.get(path) != got.get(path):
            raise ValueError(
                f"stage {stage}: carry{path} went into an iteration as {given.get(path, 'nothing')} "
                f"and came out as {got.get(path, 'nothing')}: start with what it becomes"
            )


@contextlib.contextmanager
def _listening_for_sigterm():
    """Yields an event that SIGTERM sets; signals reach the main thread alone."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _progress(stage, unit, first, end):
    """Yields `show(i, metrics)`: a bar on a terminal, elsewhere a line every ten seconds or tenth."""
    seen, console, started = {}, Console(), time.perf_counter()
    compiled = None  # when the first iteration, which compiles, was over

    def note(i, values):
        nonlocal compiled
        seen.update(values)
        now = time.perf_counter()
        if compiled is None:
            compiled = i, now
        rate = (i - compiled[0]) / max(now - compiled[1], 1e-9)
        parts = [f"{rate:.3g} {unit}/s", f"{_duration((end - i) / rate)} left"] if rate else []
        names = [name for name in HEADLINES if name in seen][:4] or sorted(seen)[:3]
        return "  ".join(parts + [f"{n.rpartition('/')[2]} {seen[n]:.4g}" for n in names])

    if jax.process_index() > 0:
        yield lambda i, values: None
    elif console.is_terminal:
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        with progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(stage, total=end, completed=first, note="compiling")
            yield lambda i, values: bar.update(task, completed=i, note=note(i, values))
    else:
        last = first, started

        def show(i, values):
            nonlocal last
            text, now = note(i, values), time.perf_counter()
            if i == end or now - last[1] >= 10 or i * 10 // end > last[0] * 10 // end:
                print(f"{stage}: {i}/{end}  {text}", flush=True)
                last = i, now

        yield show


def _duration(seconds) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
