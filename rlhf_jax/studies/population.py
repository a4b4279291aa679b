"""Many seeds of one small run: as one program on an accelerator, as a process each on a CPU.

A job is a module-level function `work(lab, *args, seeds) -> [result of each seed]`, mapped over its seeds
by `jax.vmap` on each device. As "vmap" it is called once with all of them, which are cut over the devices of
the layout (and filled up with copies of the last); as "processes" once for each, in worker
processes that hold one core each. Measured (`bench/population.py`): on a GPU one program is 11 times as fast
as one seed after another; on two CPU cores it is no faster, and processes are by a third. The results are
the same to float tolerance, and stand in the run directory, a file a seed: what is there is not computed
again.
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
from rlhf_jax.studies.lab import Lab, LabConfig, Seed, open_lab
from rlhf_jax.studies.proxies import with_teacher

Population = Literal["auto", "vmap", "processes"]
# glibc gives the large arrays of each step back to the kernel and faults them in again in the next: a fifth
# of the time of a step of 1M parameters. Workers keep what they have; they read this as they start.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}


class Job(NamedTuple):
    """What is done once for each seed. `name` is a file's name."""

    name: str
    work: Callable
    args: tuple


def resolve(how: str, layout: str, cfg: LabConfig) -> tuple[str, str]:
    """How seeds are run, and the layout of devices: for "auto", as processes on the cores of one host.

    Raises ValueError for no such layout, and for those that do not go together or do not divide the batches
    of `cfg`.
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
    devices = parallel.choose(layout, {"lab.sft.batch_size": cfg.sft.batch_size})
    if devices.sizes.get("tensor", 1) > 1:
        raise ValueError(
            f'devices = "{layout}" cuts a model, and a study cuts its seeds: use mesh:data=-1'
        )
    return how, layout


def nested(data: int, reward: int = 1, policy: int = 1, first: int = 0) -> list[Seed]:
    """Every combination of so many seeds of each level, in order: a seed of a level belongs to one above."""
    return [
        Seed(d, d * reward + r, (d * reward + r) * policy + p)
        for d in range(first, first + data)
        for r in range(reward)
        for p in range(policy)
    ]


def run_jobs(
    opening: tuple, jobs: Sequence[Job], seeds: Sequence[Seed], how: str
) -> dict[str, list[Any]]:
    """The results of every job by name, one for each seed; `opening` are the arguments of `opened`."""
    folder: pathlib.Path = opening[0]
    place = lambda job, seed: f"cells/{job.name}/{'-'.join(map(str, seed))}.json"
    stands = lambda job, seed: hosts.agreed((folder / place(job, seed)).exists())
    missing = [(job, [seed for seed in seeds if not stands(job, seed)]) for job in jobs]
    if how == "vmap":
        tasks = [(job, some) for job, some in missing if some]
        done = ((task, work(opening, *task)) for task in tasks)
    else:
        tasks = [(job, [seed]) for job, some in missing for seed in some]
        done = _in_processes(opening, tasks)
    for (job, some), results in track(done, "small runs", total=len(tasks)):
        for seed, result in zip(some, results, strict=True):
            disk.write_json(folder / place(job, seed), result)
    hosts.wait("cells")
    return {job.name: [disk.read_json(folder / place(job, s)) for s in seeds] for job in jobs}


def work(opening: tuple, job: Job, seeds: Sequence[Seed]) -> list:
    """One job for some seeds, in this process."""
    return job.work(opened(opening), *job.args, seeds)


@functools.lru_cache(maxsize=1)
def opened(opening: tuple) -> Lab:
    """The lab of (folder, LabConfig, sizes, whether it has a teacher, layout), once in a process."""
    folder, cfg, sizes, teacher, layout = opening
    lab = open_lab(folder, cfg, (*sizes, *[cfg.teacher] * teacher), parallel.choose(layout, {}))
    return with_teacher(lab) if teacher else lab


def _in_processes(opening, tasks):
    """Pairs of a task and its results as they come; each worker has a core of its own."""
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
        waiting = {pool.submit(work, opening, *task): task for task in tasks}
        try:
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _take_core(free):
    """This worker's core, before JAX counts them; what it says of finished stages is not shown."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free.get()})
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
