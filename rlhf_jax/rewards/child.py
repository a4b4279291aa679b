"""A child process for untrusted code, which may hang, exit or crash while this process goes on.

    child = Child("from rlhf_jax.rewards import scorer; scorer.serve(fd)")
    answer = child.ask({"part": 0, ...}, timeout=60.0)  # both are JSON objects

The child is a new interpreter instead of a fork, because JAX runs threads in this process. Its standard
output is that of this process, and its standard input is empty. Questions and answers are lines of JSON on a
socket of their own, so printing in the child cannot be taken for an answer, and no answer is executed here.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

LONGEST = 2e6  # seconds that a socket can wait
GRACE = 1.0  # seconds that a child outlives the timeout of a dead parent


class ChildEndedError(Exception):
    """A child ended before it answered; the message says how."""


class Child:
    """A process that answers questions until this object or this process ends."""

    def __init__(self, program: str):
        """Runs `program`, which is source code that calls `serve(fd, ...)`, in a new interpreter."""
        ours, theirs = socket.socketpair()
        given = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); fd = int(sys.argv[2]); "
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", given + program, json.dumps(sys.path), str(fd)],
                stdin=subprocess.DEVNULL,
                pass_fds=(fd,),
                start_new_session=True,  # so that what it starts ends with it
            )
        self._socket = ours
        self.end = weakref.finalize(self, _end, self._process, ours)

    def ask(self, question: dict, timeout: float = 0.0) -> dict:
        """Returns the child's answer.

        Raises TimeoutError after `timeout` seconds (0: never), or ChildEndedError; both end the child.
        """
        timeout = min(timeout, LONGEST)
        until = time.monotonic() + timeout if timeout else None
        message, answer = json.dumps(question, default=_plain).encode() + b"\n", b""
        try:
            self._socket.settimeout(timeout or None)
            self._socket.sendall(message)
            while not answer.endswith(b"\n"):
                if until is not None:
                    self._socket.settimeout(max(until - time.monotonic(), 1e-3))
                part = self._socket.recv(2**16)
                if not part:
                    raise ConnectionError
                answer += part
            found = json.loads(answer)
            if not isinstance(found, dict):
                raise ValueError("no object")
            return found
        except TimeoutError:
            self.end()
            raise
        except ConnectionError:
            self.end()
            code = self._process.returncode
            how = (
                f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
            )
            raise ChildEndedError(f"ended its process with {how}") from None
        except (ValueError, RecursionError):
            self.end()
            raise ChildEndedError("gave a malformed answer") from None


def serve(fd: int, answer: Callable[[dict], dict]):
    """Answers every question that the child receives on `fd` by `answer(question)`, until the parent is gone.

    If a question has a `timeout`, a watchdog ends the child soon after that many seconds, even if the
    parent no longer can, and even while no Python code runs.
    """
    os.set_inheritable(fd, False)
    with (
        contextlib.suppress(ConnectionError),
        socket.socket(fileno=fd) as channel,
        channel.makefile("rw", encoding="utf-8") as lines,
        open(os.devnull, "w") as nowhere,
    ):
        for line in iter(lines.readline, ""):
            question = json.loads(line)
            if question.get("timeout"):
                faulthandler.dump_traceback_later(
                    question["timeout"] + GRACE, exit=True, file=nowhere
                )
            said = json.dumps(answer(question))
            faulthandler.cancel_dump_traceback_later()
            lines.write(said + "\n")
            lines.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)  # without waiting for threads


def _plain(value: Any) -> Any:
    """Converts NumPy's numbers and arrays to Python's numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def _end(process: subprocess.Popen, channel: socket.socket):
    """Kills a child and its own children; a process that was not waited for keeps its number."""
    channel.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
