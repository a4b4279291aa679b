"""Many seeds of one small run: as one program on an accelerator, as a process each on a CPU.

A job is a module-level function `work(context, *args, seeds) -> [result of each seed]`, mapped over its
seeds by `jax.vmap` on each device. With "vmap" it is called once with all seeds, which are split over the
devices of the layout (and padded with copies of the last); with "processes" it is called once for each seed,
in worker processes that hold one core each. Measured (`bench/population.py`): on a GPU one program is 11
times as fast as one seed after another; on two CPU cores it is no faster, and processes are faster by a
third. The results are the same to float tolerance. Each seed's result is a file in the run directory and is
not computed again.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
from rich.progress import track

from rlhf_jax.devices import hosts, parallel
from rlhf_jax.runs import disk
from rlhf_jax.studies.context import Seed, SharedConfig, StudyContext, open_context
from rlhf_jax.studies.proxies import with_teacher

Population = Literal["auto", "vmap", "processes"]
# glibc returns the large arrays of each step to the kernel and faults them in again in the next one, which
# takes a fifth of the time of a step of 1M parameters. Workers keep their memory: they read this at start.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}


class Job(NamedTuple):
    """Work that is done once for each seed; `name` also names the folder of its results."""

    name: str
    work: Callable
    args: tuple


class Setup(NamedTuple):
    """Arguments with which a process opens the context of a study."""

    folder: pathlib.Path
    shared: SharedConfig
    sizes: tuple[str, ...] = ()  # of language models beside the policy's
    teacher: bool = False
    layout: str = "device"


def resolve(how: str, layout: str, cfg: SharedConfig) -> tuple[str, str]:
    """The population and the layout of devices; "auto" means processes on the cores of one host.

    Raises ValueError for an unknown layout, for a population and a layout that exclude each other, and for a
    layout that does not divide the batches of `cfg`.
    """
    if how == "auto":
        cores = jax.default_backend() == "cpu" and jax.process_count() == 1
        how = "processes" if cores and layout in ("auto", "device") else "vmap"
    if how == "processes":
        if layout not in ("auto", "device") or jax.process_count() > 1:
            raise ValueError(
                f'population = "processes" gives each seed a core of one host, and devices = "{layout}" '
                "are others: use --population vmap"
            )
        return how, "device"
    devices = parallel.choose(layout, {"shared.sft.batch_size": cfg.sft.batch_size})
    if devices.sizes.get("tensor", 1) > 1:
        raise ValueError(
            f'devices = "{layout}" cuts a model, and a study cuts its seeds: use mesh:data=-1'
        )
    return how, layout


def nested_seeds(data: int, reward: int = 1, policy: int = 1, first: int = 0) -> list[Seed]:
    """Nested seeds: each of `data` seeds has `reward` seeds of its own, and each of those `policy` seeds."""
    return [
        Seed(d, d * reward + r, (d * reward + r) * policy + p)
        for d in range(first, first + data)
        for r in range(reward)
        for p in range(policy)
    ]


def run_jobs(
    setup: Setup, jobs: Sequence[Job], seeds: Sequence[Seed], how: str
) -> dict[str, list[Any]]:
    """Results of every job by name, one for each seed; missing ones are computed."""
    place = lambda job, seed: setup.folder / "cells" / job.name / f"{'-'.join(map(str, seed))}.json"
    exists = lambda job, seed: hosts.agreed(place(job, seed).exists())
    missing = [(job, [seed for seed in seeds if not exists(job, seed)]) for job in jobs]
    if how == "vmap":
        tasks = [(job, some) for job, some in missing if some]
        done = ((task, work(setup, *task)) for task in tasks)
    else:
        tasks = [(job, [seed]) for job, some in missing for seed in some]
        done = _in_processes(setup, tasks)
    for (job, some), results in track(done, "small runs", total=len(tasks)):
        for seed, result in zip(some, results, strict=True):
            disk.write_json(place(job, seed), result)
    hosts.wait("cells")
    return {job.name: [disk.read_json(place(job, seed)) for seed in seeds] for job in jobs}


def work(setup: Setup, job: Job, seeds: Sequence[Seed]) -> list:
    """Results of one job for some seeds, computed in this process."""
    return job.work(context_of(setup), *job.args, seeds)


@functools.lru_cache(maxsize=1)
def context_of(setup: Setup) -> StudyContext:
    """The context of a study, opened once in a process."""
    folder, shared, sizes, teacher, layout = setup
    sizes = (*sizes, *[shared.teacher] * teacher)
    context = open_context(folder, shared, sizes, parallel.choose(layout, {}))
    return with_teacher(context) if teacher else context


def _in_processes(setup, tasks):
    """Yields each task and its results, as they are done; each worker has a core of its own."""
    cores = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else range(os.cpu_count() or 1)
    )
    os.environ.update({name: x for name, x in ALLOCATOR.items() if name not in os.environ})
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    free = context.Queue()
    for core in cores:
        free.put(core)
    with concurrent.futures.ProcessPoolExecutor(
        min(len(cores), max(1, len(tasks))), context, _take_core, (free,)
    ) as pool:
        waiting = {pool.submit(work, setup, *task): task for task in tasks}
        try:
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _take_core(free):
    """Pins this worker to a core, before JAX counts them, and hides what it prints."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free.get()})
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
