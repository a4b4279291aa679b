"""The one host loop, which takes every stage of a run to its end, however often it is stopped.

    state = iterate(run, "sft", state, body, iterations=400, save_every=100)

`run/stages/STAGE/` holds the checkpoints of a stage, and `run/metrics.jsonl` the rows of all.
"""

import contextlib
import math
import pathlib
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from rich import progress
from rich.console import Console
from rich.text import Text

from rlhf_jax.devices import dry_run, hosts
from rlhf_jax.devices.process import PREEMPTED
from rlhf_jax.runs import checkpoint, metric_names, metrics, profiling
from rlhf_jax.runs.disk import read_json, write_json

SAMPLES = "samples"  # the rows of texts among the metrics of an iteration
LATER = "later"  # a function among them that waits for more of them
SHOWN, ROOM = 2, 60  # samples that are printed; characters of a prompt, and a third of a response's
NO_STEP = 20  # iterations in a row whose steps were all skipped, after which a stage stops


def iterate(
    run: pathlib.Path,
    stage: str,
    carry: Any,
    body: Callable[[Any, int], tuple[Any, dict]],
    *,
    iterations: int,
    save_every: int,
    until: Callable[[Any], bool] | None = None,
    keep: int = 2,
    best: str = "",
    unit: str = "iterations",
    log_every: int = 1,
) -> Any:
    """The carry after `carry, metrics = body(carry, i)` for i < `iterations`, wherever it was stopped.

    `carry` is a tree of arrays, and all that one iteration hands to the next: together with `i` it
    must decide what `body` does, so that a resumed stage ends with the bits of an uninterrupted one.
    It is saved every `save_every` iterations and at the end, while the next iterations run. The newest
    `keep` checkpoints stay, and besides the one on the way to which the metric `best` was highest: its
    mean since the save before. Restored carries are placed as the given one. Metrics (scalars) of every
    `log_every`-th iteration and of the last are written; under the name `SAMPLES` they may hold rows of texts
    (as `metrics.open_writer`), and under `LATER` a function that returns more metrics. They are fetched when
    the next iteration has been started, so that the devices do not wait for the host. `until(carry)`, asked
    after each `save_every` iterations, ends the stage early.

    A finished stage is restored, and `body` is not called; where more `iterations` are asked for than it was
    finished with, and no `until`, it goes on. On SIGTERM the iteration is ended, the
    carry saved, and SystemExit(75) raised. Raises ValueError if `body` changes the kind of an array, or
    gives no metric `best`, and where all steps were skipped, for their gradients were not finite, in
    `NO_STEP` iterations or to the stage's end; what was saved before stays.
    """
    for name, value in (("save_every", save_every), ("log_every", log_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}: set it to 1 or more")
    if dry := dry_run.current():
        with dry.loop(stage, carry, iterations, unit, until is not None, save_every) as numbers:
            for i in numbers:
                carry, _ = body(carry, i)
        return dry.layout.ended(carry)
    began = time.perf_counter()
    place = run / "stages" / stage
    clock, done = place / "clock.json", place / "done.json"
    carry = _strong(carry)
    first, carry = checkpoint.restore_latest(place, carry) or (0, carry)
    spent = _number_of(clock, "seconds") or 0.0
    seconds = lambda: round(spent + time.perf_counter() - began, 3)
    if _is_finished(stage, done, first, first if until else iterations):
        print(f"{stage}: finished before, {first} {unit} in {duration(spent)}", flush=True)
        return carry
    if first:
        print(f"{stage}: goes on after {first} {unit}", flush=True)

    i, saved = first, first or None
    kinds = _kinds(carry)
    values_of_best: list[float] = []  # since the last save
    check_steps = _make_check(stage, unit)
    with contextlib.ExitStack() as stack:
        begin = stack.enter_context(checkpoint.saving(place, keep=keep))

        def save():
            nonlocal saved
            value = math.fsum(values_of_best) / len(values_of_best) if values_of_best else None
            values_of_best.clear()
            begin(i, carry, value)
            write_json(clock, {"seconds": seconds()})
            saved = i

        write = stack.enter_context(metrics.open_writer(run, stage, start=first))
        told_to_stop = stack.enter_context(_listening_for_sigterm())
        show = stack.enter_context(_progress(stage, unit, first, iterations))
        trace = stack.enter_context(profiling.tracing(run, stage))
        started: tuple | None = None  # an iteration, and its metrics

        def settle() -> int:
            """Fetches and shows the metrics of the iteration started last; how many learned nothing."""
            nonlocal started
            assert started
            (i, values), started = started, None
            samples, later = values.pop(SAMPLES, ()), values.pop(LATER, dict)
            is_logged = i % log_every == 0 or i == iterations
            logged = jax.device_get(values) | later() if is_logged else {}
            if logged or samples:
                write(i - 1, logged, samples)
            values_of_best.extend([_value(stage, best, logged)] if best and logged else [])
            show(i, logged, samples)
            # Where nothing is learned, nothing is saved: the same command then comes to the same end.
            return check_steps(values, look=bool(logged) or i % save_every == 0)

        def settle_after(error, *_):
            if error is not None and started:  # what is already computed is kept
                with contextlib.suppress(Exception):
                    settle()

        stack.push(settle_after)
        while i < iterations and not hosts.any_of(told_to_stop.is_set()):
            # Asked here and not after the save: a run that was killed between them asks again.
            if until is not None and i and i % save_every == 0 and until(carry):
                break
            trace(i - first)
            with jax.profiler.StepTraceAnnotation(stage, step_num=i):
                carry, values = body(carry, i)
            carry, i = _strong(carry), i + 1
            if i == first + 1:
                _check_kinds(stage, kinds, _kinds(carry))
            if started:
                settle()
            started = i, values
            if i == first + 1 or i % save_every == 0:
                lost = settle()
                if i % save_every == 0 and i < iterations and not lost:
                    save()
        stopped = hosts.any_of(told_to_stop.is_set())
        if started:
            settle()
        lost = check_steps(look=True, ended=not stopped)
        if saved != i and not (stopped and lost):
            save()
        stopped = stopped or hosts.any_of(told_to_stop.is_set())
    if stopped or told_to_stop.is_set():  # it may come as late as while the last save ends
        print(
            f"{stage}: stopped and saved after {saved or 0} {unit}; the same command goes on",
            flush=True,
        )
        raise SystemExit(PREEMPTED)
    write_json(done, {"iterations": i, "seconds": seconds()})
    early = "" if i == iterations else f" (ended early, {iterations} at most)"
    print(f"{stage}: {i} {unit} in {duration(seconds())}{early}", flush=True)
    return carry


def _is_finished(stage: str, done: pathlib.Path, first: int, least: int) -> bool:
    """True where the stage has ended, after `least` iterations or more.

    Otherwise its end is forgotten, and it goes on after its last checkpoint, that of iteration `first`.
    """
    if not done.exists():
        return False
    whole = _number_of(done, "iterations") == first
    if whole and first >= least:
        return True
    if hosts.is_first():
        if not whole:  # what came after the checkpoint before is done again
            print(f"{stage} was finished, and its last checkpoint is gone", file=sys.stderr)
        done.unlink()
    return False


def _value(stage: str, best: str, logged: dict) -> float:
    """The metric that selects the best checkpoint."""
    if best not in logged:
        raise ValueError(
            f'best = "{best}" is no metric of stage {stage}: use one of {", ".join(logged)}'
        )
    return float(logged[best])


def _number_of(path: pathlib.Path, name: str) -> int | float | None:
    """The number `name` in a JSON file; None where it is absent, or damaged, which is told."""
    if not path.exists():
        return None
    try:
        content = read_json(path, "it is made again")
        if not isinstance(content, dict) or not isinstance(content.get(name), (int, float)):
            raise ValueError(f"{path} is damaged, it has no {name}: it is made again")
        return content[name]
    except ValueError as error:
        print(error, file=sys.stderr)
        return None


def _make_check(stage: str, unit: str) -> Callable:
    """`check(metrics={}, *, look, ended=False) -> int`: iterations in a row, to now, that learned nothing.

    All steps of such a one (one, or `AREA/steps`) were skipped, as their gradients were not finite. Metrics
    stay on the devices until a `look`. Raises ValueError as `iterate` says.
    """
    waiting = []  # metrics
    lost = idle = seen = 0  # iterations: in a row; without a step; all of this session

    def check(values: dict = {}, *, look: bool, ended: bool = False) -> int:  # noqa: B006
        nonlocal lost, idle, seen
        skipped, norm = "train/skipped", "train/grad_norm"
        if skipped in values:
            names = [name for name in values if name in (skipped, norm) or name.endswith("/steps")]
            waiting.append({name: values[name] for name in names})
        for found in jax.device_get(waiting) if look else ():
            steps = [float(x) for name, x in found.items() if name.endswith("/steps")]
            took_none = float(found[skipped]) >= max([*steps, 1.0])
            lost = lost + 1 if took_none and not math.isfinite(found.get(norm, math.nan)) else 0
            idle, seen = idle + took_none, seen + 1
        if look:
            waiting.clear()
        if lost and (lost >= NO_STEP or (ended and lost == seen)):
            raise ValueError(
                f"stage {stage} learns nothing: train/skipped counted every step of the last {lost} {unit}, "
                "for train/grad_norm was not finite. Look for a number that is not finite in the model that "
                "it starts from, and try a smaller learning rate, or float32 in the place of 16 bits; what "
                "was saved before stays"
            )
        if ended and seen and idle == seen:
            print(
                f"note: {stage} took no step, no batch had a weight (train/skipped)",
                file=sys.stderr,
            )
        return lost

    return check


def _strong(tree):
    """Without weak types, which a checkpoint forgets: they decide what later sums are cast to."""
    weak = lambda x: isinstance(x, jax.Array) and x.weak_type
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype) if weak(x) else x, tree)


def _kinds(tree) -> dict[str, str]:
    """Path to where an array lives, its dtype and its shape."""

    def kind(x):
        if not hasattr(x, "dtype"):
            return f"plain {type(x).__name__}"
        return f"{'JAX' if isinstance(x, jax.Array) else 'NumPy'} {x.dtype}{list(x.shape)}"

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): kind(x) for path, x in leaves}


def _check_kinds(stage, given, got):
    """A carry that changes could be saved, and not be restored as the one that `iterate` is given."""
    for path in given | got:
        if given.get(path) != got.get(path):
            raise ValueError(
                f"stage {stage}: carry{path} went into an iteration as {given.get(path, 'nothing')} "
                f"and came out as {got.get(path, 'nothing')}: start with what it becomes"
            )


@contextlib.contextmanager
def _listening_for_sigterm():
    """Yields an event that SIGTERM sets; signals reach the main thread alone."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _progress(stage, unit, first, end):
    """Yields `show(i, metrics, samples)`: a bar on a terminal, elsewhere a line every ten seconds or tenth;
    and the first of the samples."""
    seen, console, started = {}, Console(), time.perf_counter()
    compiled = None  # when the first iteration, which compiles, was over

    def note(i, values):
        nonlocal compiled
        seen.update(values)
        now = time.perf_counter()
        if compiled is None:
            compiled = i, now
        rate = (i - compiled[0]) / max(now - compiled[1], 1e-9)
        parts = [f"{rate:.3g} {unit}/s", f"{duration((end - i) / rate)} left"] if rate else []
        shown = [f"{n.rpartition('/')[2]} {seen[n]:.4g}" for n in metric_names.headlines(seen)]
        return "  ".join(parts + shown)

    if not hosts.is_first():
        yield lambda i, values, samples: None
    elif console.is_terminal:
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        with progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(stage, total=end, completed=first, note="compiling")

            def show(i, values, samples):
                for line in _said(stage, i - 1, samples):
                    bar.console.print(Text(line, style="dim"))
                bar.update(task, completed=i, note=note(i, values))

            yield show
    else:
        last = first, started

        def show(i, values, samples):
            nonlocal last
            text, now = note(i, values), time.perf_counter()
            for line in _said(stage, i - 1, samples):
                print(line, flush=True)
            if i == end or now - last[1] >= 10 or i * 10 // end > last[0] * 10 // end:
                print(f"{stage}: {i}/{end}  {text}", flush=True)
                last = i, now

        yield show


def _said(stage: str, iteration: int, samples: Sequence[dict]) -> list[str]:
    """The first samples as lines: their numbers, the end of their prompts, and the response."""
    lines = []
    for row in samples[:SHOWN]:
        numbers = [f"{n} {x:.3g}" for n, x in row.items() if n not in ("prompt", "response")]
        prompt = " ".join(row["prompt"].split())
        prompt = prompt if len(prompt) <= ROOM else f"...{prompt[-ROOM:]}"
        said = textwrap.shorten(row["response"], 3 * ROOM, placeholder=" ...")
        lines += [f"{stage} {iteration}: {', '.join(numbers)}", f"  {prompt} -> {said}"]
    return lines


def duration(seconds: float) -> str:
    """A time as 5:07 or 1:05:07."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
