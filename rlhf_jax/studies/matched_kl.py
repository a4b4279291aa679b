"""Gold of methods at the same KL, interpolated between the runs of each method: numbers, and curves to draw.

A run is a point {"kl", "gold"}; `runs` are the points of each seed.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.evaluation.nested_seeds import nested_bootstrap
from rlhf_jax.studies import figures


def gold_at(points: Sequence[dict], start: float, kl: float) -> float:
    """Gold at a KL between the runs of one seed, where the reference has gold `start`; NaN beyond them."""
    x, y = np.array([(0.0, start), *[(p["kl"], p["gold"]) for p in points]]).T
    order = np.argsort(x)
    return float(np.interp(np.sqrt(kl), np.sqrt(np.maximum(x[order], 0)), y[order], right=np.nan))


def mean_gold(runs: Sequence[Sequence[dict]], start: float, kl: float) -> float:
    """Mean gold over seeds at a KL; a seed that does not reach the KL counts at its largest one."""
    reached = [min(kl, max(p["kl"] for p in points)) for points in runs]
    return float(np.mean([gold_at(p, start, x) for p, x in zip(runs, reached, strict=True)]))


def table_row(
    runs: Sequence[Sequence[dict]], start: float, frontier: maths.Frontier, kls: Sequence[float]
) -> dict:
    """Gold and regret of a method at each KL, and gold at the largest KL that all seeds reach."""
    interval = lambda x: nested_bootstrap(np.reshape(x, (-1, 1, 1)))._asdict()
    row = {}
    for kl in kls:
        golds = np.array([gold_at(points, start, kl) for points in runs])
        for name, x in (("gold", golds), ("regret", maths.regret(frontier, kl, golds))):
            row[f"{name} at KL {kl:g}"] = interval(x) if np.isfinite(x).all() else None
    end = min(max(p["kl"] for p in points) for points in runs)
    golds = np.array([gold_at(points, start, end) for points in runs])
    return row | {"largest KL": end, "gold at largest KL": interval(golds)}


def draw(path, runs: dict[str, list], start: float, frontier: maths.Frontier, kls: Sequence[float]):
    """Draws gold against KL for the runs of each method, with the frontier and the matched KLs."""
    end = max(p["kl"] for own in runs.values() for points in own for p in points)
    x = np.linspace(0, end, 120)
    curves = {
        name: (x, np.array([[gold_at(points, start, kl) for kl in x] for points in own]))
        for name, own in runs.items()
    }
    dots = {
        name: np.array([(p["kl"], p["gold"]) for points in own for p in points]).T
        for name, own in runs.items()
    }
    figures.comparison(path, curves, dots, frontier, kls)
