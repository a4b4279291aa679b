"""Gold against the number of labels: how many a strategy needs to reach what random has at the end."""

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from rlhf_jax.evaluation.intervals import Interval
from rlhf_jax.evaluation.nested_seeds import nested_bootstrap
from rlhf_jax.people import agreement
from rlhf_jax.studies.figures import COLOURS, band

RESAMPLES = 2000
BINS = 5
"""Bins of equal width in which predictions and answers are compared."""
Record = dict[str, Any]


def first_reach(
    labels: Float[np.ndarray, " K"],
    curves: Float[np.ndarray, "N K"],
    targets: Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
    """Labels at which each curve first reaches its target, linear between points; infinity where none does.

    >>> first_reach(np.array([0.0, 10, 20]), np.array([[0.0, 1, 3]]), np.array([2.0]))
    array([15.])
    """
    over = curves >= targets[:, None] - 1e-9  # a curve reaches its own last value
    at = over.argmax(axis=1)
    before = np.maximum(at - 1, 0)
    rows = np.arange(len(curves))
    low, high = curves[rows, before], curves[rows, at]
    share = np.where(at > 0, (targets - low) / np.where(high > low, high - low, 1.0), 0.0)
    reached = labels[before] + np.clip(share, 0, 1) * (labels[at] - labels[before])
    return np.where(over.any(axis=1), reached, np.inf)


def labels_to_match(
    labels: Float[np.ndarray, " K"],
    own: Float[np.ndarray, "S K"],
    random: Float[np.ndarray, "S K"],
    seed: int = 0,
) -> Interval:
    """Labels with which the mean curve of a strategy reaches random's last value, and a 95 % interval.

    Seeds are paired, and resampled together with random's; infinity: more than there were.
    """
    rows = np.random.default_rng(seed).integers(len(own), size=(RESAMPLES, len(own)))
    rows = np.concatenate([np.arange(len(own))[None], rows])  # the seeds themselves first
    means = own[rows].mean(axis=1), random[rows, -1].mean(axis=1)
    reached = first_reach(labels, *means)
    low, high = np.quantile(reached[1:], [0.025, 0.975], method="nearest")
    return Interval(float(reached[0]), float(low), float(high))


def in_words(x: Interval, most: float) -> str:
    """Numbers of labels as a table's cell, such as "152 (120 to over 240)"."""
    said = [f"{end:.0f}" if np.isfinite(end) else f"over {most:.0f}" for end in x]
    return f"{said[0]} ({said[1]} to {said[2]})"


def calibration_error(
    predicted: Float[np.ndarray, " N"], said: Float[np.ndarray, " N"]
) -> float | None:
    """Expected calibration error: the mean gap of prediction and share of votes, over bins of predictions.

    None without a pair (Guo et al., 2017, with the votes of people in place of one label).
    """
    if not len(predicted):
        return None
    at = np.minimum((predicted * BINS).astype(int), BINS - 1)
    gaps = np.bincount(at, predicted - said, minlength=BINS)
    return float(np.abs(gaps).sum() / len(predicted))


def row(
    strategy: str, runs: list[Record], random: list[Record] | None, start: float
) -> dict[str, Any]:
    """The row of a strategy in the table, over its seeds; `random` has random's runs on the same seeds."""
    labels = np.array([0, *(x["labels"] for x in runs[0]["rounds"])], float)
    over = lambda runs, name: np.array([[x[name] for x in run["rounds"]] for run in runs], float)
    interval = lambda x: nested_bootstrap(x, np.mean)._asdict()
    gold, accuracy = over(runs, "gold"), over(runs, "accuracy")
    found = {
        "strategy": strategy,
        "labels": int(labels[-1]),
        "gold after the first round": interval(gold[:, 0]),
        "gold after the last": interval(gold[:, -1]),
        "rise": interval(gold[:, -1] - gold[:, 0]),
        "reward accuracy": interval(accuracy[:, -1]),
        "win rate": interval(over(runs, "win rate")[:, -1]),
    }
    if random is not None:
        begin = np.full((len(gold), 1), start)
        with_start = lambda x: np.concatenate([begin, x], axis=1)
        own, other = with_start(gold), with_start(over(random, "gold"))
        found["gold beyond random"] = interval((own - other)[:, 1:].mean(axis=1))
        gap = (accuracy - over(random, "accuracy")).mean(axis=1)
        found["accuracy beyond random"] = interval(gap)
        for_gold = labels_to_match(labels, own, other)
        for_accuracy = labels_to_match(labels[1:], accuracy, over(random, "accuracy"))
        found["labels for random's gold"] = in_words(for_gold, labels[-1])
        found["labels for random's accuracy"] = in_words(for_accuracy, labels[-1])
    uniform = [pair for run in runs for pair in run["uniform"]]
    items = np.concatenate([np.full(len(x["votes"]), n) for n, x in enumerate(uniform)])
    votes = np.concatenate([x["votes"] for x in uniform])
    alpha = agreement.alpha_interval(items.astype(int), votes, "nominal")
    asked = [x for x in uniform if x["predicted"] is not None and x["votes"]]
    asked = [(x["predicted"], np.mean(x["votes"])) for x in asked]
    predicted, said = np.array(asked, float).reshape(-1, 2).T
    return found | {
        "agreement": {"mean": alpha.alpha, "low": alpha.low, "high": alpha.high},
        "calibration error": calibration_error(predicted, said),
    }


def verdict(rows: list[dict[str, Any]]) -> str:
    """Power of the experiment: the controls must come out, duplicates below random and gold above it."""
    named = {x["strategy"]: x for x in rows}
    wrong = [
        name
        for name, sign in (("duplicates", -1), ("gold", 1))
        if name in named
        and min(sign * named[name]["accuracy beyond random"][x] for x in ("low", "high")) <= 0
    ]
    missing = [name for name in ("duplicates", "gold") if name not in named]
    if missing:
        return f"not known without {' and '.join(missing)}"
    if wrong:
        return f"none: {' and '.join(wrong)} cannot be told from random"
    return "the controls came out: duplicates below random, gold above"


def results(table: str, runs: dict[str, list[Record]], start: float) -> dict[str, Any]:
    """The results of the study: the table of strategies, its power, and the two ways of aggregation."""
    random = runs.get("random")
    rows = [row(name, own, random, start) for name, own in runs.items()]
    found: dict[str, Any] = {table: rows, "gold of the reference": start}
    if random is None:
        return found
    last = lambda name: np.array([run["rounds"][-1][name] for run in random])
    found["power"] = verdict(rows)
    for what in ("right", "accuracy"):
        words = {"right": "label accuracy", "accuracy": "reward accuracy"}[what]
        majority, better = last(f"{what} by majority"), last(f"{what} by dawid_skene")
        found[f"{words} by majority"] = nested_bootstrap(majority, np.mean)._asdict()
        gain = nested_bootstrap(better - majority, np.mean)._asdict()
        found[f"{words} by Dawid-Skene, beyond that"] = gain
    return found


def picture(path, runs: dict[str, list[Record]], start: float):
    """Draws gold of the policy and accuracy of the reward model against labels, a line for each strategy."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2),
        ("gold", "accuracy"),
        ("Gold of the policy on held-out prompts", "Accuracy of the reward model, by gold"),
        strict=True,
    ):
        for colour, (strategy, seeds) in zip(COLOURS, runs.items(), strict=False):
            curves = []
            for run in seeds:
                points = [(x["labels"], x[name]) for x in run["rounds"]]
                if name == "gold":
                    points = [(0, start), *points]
                curves.append(tuple(np.array(points, float).T))
            style = "--" if strategy in ("duplicates", "gold") else "-"
            grid = curves[0][0]
            band(axes, curves, grid, colour, strategy, style)
        axes.set_xlabel("pairs asked about")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(
        frameon=False, fontsize=8, title="strategy (controls dashed)", title_fontsize=8
    )
    figure.savefig(path, dpi=120)
