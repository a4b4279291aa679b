"""The time of each phase of an iteration."""

import time

import jax


class Laps:
    """Seconds between calls, each of which first waits for the arrays that a phase computes."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, phase: str, arrays=()) -> None:
        """Ends `phase`, once `arrays` are computed."""
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

    def metrics(self, tokens: float) -> dict[str, float]:
        """Metrics `time/PHASE`, in seconds, and `time/tokens_per_second` for so many response tokens."""
        total = sum(self.seconds.values())
        times = {f"time/{phase}": x for phase, x in self.seconds.items()}
        return times | {"time/tokens_per_second": tokens / total}
