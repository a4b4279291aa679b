"""Runs of a sweep on SLURM: those that train shared stages, an array of the others, and the table."""

import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rlhf_jax.runs import submit
from rlhf_jax.runs.slurm import Slurm, sbatch
from rlhf_jax.sweeps import sharing
from rlhf_jax.sweeps.grid import Job


class Place(NamedTuple):
    """The name of the jobs, the folder they start in, and the launcher there, as words."""

    name: str
    folder: pathlib.Path
    launcher: list[str]


def send(
    way: Slurm,
    place: Place,
    what: str,
    jobs: Sequence[Job],
    folder: pathlib.Path,
    again: list[str],
) -> bool:
    """Prints the jobs and submits them, unless `way.dry_run`; False where all runs are finished.

    The first trains the shared stages; the second, an array, waits until it has succeeded, and the last makes
    the table by the words `again` when all have ended.
    """
    folder = folder.resolve()
    first, then = sharing.leaders_of(jobs, folder)
    if not first:
        return False
    groups = [*sharing.groups_of(jobs).values()]
    words = lambda job, more: [
        *place.launcher, what, *job.words, "--run", str(folder / job.name), *more
    ]  # fmt: skip
    own = [words(job, sharing.turn_of(job, groups, (), folder).words) for job in first]
    sent = [_submitted(way, [], sbatch(way, place.name, own, place.folder), "first")]
    if then:
        start = lambda job: str(folder / sharing.leader_of(job, first).name)
        later = [words(job, ["--start-from", start(job)]) for job in then]
        text = sbatch(way, place.name, later, place.folder)
        wait = [f"--dependency=afterok:{sent[0]}", "--kill-on-invalid-dep=yes"]
        sent.append(_submitted(way, wait, text, "rest"))
    one = replace(way, nodes=1, tasks_per_node=1, gpus_per_node=0, array_at_most=0)
    text = sbatch(one, place.name, [[*place.launcher, *again]], place.folder)
    _submitted(way, [f"--dependency=afterany:{':'.join(sent)}"], text, "table")
    print(f"the last job makes the table and the picture in {folder}")
    return True


def _submitted(way: Slurm, options: list[str], text: str, name: str) -> str:
    """The number of a job that was submitted, after printing it; in a dry run a name in its place."""
    command = ["sbatch", "--parsable", *options]
    print(f"# {shlex.join(command)}\n{text}", flush=True)
    if way.dry_run:
        return f"ID-OF-{name.upper()}"
    answer = submit.call(command, input=text, capture_output=True)
    if answer.returncode:
        raise ValueError(f"sbatch refused this job: {answer.stderr.strip()}")
    number = answer.stdout.strip().partition(";")[0]
    print(f"submitted as {number}\n", flush=True)
    return number
