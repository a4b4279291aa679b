"""A lock whose waiters get it in the order in which they came."""

import collections
import threading


class FairLock:
    """A lock that is handed from one thread to the one that has waited longest."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._queue: collections.deque[threading.Lock] = collections.deque()

    @property
    def waiting(self) -> int:
        """Number of threads in the queue."""
        return len(self._queue)

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._queue.append(turn)
        try:
            turn.acquire()  # until the holder before releases it
        except BaseException:  # Ctrl-C
            with self._guard:
                if turn in self._queue:
                    self._queue.remove(turn)
                else:  # its turn had just come
                    self._next()
            raise

    def __exit__(self, *_) -> None:
        with self._guard:
            self._next()

    def _next(self) -> None:
        if self._queue:
            self._queue.popleft().release()  # still held: by the next
        else:
            self._held = False
