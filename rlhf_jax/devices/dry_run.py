"""A run that is only planned, and what it notes: calls of compiled functions, stages, and arrays held.

    with dry_run.planned(folder) as dry:
        main(cfg)  # prepare gives it devices on paper, and `loop.iterate` calls each body twice

`DryRun.held` is what `memory.held` would be: arrays without values (`devices/abstract.py`) count from when
they are made until the program forgets them.
"""

import contextlib
import hashlib
import pathlib
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import GetAttrKey

from rlhf_jax.devices import memory, timing

TRAINED, CRITIC, OPTIMIZER = "trained", "critic", "optimizer"
FROZEN, REWARDS, ROWS, HOST = "frozen", "rewards", "rows", "host"
PART = 2**23  # bytes of a matrix beside the layers that are read at once
KINDS = TRAINED, CRITIC, OPTIMIZER, FROZEN, REWARDS, ROWS
"""Kinds of arrays on a device. Frozen are the reference, parameters beneath adapters, and other copies."""


class Call(NamedTuple):
    """A compiled function in a stage, at its call with the most memory."""

    stage: str
    name: str
    held: dict[str, int]  # bytes on a device before the call, by kind
    more: int  # bytes on a device beside these, of results and temporary arrays
    trains: bool  # the first argument holds an optimizer's state
    samples: bool  # the results are responses
    rows: int  # of the batch
    tokens: int  # of the batch, with padding
    seconds: float | None  # of the call; None where it is not timed

    @property
    def peak(self) -> int:
        """Bytes on a device during the call."""
        return sum(self.held.values()) + self.more


class Loop(NamedTuple):
    """A stage, whose body was called for its first and its last iteration."""

    stage: str
    iterations: int
    unit: str
    early: bool  # it may end before
    copied: bool  # it was finished in the run that this one starts from
    calls: Counter  # calls of each compiled function in an iteration
    trained: int  # number of trained parameters
    held: dict[str, int]  # bytes on a device as it begins, by kind
    saved: int  # bytes of a checkpoint
    save_every: int
    costs: tuple[float, ...]  # seconds of the calls in each iteration that was tried

    def seconds(self, often: int) -> float:
        """Seconds of all calls, where `often` iterations evaluate too, as the dearest that was tried."""
        least, most = min(self.costs, default=0.0), max(self.costs, default=0.0)
        return least * self.iterations + (most - least) * often


class DryRun:
    """The records of a run that is only planned, and whose compiled functions may be `timed` here."""

    def __init__(self, folder: pathlib.Path, timed: bool = False):
        self.folder = folder  # a temporary one, in the place of the run's
        self.timed = timed
        self.prepared: Any = None  # the run, once it is prepared
        self.layout: Any = None  # the devices, on which nothing lies
        self.loops: list[Loop] = []
        self.calls: dict[tuple[str, str], Call] = {}
        self.drawn: Counter = Counter()  # responses outside of loops, by purpose
        self.stage = "start"
        self.tell: Callable[[str], object] = lambda what: None  # what is being compiled
        self.copied: tuple[str, ...] = ()  # stages
        self.on_host: dict[str, int] = {}  # the most bytes of parameters on the host, by stage
        self.counts: Counter = Counter()  # calls, by name
        self._bytes: Counter = Counter()
        self.spent = 0.0  # seconds of all calls
        self.untimed: set[str] = set()  # functions
        self.compiling = self.trying = 0.0  # seconds of the plan itself
        self._taken: dict[str, tuple[int, float | None]] = {}

    @property
    def held(self) -> dict[str, int]:
        """Bytes on a device, by kind."""
        return {kind: self._bytes[kind] for kind in KINDS}

    def add(self, kind: str, count: int):
        """Notes `count` more bytes of a kind."""
        self._bytes[kind] += count
        if kind == HOST:
            self.touch(0)

    def touch(self, count: int):
        """Notes `count` bytes that the host holds for a moment."""
        most = self.on_host.get(self.stage, 0)
        self.on_host[self.stage] = max(most, self._bytes[HOST] + count)

    def rows(self, shape, dtype, over: int) -> np.ndarray:
        """Zeros, which count as rows spread over so many devices for as long as they are kept."""
        x = np.zeros(shape, dtype)
        self.add(ROWS, x.nbytes // over)
        weakref.finalize(x, self.add, ROWS, -(x.nbytes // over)).atexit = False
        return x

    def taken(
        self, lowered, args: tuple, operations: float, steps: bool
    ) -> tuple[int, float | None]:
        """Bytes that a lowered function takes beside its arguments, and the seconds of a call if they are
        measured; equal functions are compiled once."""
        text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if text not in self._taken:
            began = time.perf_counter()
            more = memory.taken(lowered)
            compiled = time.perf_counter()
            self.compiling += compiled - began
            seconds = timing.seconds_of(lowered, args, operations, steps) if self.timed else None
            self.trying += time.perf_counter() - compiled
            self._taken[text] = more, seconds
        return self._taken[text]

    def called(self, call: Call):
        """Notes a call."""
        self.counts[call.name] += 1
        self.spent += call.seconds or 0.0
        if call.seconds is None:
            self.untimed.add(call.name)
        before = self.calls.get((call.stage, call.name))
        if before is None or call.peak > before.peak:
            self.calls[call.stage, call.name] = call

    def loaded(self, init: Callable):
        """Parameters as `init(key)` makes them, in place of those in files, which are read layer by layer."""
        params = self.layout.make(init, jax.random.key(0))
        layer = lambda x: x.nbytes // x.shape[0] if x.ndim > 2 else min(x.nbytes, PART)
        largest = max(map(layer, jax.tree.leaves(params)))
        self.touch(2 * largest)  # before and after conversion
        return params

    def tried(self, iterations: int) -> list[int]:
        """The iterations whose body is called: the first, the last, and where the time counts the second,
        which evaluates nothing unless all do."""
        return sorted({0, min(int(self.timed), iterations - 1), iterations - 1})

    @contextlib.contextmanager
    def loop(
        self, stage: str, carry, iterations: int, unit: str, early: bool, save_every: int
    ) -> Iterator[Iterable[int]]:
        """Yields the iterations of a stage for which its body is to be called."""
        whose = jax.tree.map_with_path(lambda path, x: x.size * ("params" in path_of(path)), carry)
        trained = sum(jax.tree.leaves(whose))
        saved = sum(x.nbytes for x in jax.tree.leaves(carry))
        del carry  # which only the loop holds
        self.stage, held, copied = stage, self.held, stage in self.copied
        self.touch(0)

        costs = []

        def numbers():
            for i in self.tried(iterations):
                self.counts.clear()  # the calls of the last one count
                before = self.spent
                yield i
                costs.append(self.spent - before)

        yield [] if copied else numbers()
        calls = self.counts.copy()
        self.loops.append(
            Loop(
                stage, iterations, unit, early, copied, calls, trained, held, saved, save_every,
                tuple(costs),
            )
        )  # fmt: skip
        self.stage = f"after {stage}"


def path_of(path) -> list[str]:
    """The fields of records on a path."""
    return [key.name for key in path if isinstance(key, GetAttrKey)]


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """The dry run that this code is part of, if it is."""
    return _current.get()


@contextlib.contextmanager
def planned(folder: pathlib.Path, timed: bool = False) -> Iterator[DryRun]:
    """Within the block, runs are only planned, and write to this folder alone."""
    dry = DryRun(folder, timed)
    before = _current.set(dry)
    try:
        yield dry
    finally:
        _current.reset(before)
