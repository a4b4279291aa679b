"""Traces of iterations, which https://ui.perfetto.dev draws; xprof and TensorBoard read them too."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import jax

SKIPPED = 2  # first iterations of a session, which compile and fill memory
_asked: dict[pathlib.Path, int] = {}  # run directory to the number of iterations, in this process


def ask(folder: pathlib.Path, iterations: int) -> None:
    """Asks for a trace of so many iterations of each stage that this process trains in a run directory."""
    _asked[folder.resolve()] = iterations


@contextlib.contextmanager
def tracing(folder: pathlib.Path, stage: str) -> Iterator[Callable]:
    """Yields `step(done)`, to be called before each iteration with the number done in this session.

    The trace is written to `folder`/profile/STAGE.json.gz, and the files of xprof beside it. A stage with too
    few iterations has none.
    """
    count = _asked.get(folder.resolve(), 0)
    if not count or jax.process_index():
        yield lambda done: None
        return
    running = contextlib.ExitStack()

    def step(done: int):
        if done == SKIPPED:
            running.enter_context(_trace(folder / "profile", stage, count))
        elif done == SKIPPED + count:
            running.close()

    with running:
        yield step


@contextlib.contextmanager
def _trace(place: pathlib.Path, stage: str, count: int):
    place.mkdir(exist_ok=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of Python would make it large and slow
    with tempfile.TemporaryDirectory(dir=place) as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
            yield
        (found,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        trace = found.replace(place / f"{stage}.json.gz")
        shutil.rmtree(place / stage, ignore_errors=True)
        shutil.move(found.parent, place / stage)
    print(f"{stage}: trace of {count} iterations in {trace}: open it at https://ui.perfetto.dev")
