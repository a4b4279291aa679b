"""Metrics on disk: metrics.jsonl and TensorBoard always, Weights & Biases when asked for.

A row is `{"stage": "ppo", "iteration": 12, "time": <unix seconds>, "ppo/loss": 0.5, ...}`. What is not
finite is written as null, which every JSON reader takes, and reads as NaN.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from rlhf_jax.runs import disk

FILE = "metrics.jsonl"
OURS = ("stage", "iteration", "time")  # the columns of a row that are no metrics


@contextlib.contextmanager
def open_writer(
    run: pathlib.Path, stage: str, *, start: int = 0, wandb: bool = False
) -> Iterator[Callable]:
    """Yields `write(iteration, {name: scalar})`, once all that `stage` wrote from `start` on is cut.

    A row is flushed before `write` returns. Process 0 alone writes. Raises ValueError for a metric
    that is no single number, or if `wandb` is not installed.
    """
    if jax.process_index() > 0:
        yield lambda iteration, values: None
        return
    cut(run / FILE, stage, start)
    with contextlib.ExitStack() as stack:
        tracker = _open_wandb(run, stage) if wandb else None
        if tracker is not None:
            stack.callback(tracker.finish)
        show = stack.enter_context(_open_board(run / "tensorboard" / stage, start))
        file = stack.enter_context((run / FILE).open("a"))

        def write(iteration: int, values: dict) -> None:
            numbers = {name: _number(name, value) for name, value in values.items()}
            finite = {name: x for name, x in numbers.items() if math.isfinite(x)}
            row = {"stage": stage, "iteration": iteration, "time": round(time.time(), 3)}
            row |= {name: finite.get(name) for name in numbers}
            file.write(json.dumps(row) + "\n")
            file.flush()
            show(iteration, finite)
            if tracker is not None:
                tracker.log(numbers, step=iteration)

        yield write


@contextlib.contextmanager
def _open_board(folder: pathlib.Path, start: int) -> Iterator[Callable]:
    """Yields `show(iteration, {name: number})`, which writes for TensorBoard; a folder for each stage.

    In this thread and not in one of its own, as SummaryWriter would, which a full disk ends without a word.
    """
    # deferred: half a second, which a program that writes no metrics should not pay
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2
    from tensorboardX.summary import scalar

    event, log = getattr(event_pb2, "Event"), getattr(event_pb2, "SessionLog")  # noqa: B009

    def put(iteration, **what):
        events.write_event(event(wall_time=time.time(), step=iteration, **what))

    def show(iteration, numbers):
        for name, x in numbers.items():
            put(iteration, summary=scalar(name, x))
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


def _number(name, value) -> float:
    if np.size(value) != 1:
        raise ValueError(
            f"metric {name} has shape {list(np.shape(value))}, but is to be one number"
        )
    return float(np.asarray(value).item())


def load_wandb():
    """The package. Raises ValueError where it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            'Weights & Biases is not installed: pip install "rlhf_jax[wandb]", or leave wandb off'
        ) from None
    return wandb


def _open_wandb(run, stage):
    wandb = load_wandb()
    place = run.resolve()
    # the same folder and stage are the same W&B run, so that a resumed stage goes on in it
    identity = hashlib.sha256(f"{place}/{stage}".encode()).hexdigest()[:16]
    group = f"{place.parent.name}-{place.name}"
    return wandb.init(
        project="rlhf_jax",
        group=group,
        name=f"{group}-{stage}",
        id=identity,
        resume="allow",
        dir=str(run),
    )
