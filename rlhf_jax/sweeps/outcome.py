"""The end of a sweep: its record, its table, its picture, and the best combination with a caution."""

import pathlib
import shlex
from collections.abc import Sequence

import rich

from rlhf_jax.runs import disk
from rlhf_jax.sweeps import grid, picture, sharing, table
from rlhf_jax.sweeps.grid import Job, SweepConfig
from rlhf_jax.sweeps.table import Cell

RECORD, CSV, PICTURE = "sweep.json", "sweep.csv", "sweep.png"


def conclude(
    jobs: Sequence[Job],
    folder: pathlib.Path,
    cfg: SweepConfig,
    flags: dict[str, tuple[str, ...]],
    about: list[str],
    *,
    again: list[str],
    name: str,
) -> None:
    """Writes and prints the table and the picture of the runs that have finished.

    `about` are sentences on seeds and shared stages, and `again` the command of fresh seeds without the best
    values, whose `flags` are given by name. Raises ValueError where no run has finished, or none has the
    measure.
    """
    finished = [job.name for job in jobs if sharing.is_finished(folder / job.name)]
    if not finished:
        raise ValueError(f"no run of {folder} has finished: its output says why")
    cells = table.cells_of(jobs, folder, finished)
    names = table.names_of(cells)
    measure = table.measure_of(names, cfg.measure)
    if measure is None:
        have = "; ".join(names) or "no numbers"
        raise ValueError(f"measure = {cfg.measure!r} is none of the results, which are {have}")
    is_grid = bool(cells[0].values)
    best = _best(cells, measure, cfg.seeds, flags, again) if is_grid else []
    record = disk.read_json(folder / RECORD) | {
        "about": [*about, table.ABOUT],
        "finished": finished,
        "measure": measure,
        "cells": [
            {"values": cell.values, "seeds": cell.seeds}
            | {"over seeds": {x: y._asdict() for x in names if (y := cell.over(x))}}
            for cell in cells
        ],
        "best": best,
    }
    disk.write_json(folder / RECORD, record)
    disk.write_lines(folder / CSV, table.as_csv(cells).splitlines())
    picture.draw(folder / PICTURE, cells, measure, name)
    print(f"\n{table.ABOUT}" if cfg.seeds > 1 else "")
    rich.print(table.of_cells(cells, measure, cfg.seeds) if is_grid else table.of_results(cells[0]))
    for line in [*best, f"table: {folder / CSV}", f"picture: {folder / PICTURE}", str(folder)]:
        print(line)


def _best(
    cells: Sequence[Cell], measure: str, seeds: int, flags: dict, again: list[str]
) -> list[str]:
    """The best combination, how far it is told apart from others, and that choosing it was optimistic."""
    if (chosen := table.best_of(cells, measure)) is None:
        return []
    best, close = chosen
    end = "lowest" if table.is_lower_better(measure) else "highest"
    mean = best.column(measure).mean()
    said = [f"The {end} {measure.removesuffix(table.AFTER)} is {mean:.3f}, with {best.label}."]
    if seeds == 1:
        said.append("One seed tells no difference from chance: give --seeds 3 or more.")
    elif close:
        said.append(f"It is not told apart from {'; '.join(cell.label for cell in close)}.")
    words = [grid.word_of(flags[name], value) for name, value in best.values.items()]
    command = shlex.join([*again[1:], *words, "--seeds", str(max(3, seeds))])
    said.append(
        f"Being the best of {len(cells)} flatters it. Fresh seeds tell how good it is: "
        f"{again[0]} {command}"
    )
    return said
