"""Runs of a sweep on this machine: each a process of the launcher, one after another or several at once."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, NamedTuple

from rich.live import Live
from rich.text import Text

from rlhf_jax.devices import process
from rlhf_jax.sweeps import sharing
from rlhf_jax.sweeps.grid import Job

POLL, PATIENCE = 0.2, 100.0  # seconds: between looks at the processes, and for saving when stopped


class Running(NamedTuple):
    """A run's process, the place that it takes, when it started, and the size of its log until then."""

    process: subprocess.Popen
    log: IO[str]
    place: int
    since: float
    before: int


def run_all(
    jobs: Sequence[Job], folder: pathlib.Path, command: Sequence[str], at_once: int = 1
) -> dict[str, int]:
    """Exit codes of the runs, by name, after running those that are not finished; 0 for a finished one.

    `command` is the launcher with the experiment. A run that fails is told, and the others go on; a terminal
    shows how far each is. Where this process is stopped, by Ctrl-C or SIGTERM, the runs save first.
    """
    groups = [*sharing.groups_of(jobs).values()]
    shares, codes = environments(at_once), {}
    for job in jobs:
        if sharing.is_finished(folder / job.name):
            codes[job.name] = 0
    if codes:
        print(f"finished before: {len(codes)} of {len(jobs)}", flush=True)
    waiting = [job for job in jobs if job.name not in codes]
    number = {job.name: f"[{n}/{len(jobs)}] {job.name}" for n, job in enumerate(jobs, 1)}
    running: dict[str, Running] = {}
    shown = lambda: Text(
        "\n".join(progress([*running.items()], number)), no_wrap=True, overflow="ellipsis"
    )
    with _stopping(running), Live(get_renderable=shown, transient=True, refresh_per_second=2):
        while waiting or running:
            for job in [*waiting]:
                free = {*range(at_once)} - {x.place for x in running.values()}
                turn = sharing.turn_of(job, groups, running, folder)
                if free and not turn.waits:
                    waiting.remove(job)
                    words = [*command, *job.words, "--run", str(folder / job.name), *turn.words]
                    running[job.name] = _start(words, folder, job, min(free), shares)
                    print(f"{number[job.name]} starts: {_log(folder, job.name)}", flush=True)
            ended = [name for name, x in running.items() if x.process.poll() is not None]
            for name in ended:
                codes[name] = _end(running.pop(name), number[name], _log(folder, name))
            if not ended:
                time.sleep(POLL)
    return codes


def environments(at_once: int) -> list[dict[str, str]]:
    """The environment of each place for a process: of several, each has its own share of the GPUs.

    Raises ValueError where there are fewer accelerators than places.
    """
    if at_once == 1 or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [{}] * at_once
    if any(pathlib.Path("/dev").glob("accel*")):
        raise ValueError(f"jobs = {at_once}: a TPU serves one process at a time, so leave it out")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else _gpus() if seen is None else []
    each = len(gpus) // at_once
    if gpus and not each:
        raise ValueError(
            f"jobs = {at_once}: JAX takes most of a GPU's memory for one process, and {len(gpus)} "
            f"{'is' if len(gpus) == 1 else 'are'} here: use {len(gpus)} at most"
        )
    shares = [gpus[n * each : (n + 1) * each] for n in range(at_once)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(x)} if x else {} for x in shares]


def _gpus() -> list[str]:
    found = [x.name.removeprefix("nvidia") for x in pathlib.Path("/dev").glob("nvidia[0-9]*")]
    return [str(n) for n in range(len(found))]


def _log(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name}.log"


def _start(words, folder: pathlib.Path, job: Job, place: int, shares) -> Running:
    log = _log(folder, job.name).open("a", encoding="utf-8")
    before = log.tell()
    started = subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | shares[place],
    )
    return Running(started, log, place, time.monotonic(), before)


def _end(ended: Running, name: str, log: pathlib.Path) -> int:
    ended.log.close()
    code, seconds = ended.process.returncode, round(time.monotonic() - ended.since)
    took = f"{seconds // 60}:{seconds % 60:02}"
    if code == 0:
        print(f"{name} is done after {took}", flush=True)
    else:
        why = "was stopped" if code == process.PREEMPTED else f"failed with exit code {code}"
        print(
            f"{name} {why} after {took}: {_last_words(log, ended.before)}",
            file=sys.stderr,
            flush=True,
        )
    return code


def progress(running: Sequence[tuple[str, Running]], number: dict[str, str]) -> list[str]:
    """A line for each run: its number and name, and the last line of its log since it started."""
    lines = []
    for name, one in running:
        last = _lines(pathlib.Path(one.log.name), one.before)[-1:]
        lines.append(": ".join([number[name], *last]))
    return lines


def _last_words(log: pathlib.Path, before: int) -> str:
    """The last error of a log after its first bytes, or else its last line."""
    lines = _lines(log, before)
    errors = [line for line in lines if line.startswith("error: ")]
    return [f"see {log}", *lines[-1:], *errors[-1:]][-1][:400]


def _lines(log: pathlib.Path, before: int) -> list[str]:
    """The lines of a log after its first bytes, without empty ones."""
    lines = log.read_bytes()[before:].decode(errors="replace").split("\n")
    return [line.strip() for line in lines if line.strip()]


@contextlib.contextmanager
def _stopping(running: dict[str, Running]):
    """Within it SIGTERM ends this process with 75; whatever ends it early stops the runs, which save."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(process.PREEMPTED))
    try:
        yield
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(PATIENCE)
            one.process.kill()
            one.log.close()
        signal.signal(signal.SIGTERM, before)
