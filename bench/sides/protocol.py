"""How a side of a measurement is driven: one line asks, one line of JSON answers. Standard library only.

    go      -> {"wall": seconds, "cpu": seconds of all threads, "peak": bytes, ...}   one piece of work
    check   -> {"said": what the first pieces of work said: tokens, or losses}
    reset   -> {}   the peak of memory is counted from here on
    quit    -> {}   and the process ends

A side has a gate and waits at it before every piece of work. So a trainer that runs a loop of its own is
driven too: it calls `wait` where a step has ended. What libraries print goes to stderr.
"""

import json
import os
import pathlib
import resource
import sys
import time
from types import SimpleNamespace

KEPT = 3
"""First pieces of work whose outputs are kept: a loss after a step tells of the step too."""


def peak_bytes() -> int:
    """Most memory that this process has held since `forget_peak`, or since it began where that cannot be."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak():
    """The peak is what is held now (Linux)."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak of memory cannot be reset here: it counts from the start", file=sys.stderr)


class Gate:
    """Where a side waits for the next piece of work."""

    def __init__(self, commands=sys.stdin, answers=None, more=None):
        """`more` are further commands: name -> a function that gives the answer."""
        if answers is None:
            answers = os.fdopen(os.dup(1), "w")
            os.dup2(2, 1)
        self.commands, self.answers, self.more = commands, answers, more or {}
        self.said, self.began = [], None

    def answer(self, told: dict):
        """Sends one line."""
        print(json.dumps(told), file=self.answers, flush=True)

    def wait(self, said=None, **told):
        """Ends the piece of work that runs, if one does, and comes back where the next begins.

        `said` is what can be compared with another side's; `told` goes into the answer, as `units` (tokens).
        All work has to have ended.
        """
        if self.began is not None:
            wall, cpu = (now - then for now, then in zip(clocks(), self.began, strict=True))
            if len(self.said) < KEPT:
                self.said.append(said)
            self.answer({"wall": wall, "cpu": cpu, "peak": peak_bytes()} | told)
        while (line := self.commands.readline().strip()) != "go":
            if line == "check":
                self.answer({"said": self.said})
            elif line == "reset":
                forget_peak()
                self.answer({})
            elif line in self.more:
                self.answer(self.more[line]())
            else:  # quit, or the parent has gone
                self.answer({})
                os._exit(0)  # some libraries' threads would go on
        self.began = clocks()


def clocks() -> tuple[float, float]:
    """Seconds: of the wall, and of all cores in this process."""
    return time.perf_counter(), time.process_time()


def settings() -> SimpleNamespace:
    """What the parent asks of this side, the only argument."""
    return SimpleNamespace(**json.loads(sys.argv[1]))


def serve(work, more=None):
    """Does `work() -> (said, told)` each time that it is asked for."""
    gate = Gate(more=more)
    gate.wait()
    while True:
        said, told = work()
        gate.wait(said, **told)
