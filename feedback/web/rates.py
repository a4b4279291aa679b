"""Rates: how often something may be done, by whom, counted in this process alone."""

import collections
import math
import threading
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import Scope


class Rate:
    """A bucket for each key that holds `burst` and is refilled by `per_second`.

    The keys least recently seen are forgotten once there are more than `keys`, so that memory is bounded.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        keys: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._per_second, self._burst, self._keys, self._clock = per_second, burst, keys, clock
        self._buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Takes one from the bucket of `key`; gives 0.0, or the seconds until there is one to take."""
        with self._lock:
            held, now = self._held(key)
            if held < 1:
                return (1 - held) / self._per_second
            self._buckets[key] = (held - 1, now)
            self._buckets.move_to_end(key)
            while len(self._buckets) > self._keys:
                self._buckets.popitem(last=False)
            return 0.0

    def wait(self, key: str) -> float:
        """Seconds until the bucket of `key` holds one, which is left there; 0.0 where it does."""
        with self._lock:
            held, _ = self._held(key)
            return max(0.0, (1 - held) / self._per_second)

    def _held(self, key: str) -> tuple[float, float]:
        now = self._clock()
        held, then = self._buckets.get(key, (float(self._burst), now))
        return min(self._burst, held + (now - then) * self._per_second), now


def address(scope: Scope) -> str:
    """The address that a request came from."""
    return (scope.get("client") or ("-", 0))[0]


def too_many(wait: float) -> HTTPException:
    """The refusal of what is done too often; `wait` in seconds."""
    seconds = {"Retry-After": str(math.ceil(wait))}
    return HTTPException(429, "Too many requests: wait, and try again.", seconds)
