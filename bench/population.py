"""Seeds of one small run: as one program, as processes, and one after another; seconds and ratio in one run.

    JAX_COMPILATION_CACHE_DIR=.jax_cache python -m bench population --seeds 8 --size 100k

A small run is a reward model of 300 steps, its best of n, and a policy of `--iterations` rollouts against
it. Every way is run twice and the second time is told: with a compilation cache all of them, new processes
too, find what was compiled. Before them the language models and the comparisons are made, once for all.
"""

import pathlib
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from typing import Annotated

import jax
import rich
from rich.table import Table

from experiments.studies import overoptimization
from rlhf_jax.bounds import Bound, Count, Settings
from rlhf_jax.studies.context import SharedConfig, Size
from rlhf_jax.studies.curves import Cell
from rlhf_jax.studies.population import Job, Setup, context_of, nested_seeds, run_jobs, work
from rlhf_jax.studies.proxies import comparisons


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the measurement."""

    seeds: Count = 8
    size: Size = "100k"
    """Of the policy and the reward model."""
    pairs: Annotated[int, Bound(ge=2)] = 1000
    """Comparisons that each reward model learns."""
    iterations: Count = 40
    """Rollouts of 64 responses of each policy."""
    looped: Count = 2
    """Seeds that are run one after another; their time is told for all seeds."""
    ways: tuple[str, ...] = ("vmap", "processes", "loop")


def main(cfg: Config):
    """Prints the table."""
    folder = pathlib.Path(tempfile.mkdtemp())
    setup = Setup(folder, SharedConfig(policy=cfg.size), (cfg.size,))
    method = replace(overoptimization.configs["overoptimization"].method, iterations=cfg.iterations)
    job = Job("run", overoptimization.small_run, (Cell("symbolic", cfg.size, cfg.pairs), method))
    seeds = nested_seeds(cfg.seeds)
    comparisons(context_of(setup), "symbolic", cfg.pairs, seeds)

    def once(way):
        began = time.perf_counter()
        if way == "loop":
            for seed in seeds[: cfg.looped]:
                work(setup, job, [seed])
            return (time.perf_counter() - began) * cfg.seeds / cfg.looped
        shutil.rmtree(folder / "cells", ignore_errors=True)
        run_jobs(setup, [job], seeds, way)
        return time.perf_counter() - began

    seconds = {way: (once(way), once(way))[1] for way in cfg.ways}
    device = jax.devices()[0].device_kind
    title = f"{cfg.seeds} seeds, {cfg.size}, {device}"
    table = Table("way", "seconds", f"of {cfg.ways[0]}", title=title)
    for way, took in seconds.items():
        table.add_row(way, f"{took:.1f}", f"{took / seconds[cfg.ways[0]]:.2f}")
    rich.print(table)
    shutil.rmtree(folder)
