"""The process of a run: its words, SIGTERM, broken output streams, and system errors as sentences.

This module is imported before all others, and imports only the standard library.
"""

import contextlib
import errno
import io
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import traceback

PREEMPTED = 75  # the exit code that asks a batch script to start the same command again
NARROW = 40  # columns; tables are unreadable in fewer
AGAIN = "start the same command again to resume the run"
REMEDIES = {
    errno.ENOSPC: f"make room on that disk, and {AGAIN}",
    errno.EDQUOT: f"make room on that disk, and {AGAIN}",
    errno.EROFS: "name a writable folder, for instance with --run",
    errno.EACCES: "name a folder of your own, for instance with --run, or ask its owner",
    errno.EPERM: "name a folder of your own, for instance with --run, or ask its owner",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "fix the link",
    errno.ENOENT: "check the path",
    errno.EMFILE: f"raise the limit (ulimit -n 4096), and {AGAIN}",
    errno.ENFILE: f"close other programs, and {AGAIN}",
}
"""Remedies by the number of a system error."""


def command() -> str:
    """The command of this package's launcher, in a checkout or where it is installed."""
    checkout = (pathlib.Path(__file__).parents[2] / "launch.py").is_file()
    called = pathlib.Path(sys.argv[0]).stem if sys.argv else ""
    return "python launch.py" if checkout and called != "rlhf-jax" else "rlhf-jax"


def exit_on_sigterm() -> None:
    """Makes SIGTERM end this process and its children with `PREEMPTED`; stages handle the signal
    themselves.

    Finished files are on disk, and unfinished ones are beside their final place. A thread waits for the
    signal, because no Python handler runs while the main thread compiles.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _exit)

    def wait(mouth=mouth):  # the default keeps the socket open
        while signals := ear.recv(1):
            if signals[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _exit:
                _exit()

    threading.Thread(target=wait, daemon=True).start()


def _exit(*_) -> None:
    with contextlib.suppress(BaseException):
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
        os.write(2, b"stopped by SIGTERM; start the same command again to go on\n")
    os._exit(PREEMPTED)


class Patient(io.TextIOWrapper):
    """A stream that discards output once it cannot be written, as to a closed pipe or a full disk."""

    def write(self, text: str, /) -> int:
        """Writes as any stream; characters outside the encoding are escaped."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flushes as any stream."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # so that what is still buffered goes there too
        os.close(nowhere)
        if self is sys.stdout and error.errno != errno.EPIPE:
            why = f"output cannot be written ({error.strerror}), and the run goes on without"
            print(f"note: {why}", file=sys.stderr)


def make_streams_patient() -> None:
    """Makes standard output and error `Patient`, and opens them where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the number must not become a file's
            os.open(os.devnull, os.O_WRONLY)
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        encoding, by_lines, at_once = stream.encoding, stream.line_buffering, stream.write_through
        patient = Patient(
            stream.detach(),
            encoding,
            "backslashreplace",
            line_buffering=by_lines,
            write_through=at_once,
        )
        setattr(sys, name, patient)
        setattr(sys, f"__{name}__", patient)


def check_columns() -> None:
    """Ignores a terminal width that is too narrow to print anything."""
    columns = os.environ.get("COLUMNS", "")
    if columns and not (columns.isdigit() and int(columns) >= NARROW):
        del os.environ["COLUMNS"]


def sentence(error: Exception, folder: str = "the disk") -> str | None:
    """A system error as a sentence with its remedy; None for any other error.

    `folder` is the run's directory, for errors that name no file. Libraries written in other languages put
    the number of the system error in their texts.
    """
    said = str(error)
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    no_backend = re.search("initialize backend|Unknown backend", said)
    if no_backend or (isinstance(error, AssertionError) and frames and "xla_bridge" in frames[-1]):
        wanted = f"JAX_PLATFORMS = {os.environ.get('JAX_PLATFORMS', '')!r}"
        why = f" ({said.splitlines()[0]})" if said else ""
        return f"{wanted} is not available here{why}: unset it, or install that backend"
    theirs = r"os_error_code='(\d+)'" + r"|os error (\d+)" * (not isinstance(error, ValueError))
    number = re.search(theirs, said)
    if isinstance(error, OSError) and error.errno is not None:
        code, why, where = error.errno, error.strerror, error.filename
    elif number:
        code = int(next(filter(None, number.groups())))
        why, where = os.strerror(code), None
    elif isinstance(error, OSError):
        return said
    else:
        return None
    where = folder if where is None else os.fsdecode(where) if isinstance(where, bytes) else where
    return f"{where}: {why}: {REMEDIES.get(code, f'fix that, and {AGAIN}')}"


def cut_at(settings: list[str], option: str) -> tuple[list[str], str | None, list[str]]:
    """(words before `option`, its value, words after it), for `option VALUE` or `option=VALUE`.

    The value is None without the option, and empty where nothing, or another option, follows it.
    """
    for at, word in enumerate(settings):
        if word == option:
            value = "".join(settings[at + 1 : at + 2])
            value = "" if value.startswith("--") else value
            return settings[:at], value, settings[at + 1 + bool(value) :]
        if word.startswith(f"{option}="):
            return settings[:at], word.partition("=")[2], settings[at + 1 :]
    return settings, None, []


def cut_plan(settings: list[str]) -> tuple[list[str], str | None]:
    """(words without `--plan` and `--plan-devices N`, N); None without `--plan`, and empty without a number.

    Raises ValueError for `--plan-devices` alone, or without a number of devices.
    """
    before, count, after = cut_at(settings, "--plan-devices")
    rest = [word for word in (*before, *after) if word != "--plan"]
    planned = len(rest) < len(before) + len(after)
    if count is not None and not (planned and count.isdecimal() and int(count)):
        raise ValueError(
            f'plan-devices = "{count}" must be a number of devices beside --plan: give --plan '
            "--plan-devices 8"
        )
    return rest, (count or "") if planned else None


def imagine_devices(count: str):
    """Gives JAX, before its first use, so many devices, each a part of this machine's CPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"


def refused(why: str, code: int) -> int:
    """Prints why something is refused, and returns the exit code."""
    print(f"error: {why}", file=sys.stderr)
    return code
