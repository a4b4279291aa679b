"""Shared stages of the runs of a sweep: which runs have the same ones, and who trains them first."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rlhf_jax.pipeline import reuse
from rlhf_jax.pipeline.settings import RunConfig
from rlhf_jax.runs import conclusion, disk, identity, run
from rlhf_jax.sweeps.grid import Job


def key_of(job: Job) -> str:
    """A text that is equal for runs whose shared stages end with the same; empty where a run shares none.

    A run that is given `start_from` has its stages from there.
    """
    cfg = job.cfg
    if not isinstance(cfg, RunConfig) or cfg.start_from:
        return ""
    needs = cfg.needs()
    if cfg.reference and not (needs.halves and "comparisons" in needs.needed):
        return ""  # none is trained
    stages = reuse.STAGES if needs.halves else reuse.STAGES[:1]
    settings = reuse.shared(identity.flat(disk.plain(cfg)), stages)
    return json.dumps([stages, settings], sort_keys=True)


def groups_of(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The runs by their shared stages, those that share with no other left out."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if key := key_of(job):
            found.setdefault(key, []).append(job)
    return {key: group for key, group in found.items() if len(group) > 1}


def is_ready(folder: pathlib.Path) -> bool:
    """True for a run that is past its shared stages: it has results, or a stage of its own."""
    stages = {place.name for place in (folder / "stages").glob("[!.]*")}
    return (folder / "report.html").exists() or not stages <= {*reuse.STAGES}


def is_finished(folder: pathlib.Path) -> bool:
    """True for a run that has its results."""
    return (folder / run.CONFIG).exists() and conclusion.stands(folder)


def start_of(folder: pathlib.Path) -> list[str]:
    """The words that start another run from a ready one; none where it trained no shared stage."""
    has_any = any(run.finished(folder, stage) for stage in reuse.STAGES)
    return ["--start-from", str(folder)] if has_any else []


class Turn(NamedTuple):
    """The choice of a run: to wait for another's shared stages, or to start, with further words."""

    waits: bool
    words: list[str]


def turn_of(
    job: Job, groups: Iterable[Sequence[Job]], running: Iterable[str], folder: pathlib.Path
) -> Turn:
    """A run starts from one of its group that is ready; without one it trains the stages, or waits for the
    run that is at them."""
    mine = next((group for group in groups if job in group), ())
    others = [other.name for other in mine if other.name != job.name]
    ready = next((name for name in others if is_ready(folder / name)), None)
    if ready or not others or is_ready(folder / job.name):
        return Turn(False, start_of(folder / ready) if ready else [])
    return Turn(any(name in {*running} for name in others), [])


def leaders_of(jobs: Sequence[Job], folder: pathlib.Path) -> tuple[list[Job], list[Job]]:
    """(runs that can start at once, runs that start from one of these), of those that are not finished."""
    groups = [*groups_of(jobs).values()]
    first, then = [], []
    for job in jobs:
        if is_finished(folder / job.name):
            continue
        waits = turn_of(job, groups, [x.name for x in first], folder).waits
        (then if waits else first).append(job)
    return first, then


def leader_of(job: Job, first: Sequence[Job]) -> Job:
    """The run among `first` that trains the shared stages of `job`."""
    return next(x for x in first if key_of(x) == key_of(job))


def in_words(name: str, jobs: Sequence[Job], axes: Sequence[str], whole: bool) -> list[str]:
    """Sentences on the differences between seeds, and on the stages that are trained once."""
    groups, many = groups_of(jobs), len({job.seed for job in jobs})
    said = []
    if many > 1 and whole:
        said.append(
            f"Seeds vary everything: {name} has no rl.seed, so each seed (--seed) has data, SFT and all "
            "other stages of its own."
        )
    elif many > 1:
        said.append(
            "Seeds vary the prompts and responses drawn in RL alone (rl.seed), against the data, the SFT "
            "policy and the reward models of one --seed: intervals over seeds say nothing of other reward "
            "models."
        )
    once = [group[0].name for group in groups.values()]
    alone = len(jobs) - sum(map(len, groups.values()))
    if len(once) == 1 and not alone:
        said.append(f"The shared stages are trained once, by {once[0]}; the other runs copy them.")
    elif once:
        why = ", ".join(x for x in axes if changes_stages(x, jobs))
        why = f" ({why} changes them)" if why else ""
        said.append(
            f"The shared stages are trained {len(once) + alone} times{why}, and copied to the other runs."
        )
    elif start := getattr(jobs[0].cfg, "start_from", ""):
        said.append(f"The shared stages are copied from {start}.")
    elif len(jobs) > 1:
        said.append("Each run trains all its stages.")
    return said


def changes_stages(axis: str, jobs: Sequence[Job]) -> bool:
    """True where two runs that differ by this axis alone have different shared stages."""
    seen: dict[tuple, set[str]] = {}
    for job in jobs:
        others = *((k, v) for k, v in job.cell.items() if k != axis), ("nth", str(job.nth))
        seen.setdefault(tuple(others), set()).add(key_of(job))
    return any(len(keys) > 1 for keys in seen.values())
