"""The plan of a run: prompts, steps, tokens, parameters and memory, before anything is started.

`show` calls the experiment's own code with arrays without values (`devices/abstract.py`): what it says are
that code's batches, arrays and compiled functions, on devices that need not exist.
"""

import contextlib
import io
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console

from rlhf_jax.devices import abstract, dry_run, hosts
from rlhf_jax.devices.dry_run import DryRun
from rlhf_jax.devices.parallel import Devices
from rlhf_jax.pipeline import keys, plan_table, reuse, settings
from rlhf_jax.rewards.scorer import Pending
from rlhf_jax.runs import run as runs

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared


def begun(run: "Prepared") -> "Prepared":
    """The run, after printing its data, its steps and the memory of its policy; a dry run on paper."""
    if dry := dry_run.current():
        return on_paper(run, dry)
    if hosts.is_first():
        for line in plan_table.ahead(run):
            print(f"plan: {line}", flush=True)
    return run


def layout(devices: Devices) -> Devices:
    """The devices of a run; in a dry run, on paper."""
    dry = dry_run.current()
    return abstract.on_paper(devices, dry) if dry else devices


def opened(name: str, cfg: Any, start: pathlib.Path | None) -> pathlib.Path:
    """The temporary directory of a dry run, with all but the checkpoints of the run `start`."""
    dry: Any = dry_run.current()
    folder = runs.open_run(name, replace(cfg, run=str(dry.folder)), str(dry.folder))
    if start:
        reuse.copy(start, folder, cfg, checkpoints=False)
        dry.copied = reuse.stages_of(start, cfg)
    return folder


def on_paper(run: "Prepared", dry: DryRun) -> "Prepared":
    """The run, in which responses are placeholders and no Python reward is called."""
    dry.prepared = run
    known = {name: keys.key_of(run.cfg.seed, name) for name in keys.STAGES}

    def generate(params, rows, key):
        purpose = next((name for name, x in known.items() if bool(x == key)), "others")
        dry.drawn[purpose] += len(rows)
        said = run.generator.generate(params, rows, key)
        return said._replace(texts=[f"response {n}" for n in range(len(rows))])

    generator = run.generator._replace(generate=generate)
    return run._replace(generator=generator, scorer=run.scorer and Unasked())


class Unasked:
    """A Python reward that is not called."""

    def submit(self, prompts, responses, **columns) -> Pending:
        """Scores that are there at once."""
        return Zeros(len(prompts))


class Zeros(Pending):
    """Scores of zero."""

    def __init__(self, count: int):
        self.count = count

    def result(self):
        """The scores."""
        return np.zeros(self.count, np.float32)

    def parts(self):
        """The scores of named functions, which are not known."""
        return {}


def show(name: str, main: Callable, cfg: Any, devices: str = "") -> int:
    """Prints the plan of experiment `name`, and returns the exit code 0; nothing is started or written.

    `devices` is a number of devices that the launcher imagined. Raises ValueError where the experiment has
    no plan, and all that its start raises.
    """
    if not isinstance(cfg, settings.RunConfig):
        raise ValueError(
            f"--plan is for methods and applications that prepare one run, and {name} does not: leave it out"
        )
    if devices and jax.device_count() != int(devices):
        raise ValueError(
            f"plan-devices = {devices}, and JAX has begun with {jax.device_count()}: give --plan-devices to "
            "the command that starts Python"
        )
    with Console(stderr=True).status("planning") as status:  # seen in a terminal alone
        began = time.perf_counter()
        dry, stopped = rehearse(main, cfg, tell=status.update, timed=not devices)
        took = time.perf_counter() - began
    print("\n".join(plan_table.written(name, dry, stopped, took)))
    return 0


def rehearse(
    main: Callable, cfg: Any, tell: Callable[[str], object] = lambda what: None, timed: bool = False
) -> tuple[DryRun, str]:
    """The dry run of `main(cfg)`, and why it stopped before the end; empty where it did not.

    `tell` is called with what is being compiled. With `timed` each compiled function is called a few times.
    """
    quiet = contextlib.ExitStack()
    with tempfile.TemporaryDirectory() as folder, quiet:
        dry = quiet.enter_context(dry_run.planned(pathlib.Path(folder) / "run", timed))
        dry.tell = tell
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(warnings.catch_warnings(action="ignore"))
        quiet.enter_context(np.errstate(all="ignore"))  # all scores are equal
        try:
            main(cfg)
        except Exception as error:
            if not dry.prepared:
                raise
            return dry, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return dry, ""
