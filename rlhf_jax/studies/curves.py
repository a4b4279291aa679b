"""Gold and proxy against KL in a study of over-optimization: numbers, and curves to draw."""

from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.evaluation.nested_seeds import nested_bootstrap

WAYS = {
    "best of n": "best_of_n",
    "RL": "rl",
}  # ways to spend KL, and the curve of Gao et al. for each
MATCHED = (1.0, 2.0, 4.0)  # KLs of the reported regrets, nats a response


class Cell(NamedTuple):
    """One setting of the study; its runs have one result for each seed."""

    gold: str
    size: str  # of the reward model
    pairs: int | None  # None: gold itself is the reward

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return f"{self.gold}-gold" if self.pairs is None else "-".join(map(str, self))


def panels(found: dict[Cell, list], size: str) -> dict[str, dict[str, list]]:
    """Picture panels by gold and way: for each cell a label, the curves of its seeds, and a fit.

    The cells are those of reward models of `size`, and gold itself. The fit is to the lower half of their KL.
    """
    drawn = {}
    for cell, runs in found.items():
        ways = drawn.setdefault(cell.gold, {way: [] for way in WAYS})
        for way, form in WAYS.items():
            curves = [curve for run in runs if (curve := curve_of(run, way)) is not None]
            if not curves or (cell.pairs is not None and cell.size != size):
                continue
            beyond = extrapolate(*pool(curves, min(kl.max() for kl, _, _ in curves)), form)
            label = "gold itself" if cell.pairs is None else str(cell.pairs)
            ways[way].append((label, curves, beyond.fit if beyond else None))
    return drawn


def table_rows(runs: list, frontier: maths.Frontier, shape: tuple, cell: Cell) -> list[dict]:
    """One row for the best of n of a cell, and one for its policies; `shape` is that of the nested seeds."""
    about = {"gold": cell.gold, "reward model": cell.size, "pairs": cell.pairs}
    interval = lambda values: nested_bootstrap(np.reshape(values, shape))._asdict()
    rows = []
    for way, form in WAYS.items():
        curves = [curve_of(x, way) for x in runs]
        if any(curve is None for curve in curves):
            continue
        kls, golds, proxies = zip(*curves, strict=True)
        x, gain = pool(curves, min(kl.max() for kl in kls))
        if len(np.unique(x[x > 0])) < 5:  # too few points for a curve, as in a trial
            continue
        turn = maths.turning_point(kls, golds)
        fitted, beyond = maths.fit(x, gain, form), extrapolate(x, gain, form)
        end = lambda ys, kls=kls, kl=turn.end: interval(
            [np.interp(kl, x, y) for x, y in zip(kls, ys, strict=True)]
        )
        row = about | {"policy": way}
        if cell.pairs is not None:
            row["accuracy"] = interval([x["accuracy"] for x in runs])
        at = {"mean": turn.kl, "low": turn.low, "high": turn.high}
        row |= {
            "alpha": fitted.alpha,
            "beta": fitted.beta,
            "R2": fitted.r2,
            "R2 beyond half the KL": beyond.r2 if beyond else None,
            "gold turns at KL": at if turn.turned else None,
            "share of resamples that turn": turn.share,
            "fall after it": turn.drop,
            "end: largest KL of all seeds": turn.end,
            "gold at the end": end(golds),
            "proxy at the end": end(proxies),
        }
        for kl in MATCHED:
            values = [
                np.interp(kl, x, gold, right=np.nan) for x, gold in zip(kls, golds, strict=True)
            ]
            lost = maths.regret(frontier, kl, np.array(values))
            known = np.all(np.isfinite(lost))
            row[f"regret at KL {kl:g}"] = interval(lost) if known else None
        rows.append(row)
    return rows


def extrapolate(x, gain, form) -> maths.Extrapolation | None:
    """A curve fitted up to half the KL and tested beyond; None if either half has too few points."""
    lower, upper = x[(x > 0) & (x <= x.max() / 2)], x[x > x.max() / 2]
    enough = len(np.unique(lower)) >= 2 and len(upper) >= 2
    return maths.extrapolation(x, gain, form, 0.5) if enough else None


def pool(curves, end):
    """KL and gain of gold of all seeds, up to the KL `end`."""
    x = np.concatenate([kl for kl, _, _ in curves])
    gain = np.concatenate([gold - gold[0] for _, gold, _ in curves])
    return x[x <= end], gain[x <= end]


def curve_of(run_of_seed, way):
    """KL (ascending), gold and proxy of one small run; None without any.

    The curve of RL is over windows of a tenth of it: means, and for KL the median, which a few responses
    cannot dominate.
    """
    if way == "best of n":
        if "gold" not in run_of_seed:
            return None
        return tuple(np.array(run_of_seed[name]) for name in ("kl", "gold", "proxy"))
    if "rl" not in run_of_seed:
        return None
    rl = {name: np.array(x, float) for name, x in run_of_seed["rl"].items()}
    width = max(1, len(rl["kl"]) // 10)
    windows = lambda x: np.lib.stride_tricks.sliding_window_view(x, width)
    start = lambda x, mean: np.concatenate([x[:1], mean(windows(x), axis=1)])  # the reference first
    kl = np.maximum(start(rl["kl"], np.median), 0.0)  # an estimate from samples may be negative
    order = np.argsort(kl, kind="stable")
    return (kl[order], *(start(rl[name], np.mean)[order] for name in ("gold", "proxy")))
