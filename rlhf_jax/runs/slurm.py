"""Batch scripts for SLURM: of one command, or of several as a job array."""

import pathlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_jax.bounds import Count, Settings, Whole
from rlhf_jax.runs.forms import WORD, WORDS, check_form

PLAIN = r"[\w.,:/@%+=&|*()\[\]!~-]*"  # sbatch reads these as they are, and others between quotes
OWN = {"dependency", "array", "wrap", "parsable", "test-only"}
"""Options of sbatch that decide what a submission is."""


@dataclass(frozen=True)
class Slurm(Settings):
    """Submits a batch script to SLURM, of several seeds or values a job array; each is requeued when it is
    preempted."""

    nodes: Count = 1
    """Number of machines."""
    tasks_per_node: Count = 1
    """Processes per machine; a single one uses all GPUs of the machine."""
    gpus_per_node: Whole = 0
    """GPUs per machine; 0: none."""
    cpus_per_task: Whole = 0
    """CPU cores per process; 0: the cluster's default."""
    mem: str = ""
    """Memory per machine, such as 64G; empty: the cluster's default."""
    partition: str = ""
    """Partition to run in; empty: the cluster's default."""
    account: str = ""
    """Account that is charged; empty: the user's default."""
    qos: str = ""
    """Quality of service; empty: the cluster's default."""
    time: str = ""
    """Time limit, such as 8:00:00; empty: the partition's default."""
    array_at_most: Whole = 0
    """Runs of a sweep at the same time, each a task of a job array; 0: as many as there is room for."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch without their dashes, such as constraint=a100 exclusive mail-type=END."""
    dry_run: bool = False
    """Print the script and submit nothing."""

    def _conditions(self, at: str):
        for name in ("partition", "account", "qos"):
            check_form(at + name, getattr(self, name), WORD, WORDS)
        check_form(
            at + "mem", self.mem, r"(\d+[KMGT]?)?", "a whole number and K, M, G or T, as 64G"
        )
        check_form(
            at + "time",
            self.time,
            r"|(\d+-)?\d+(:\d\d?){0,2}|infinite",
            "minutes, 8:00:00 or 2-12:00:00",
        )
        for option in self.sbatch:
            form = r'[a-z][a-z-]*(=[^"\\\x00-\x1f\x7f]+)?'
            check_form(
                at + "sbatch", option, form, 'NAME or NAME=VALUE in one line, without " and \\'
            )
            name = option.partition("=")[0]
            if name in asked(self) or name == "ntasks-per-node":
                use = "tasks-per-node" if name == "ntasks-per-node" else name
                raise ValueError(f"{at}sbatch = {option!r}: use --{use}, a setting of its own")
            if name in OWN:
                raise ValueError(f"{at}sbatch = {option!r}: the launcher decides it, leave it out")


def asked(cfg: Slurm) -> dict[str, object]:
    """Options of sbatch that have settings of their own, None where they are left to the cluster."""
    return {
        "nodes": cfg.nodes,
        "ntasks-per-node": cfg.tasks_per_node,
        "gpus-per-node": cfg.gpus_per_node or None,
        "cpus-per-task": cfg.cpus_per_task or None,
        "mem": cfg.mem or None,
        "partition": cfg.partition or None,
        "account": cfg.account or None,
        "qos": cfg.qos or None,
        "time": cfg.time or None,
    }


def directive(option: str) -> str:
    """The line of a batch script for NAME or NAME=VALUE, with quotes where sbatch would cut the value."""
    name, equals, value = option.partition("=")
    quoted = value if re.fullmatch(PLAIN, value, re.ASCII) else f'"{value}"'
    return f"#SBATCH --{name}{equals}{quoted}"


def sbatch(
    cfg: Slurm,
    name: str,
    commands: Sequence[Sequence[str]],
    folder: pathlib.Path,
    array: bool = False,
) -> str:
    """The batch script of a command, or a job array of several with a task for each.

    SIGTERM reaches the processes two minutes before the time is over.
    """
    array = array or len(commands) > 1
    limit = f"%{cfg.array_at_most}" if cfg.array_at_most else ""
    wanted = {"job-name": name} | asked(cfg) | {
        "array": f"0-{len(commands) - 1}{limit}" if array else None,
        "signal": "TERM@120",
        "open-mode": "append",
        "output": f"{name}-%A_%a.log" if array else f"{name}-%j.log",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in wanted.items() if value is not None]
    joined = ["--distributed", "auto"] if cfg.nodes * cfg.tasks_per_node > 1 else []
    runs = [f"srun --kill-on-bad-exit=1 {shlex.join([*words, *joined])}" for words in commands]
    if array:  # the number of the first task is that of the whole array, too
        runs = [f"{n}) {run} ;;" for n, run in enumerate(runs)]
        runs = ['case "$SLURM_ARRAY_TASK_ID" in', *runs, "esac"]
    job = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID"
    return "\n".join([
        "#!/bin/bash",
        *map(directive, [*lines, "requeue", *cfg.sbatch]),
        f"cd {shlex.quote(str(folder))}",
        *runs,
        "code=$?",
        "# preempted, or a process was lost: the same command goes on where it was",
        f'if [ "$code" -eq 75 ]; then scontrol requeue "{job}"; fi',
        "exit $code",
        "",
    ])  # fmt: skip
