"""Metrics on disk: metrics.jsonl and TensorBoard always, Weights & Biases where the run has a tracker.

A row is `{"stage": "ppo", "iteration": 12, "time": <unix seconds>, "ppo/loss": 0.5, ...}`. What is not
finite is written as null, which every JSON reader takes, and reads as NaN. Rows of
training_samples.jsonl, texts of a policy in training, are
`{"stage", "iteration", "prompt", "response", NAME: number}`.
"""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from rlhf_jax.runs import disk, tracker

FILE = "metrics.jsonl"
SAMPLES = "training_samples.jsonl"
OURS = ("stage", "iteration", "time")  # the columns of a row that are no metrics


@contextlib.contextmanager
def open_writer(run: pathlib.Path, stage: str, *, start: int = 0) -> Iterator[Callable]:
    """Yields `write(iteration, {name: scalar}, samples=())`, once all that `stage` wrote from `start` on is
    cut.

    `samples` are rows with a prompt, a response, and numbers. What is written is flushed before `write`
    returns. Process 0 alone writes. Raises ValueError for a metric that is no single number.
    """
    if jax.process_index() > 0:
        yield lambda iteration, values, samples=(): None
        return
    for name in (FILE, SAMPLES):
        cut(run / name, stage, start)
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(_open_board(run / "tensorboard" / stage, start))

        def add(name: str, rows: Sequence[dict]):
            with (run / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

        def write(iteration: int, values: dict, samples: Sequence[dict] = ()) -> None:
            numbers = {name: _number(name, value) for name, value in values.items()}
            finite = {name: x for name, x in numbers.items() if math.isfinite(x)}
            at = {"stage": stage, "iteration": iteration}
            samples = [{name: _whole(x) for name, x in row.items()} for row in samples]
            if numbers:
                when = {"time": round(time.time(), 3)}
                add(FILE, [at | when | {name: finite.get(name) for name in numbers}])
            if samples:
                add(SAMPLES, [at | row for row in samples])
            show(iteration, finite, samples)
            tracker.log(run, stage, iteration, finite, samples)

        yield write


@contextlib.contextmanager
def _open_board(folder: pathlib.Path, start: int) -> Iterator[Callable]:
    """Yields `show(iteration, {name: number}, samples)`, which writes for TensorBoard; a folder for each
    stage.

    In this thread and not in one of its own, as SummaryWriter would, which a full disk ends without a word.
    """
    # deferred: half a second, which a program that writes no metrics should not pay
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar, text

    event, log = getattr(event_pb2, "Event"), getattr(event_pb2, "SessionLog")  # noqa: B009

    def put(iteration, **what):
        events.write_event(event(wall_time=time.time(), step=iteration, **what))

    def show(iteration, numbers, samples):
        for name, x in numbers.items():
            put(iteration, summary=scalar(name, x))
        if samples:
            put(iteration, summary=text("samples", _markdown(samples)))
        events.flush()

    folder.mkdir(parents=True, exist_ok=True)
    # The suffix: two sessions that open in one second must not write one file.
    events = EventsWriter(str(folder / "events"), filename_suffix=f".{start}")
    try:
        put(start, session_log=log(status=log.START))  # all from `start` on is purged
        events.flush()
        yield show
    finally:
        with contextlib.suppress(OSError):  # of a full disk, which a flush has told
            events.close()


def read(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics.jsonl, null as NaN; a last line that a kill tore is left out."""
    rows = [json.loads(line) for line in _lines(path)]
    return [{name: math.nan if x is None else x for name, x in row.items()} for row in rows]


def cut(path: pathlib.Path, stage: str, iteration: int) -> None:
    """Drops the rows of `stage` from `iteration` on, and a torn last line, all at once."""
    before = path.read_bytes() if path.exists() else b""
    later = lambda row: row["stage"] == stage and row["iteration"] >= iteration
    after = [line for line in _lines(path) if not later(json.loads(line))]
    if "".join(f"{line}\n" for line in after).encode() != before:
        disk.write_lines(path, after)


def _lines(path):
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode()
            row = json.loads(text)
            if not isinstance(row, dict) or not {"stage", "iteration"} <= row.keys():
                raise ValueError
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            raise ValueError(
                f"{path}:{number}: this line is no row of metrics: remove it"
            ) from None
        yield text


def _whole(x):
    """A text in which half of an emoji, which is no UTF-8, is an escape; anything else as it is."""
    return x.encode("utf-8", "backslashreplace").decode() if isinstance(x, str) else x


def _markdown(rows: Sequence[dict]) -> str:
    """A table, for TensorBoard's text tab."""
    plain = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)
    cell = lambda x: plain(x).replace("|", "\\|").replace("\n", "<br>")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(cell, row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(name, value) -> float:
    if np.size(value) != 1:
        raise ValueError(
            f"metric {name} has shape {list(np.shape(value))}, but is to be one number"
        )
    return float(np.asarray(value).item())
