"""Results of a sweep over seeds: means with intervals, the best combination, and the tables of both."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from rlhf_jax.evaluation.intervals import Interval, bootstrap_interval
from rlhf_jax.pipeline.results import GOLD, HELD_OUT
from rlhf_jax.runs import disk
from rlhf_jax.sweeps.grid import Job

ABOUT = "95 % bootstrap intervals over seeds, widened for few by Student's t"
LOW = "loss", "kl", "error", "perplexity"
"""Words in the names of results of which less is better."""
OTHERS = "seconds", "peak memory, GiB"
"""Results that are about the machine."""
AFTER = ", after"


class Cell(NamedTuple):
    """A combination of values, the seeds that have finished with it, and their results."""

    values: dict[str, str]
    seeds: list[int]
    runs: list[dict[str, float]]

    @property
    def label(self) -> str:
        """The values in words."""
        return ", ".join(f"{name} {value}" for name, value in self.values.items())

    def column(self, name: str) -> np.ndarray:
        """A result of each seed; NaN where a run lacks it."""
        return np.array([run.get(name, np.nan) for run in self.runs])

    def over(self, name: str) -> Interval | None:
        """The mean of a result over seeds and its interval; None where a run lacks it."""
        values = self.column(name)
        if not len(values) or np.isnan(values).any():
            return None
        return bootstrap_interval(values)


def numbers(results: dict[str, Any], at: str = "") -> dict[str, float]:
    """Every number of a run's results by its name, as `conclusion.show` prints it; the mean of intervals."""
    found: dict[str, float] = {}
    for name, value in results.items():
        label = f"{at}, {name}" if at else name
        if isinstance(value, dict) and "mean" not in value:
            found |= {} if label in OTHERS else numbers(value, label)
            continue
        value = value["mean"] if isinstance(value, dict) else value
        if isinstance(value, int | float) and not isinstance(value, bool) and label not in OTHERS:
            found[label] = float(value)
    return found


def cells_of(jobs: Sequence[Job], folder: pathlib.Path, finished: Sequence[str]) -> list[Cell]:
    """The combinations in order, with the results of the finished runs."""
    found: dict[str, Cell] = {}
    for job in jobs:
        cell = found.setdefault(str(job.cell), Cell(job.cell, [], []))
        if job.name in finished:
            cell.seeds.append(job.seed)
            cell.runs.append(numbers(disk.read_json(folder / job.name / "results.json")))
    return [*found.values()]


def names_of(cells: Sequence[Cell]) -> list[str]:
    """Names of the results that any run has, in their order."""
    return [*dict.fromkeys(name for cell in cells for run in cell.runs for name in run)]


def measure_of(names: Sequence[str], wanted: str = "") -> str | None:
    """The result to compare: the wanted one, or else gold, the held-out reward model's score, the maximised
    reward, or the first; None where the wanted one is not there, or nothing is."""
    if wanted:
        return next((x for x in (wanted, wanted + AFTER) if x in names), None)
    best = [name for name in (GOLD + AFTER, HELD_OUT + AFTER) if name in names]
    return next(iter(best + scores_of(names) + [*names]), None)


def scores_of(names: Sequence[str]) -> list[str]:
    """The scores of responses after training, the maximised one first; results after the KL are facts."""
    until = names[: names.index("kl")] if "kl" in names else names
    return [name for name in until if name.endswith(AFTER)]


def beside(names: Sequence[str], measure: str) -> list[str]:
    """The results that the table shows beside the measure: what was maximised, the win rate, the KL."""
    wins = [name for name in names if name.startswith("win rate")]
    found = [*scores_of(names)[:1], *wins[:1], *(["kl"] if "kl" in names else [])]
    return [name for name in found if name != measure]


def is_lower_better(name: str) -> bool:
    """True for a loss, a KL and an error."""
    words = name.lower().replace(",", " ").split()
    return any(word in LOW for word in words)


def of_cells(cells: Sequence[Cell], measure: str, seeds: int) -> Table:
    """A row for each combination: its values, its seeds, the measure, and the results beside it."""
    names = [measure, *beside(names_of(cells), measure)]
    heads = [name.removesuffix(AFTER) for name in names]
    table = Table(*cells[0].values, "seeds", *heads, box=None, header_style="bold")
    for cell in cells:
        done = f"{len(cell.runs)}" + ("" if len(cell.runs) == seeds else f" of {seeds}")
        table.add_row(*cell.values.values(), done, *(said(cell.over(name)) for name in names))
    return table


def of_results(cell: Cell) -> Table:
    """A row for each result of the seeds of one command."""
    table = Table("result", "mean over seeds", "95 % interval", box=None, header_style="bold")
    for name in names_of([cell]):
        if (found := cell.over(name)) is not None:
            table.add_row(name, f"{found.mean:.3f}", ends(found, cell.column(name)))
    return table


def said(found: Interval | None) -> str:
    """An interval in words, in two lines."""
    if found is None:
        return "-"
    return f"{found.mean:.3f}" + (f"\n{found.low:.2f} to {found.high:.2f}" if known(found) else "")


def ends(found: Interval, values: np.ndarray) -> str:
    """The ends of an interval; values that are all equal come from a stage that the seeds share."""
    if not known(found):
        return "unknown, of one seed"
    if np.ptp(values) == 0:
        return "equal in all seeds"
    return f"{found.low:.3f} to {found.high:.3f}"


def known(found: Interval) -> bool:
    """True where there is an interval: two seeds or more."""
    return bool(np.isfinite([found.low, found.high]).all())


def best_of(cells: Sequence[Cell], measure: str) -> tuple[Cell, list[Cell]] | None:
    """The best combination by its mean, and those from which it is not told apart; None without results.

    Two are told apart where the interval of their difference, paired by seed, leaves out zero.
    """
    scored = [(found.mean, cell) for cell in cells if (found := cell.over(measure))]
    if len(scored) < 2:
        return None
    choose = min if is_lower_better(measure) else max
    best = choose(scored, key=lambda x: x[0])[1]
    close = [cell for _, cell in scored if cell is not best and not _differ(best, cell, measure)]
    return best, close


def _differ(a: Cell, b: Cell, measure: str) -> bool:
    of = [dict(zip(x.seeds, x.column(measure), strict=True)) for x in (a, b)]
    both = [seed for seed in of[0] if seed in of[1]]
    if len(both) < 2:
        return False
    less = bootstrap_interval(np.array([of[0][seed] - of[1][seed] for seed in both]))
    return less.low > 0 or less.high < 0


def as_csv(cells: Sequence[Cell]) -> str:
    """A line for each run: its values, its seed, and all its results."""
    names, text = names_of(cells), io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*cells[0].values, "seed", *names])
    for cell in cells:
        for seed, run in zip(cell.seeds, cell.runs, strict=True):
            lines.writerow([*cell.values.values(), seed, *(run.get(name, "") for name in names)])
    return text.getvalue()
