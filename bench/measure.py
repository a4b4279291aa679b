"""Two sides of one work, in turn: processes, pairs, and what comes of them. Linux, for it pins to cores."""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any

from bench.works import Work

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARM = 2
"""Pieces of work before the first that counts; the first of them compiles."""


@dataclass(frozen=True)
class Told:
    """One piece of work: seconds of the wall and of all cores, most bytes held, tokens (1: makes none)."""

    wall: float
    cpu: float
    peak: int
    units: int = 1


def cores() -> list[int]:
    """Those that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def pinned(cores: list[int]) -> list[str]:
    """What a command begins with to run on these cores alone (util-linux)."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores))]


class Side:
    """A process that does a work when it is asked to; see `sides/protocol.py`."""

    def __init__(self, command: list[str], asked: dict, cores: list[int], log: pathlib.Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, threads = log, str(len(cores))
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "BENCH_THREADS": threads,
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # as launch.py sets it
        }
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*pinned(cores), *command, json.dumps(asked)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=env,
                cwd=ROOT,
            )

    def ask(self, line: str) -> dict[str, Any]:
        """The answer; RuntimeError, with the end of its log, where the process has ended."""
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        except BrokenPipeError:
            answer = ""
        if not answer:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise RuntimeError(f"the side ended and said: {last[0]} (all of it: {self.log})")
        return json.loads(answer)

    def go(self) -> Told:
        """The second of two pieces of work, as it is in a loop.

        While the other side had its turn this one's memory went back to the kernel, and to the host of a
        virtual machine: to get it again cost a step of 11.6 s at GPT-2's shape another 4.
        """
        self.ask("go")
        return Told(**self.ask("go"))

    def warm(self) -> float:
        """Does what does not count, and forgets its peak of memory; seconds of the first piece."""
        first, *_ = [Told(**self.ask("go")) for _ in range(WARM)]
        self.ask("reset")
        return first.wall

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the process."""
        with contextlib.suppress(RuntimeError):
            self.ask("quit")
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def pairs(ours, peer, least: int, seconds: float, most: int = 50) -> list[tuple[Told, Told]]:
    """A B A B ...: at least `least` pairs, more until they took `seconds`, and at most `most`.

    `ours` and `peer` are anything with a `go`.
    """
    found, began = [], time.perf_counter()
    while len(found) < least or (len(found) < most and time.perf_counter() - began < seconds):
        found.append((ours.go(), peer.go()))
    return found


def middle(told: list[Told]) -> dict[str, float]:
    """Medians: wall and CPU seconds, units a second; and the largest peak."""
    return {
        "wall": statistics.median(x.wall for x in told),
        "cpu": statistics.median(x.cpu for x in told),
        "rate": statistics.median(x.units / x.wall for x in told),
        "peak": max(x.peak for x in told),
    }


def ratios(found: list[tuple[Told, Told]]) -> dict[str, float]:
    """How many times as fast as the peer we are, pair by pair: median, least and most; 2 is twice as fast."""
    speeds = [(a.units / a.wall) / (b.units / b.wall) for a, b in found]
    return {"ratio": statistics.median(speeds), "least": min(speeds), "most": max(speeds)}


def alike(kind: str, ours: list, theirs: list, digits: int = 5) -> tuple[bool, str]:
    """Whether both sides said the same, and how far apart they are.

    kind "tokens": the rows of the first piece of work, all equal; "loss": of the first pieces, to `digits`.
    """
    if kind == "tokens":
        pairs_of = lambda a, b: zip(a, b, strict=True)
        wrong = [x != y for a, b in pairs_of(ours[0], theirs[0]) for x, y in pairs_of(a, b)]
        return not any(wrong), f"{sum(wrong)} of {len(wrong)} tokens differ"
    both = list(zip(ours, theirs, strict=True))
    close = all(abs(a - b) <= 10.0**-digits * max(1.0, abs(b)) for a, b in both)
    return close, "losses " + ", ".join(f"{a:.7g} and {b:.7g}" for a, b in both)


def compare(ours: Side, peer: Side, work: Work, least: int, seconds: float) -> dict:
    """What is told of one work beside one peer; both are warm."""
    found = pairs(ours, peer, least, seconds)
    told = {"ours": middle([a for a, _ in found]), "theirs": middle([b for _, b in found])}
    told |= ratios(found) | {"pairs": [[asdict(a), asdict(b)] for a, b in found]}
    if work.same:
        same, why = alike(work.same, *(x.ask("check")["said"] for x in (ours, peer)))
        told |= {"same": same, "why": why}
    return told
