"""The time of each phase of an iteration, which nothing waits for.

    laps = Laps()
    lap = laps.begin()  # of an iteration
    lap("sample", samples)
    lap("update", metrics)
    lap.metrics(tokens)  # later

A thread waits for the arrays of each phase, in order, so the devices are given the next phase, and the next
iteration, while they compute.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import jax


class Laps:
    """Seconds of the phases of iterations, of which one begins when the one before has ended."""

    def __init__(self):
        self._watch = ThreadPoolExecutor(1, "laps")
        self._last = time.perf_counter()

    def begin(self) -> "Lap":
        """The phases of the next iteration."""
        return Lap(self._submit, time.perf_counter())

    def _submit(self, arrays, least: float) -> Future:
        return self._watch.submit(self._seconds, arrays, least, time.perf_counter())

    def _seconds(self, arrays, least: float, asked: float) -> float:
        leaves = jax.tree.leaves(arrays)
        on_devices = [x for x in leaves if isinstance(x, jax.Array)]
        jax.block_until_ready(on_devices)
        now = time.perf_counter() if on_devices else asked
        began = max(self._last, least)
        self._last = max(now, began)
        return self._last - began


class Lap:
    """The phases of one iteration."""

    def __init__(self, submit: Callable, began: float):
        self._submit, self._began = submit, began
        self._phases: dict[str, Future] = {}

    def __call__(self, phase: str, arrays=()) -> None:
        """Names what is computed until `arrays` are there; they may not be donated. Returns at once."""
        self._phases[phase] = self._submit(arrays, self._began)

    def metrics(self, tokens: float) -> dict[str, float]:
        """Metrics `time/PHASE`, in seconds, and `time/tokens_per_second` for so many response tokens.

        Waits for the end of the last phase.
        """
        seconds = {f"time/{phase}": x.result() for phase, x in self._phases.items()}
        return seconds | {"time/tokens_per_second": tokens / max(sum(seconds.values()), 1e-9)}
