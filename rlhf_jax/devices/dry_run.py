"""A run that is only planned, and what it notes: calls of compiled functions, stages, and arrays held.

    with dry_run.planned(folder) as dry:
        main(cfg)  # prepare gives it devices on paper, and `loop.iterate` calls each body twice

`DryRun.held` is what `memory.held` would be: arrays without values (`devices/abstract.py`) count from when
they are made until the program forgets them.
"""

import contextlib
import hashlib
import pathlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import GetAttrKey

from rlhf_jax.devices import memory

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


class DryRun:
    """The records of a run that is only planned."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder  # a temporary one, in the place of the run's
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
        self._taken: dict[str, int] = {}

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

    def taken(self, lowered) -> int:
        """Bytes that a lowered function takes beside its arguments; equal functions are compiled once."""
        text = hashlib.sha256(lowered.as_text().encode()).hexdigest()
        if text not in self._taken:
            self._taken[text] = memory.taken(lowered)
        return self._taken[text]

    def called(self, call: Call):
        """Notes a call."""
        self.counts[call.name] += 1
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

    @contextlib.contextmanager
    def loop(
        self, stage: str, carry, iterations: int, unit: str, early: bool
    ) -> Iterator[Iterable[int]]:
        """Yields the first and the last iteration of a stage, for which its body is to be called."""
        whose = jax.tree.map_with_path(lambda path, x: x.size * ("params" in path_of(path)), carry)
        trained = sum(jax.tree.leaves(whose))
        saved = sum(x.nbytes for x in jax.tree.leaves(carry))
        del carry  # which only the loop holds
        self.stage, held, copied = stage, self.held, stage in self.copied
        self.touch(0)

        def numbers():
            for i in sorted({0, iterations - 1}):
                self.counts.clear()  # the calls of the last one count
                yield i

        yield [] if copied else numbers()
        calls = self.counts.copy()
        self.loops.append(Loop(stage, iterations, unit, early, copied, calls, trained, held, saved))
        self.stage = f"after {stage}"


def path_of(path) -> list[str]:
    """The fields of records on a path."""
    return [key.name for key in path if isinstance(key, GetAttrKey)]


_current: ContextVar[DryRun | None] = ContextVar("dry_run", default=None)


def current() -> DryRun | None:
    """The dry run that this code is part of, if it is."""
    return _current.get()


@contextlib.contextmanager
def planned(folder: pathlib.Path) -> Iterator[DryRun]:
    """Within the block, runs are only planned, and write to this folder alone."""
    dry = DryRun(folder)
    before = _current.set(dry)
    try:
        yield dry
    finally:
        _current.reset(before)
