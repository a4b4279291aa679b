"""Runs an untrusted Python program and its tests in a process that may compute and read, and nothing else.

A new interpreter with the standard library alone runs them, in an empty environment and in the folder "/".
The kernel limits its CPU time, its memory and its open files, lets it write no byte to any file, and ends it
with its process group after a limit of real time. On Linux, filters that nothing can lift refuse sockets,
processes, threads and signals (seccomp, on x86_64 and aarch64), and to make, write or remove a file
(Landlock, from Linux 5.13). An audit hook refuses the same, and changes of a file's rights, on every system,
but code that attacks the interpreter evades it.

Not guaranteed: the program can read every file that this user can read, and can spoil its own tests, for
instance with objects that equal everything or by looking for the token in the frames of its interpreter. Run
programs of an adversary in a container of their own.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of one program."""

    seconds: int = 5
    """Seconds of CPU time."""
    patience: float = 20.0
    """Seconds of real time."""
    memory: int = 2**29
    """Bytes of address space."""


LIMITS = Limits()


def passes(code: str, tests: str, limits: Limits = LIMITS) -> bool:
    """True if `code` and then `tests` run to their end, in one namespace, within the limits.

    The interpreter proves it by a random token that it gives back after the tests: its exit code counts for
    nothing. Raises ValueError for tests that are no Python.
    """
    try:
        compile(tests, "<tests>", "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the tests are no Python ({error}): mend the row") from None
    token, until = secrets.token_hex(16), time.monotonic() + limits.patience
    task = {"code": code, "tests": tests, "token": token, **limits._asdict()}
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-SPB",
                    str(Path(__file__).with_name("harness.py")),
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={"PYTHONHASHSEED": "0"},  # sets have the same order in each run
                cwd="/",
                start_new_session=True,
            )
        said = b""
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                ours.settimeout(limits.patience)
                ours.sendall(json.dumps(task).encode())
                ours.shutdown(socket.SHUT_WR)
                while len(said) <= len(token):
                    ours.settimeout(max(until - time.monotonic(), 1e-3))
                    if not (part := ours.recv(64)):
                        break
                    said += part
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return said == token.encode()
