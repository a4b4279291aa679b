"""How well scores of single responses agree with labels and ratings by people, with 95 % intervals."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from rlhf_jax.evaluation.intervals import (
    Groups,
    Interval,
    Weights,
    check_finite,
    group_numbers,
    percentile_interval,
)

Statistic = Callable[
    [Float[np.ndarray, " N"], Float[np.ndarray, " N"], Float[np.ndarray, " N"]], float
]
"""Function of (scores, labels, weight of each row) that returns a number."""


def auc(scores, labels, weights) -> float:
    """The area under the ROC curve: how often a good response scores above a bad one, ties counting half.

    A response is good where its label is above 1/2; each of a pair's responses counts by its weight. 1/2
    where one kind has no weight.
    """
    place = np.unique(scores, return_inverse=True)[1]  # equal scores share one place
    good, bad = (
        np.bincount(place, weights * side, minlength=place.max() + 1)
        for side in (labels > 0.5, labels <= 0.5)
    )
    below = np.cumsum(bad) - 0.5 * bad
    total = good.sum() * bad.sum()
    return float(good @ below / total) if total else 0.5


def correlation(scores, labels, weights) -> float:
    """Pearson's correlation of scores and labels, each row counting by its weight; 0 for a constant."""
    share = weights / weights.sum()
    x, y = scores - share @ scores, labels - share @ labels
    spread = np.sqrt((share @ x**2) * (share @ y**2))
    tiny = 1e-12 * np.abs(scores).max() * np.abs(labels).max()  # up to rounding
    return float(share @ (x * y) / spread) if spread > tiny else 0.0


def compared(
    statistic: Statistic,
    scores: dict[str, Float[np.ndarray, " N"]],
    labels: Float[np.ndarray, " N"],
    groups: Groups = None,
    seed: int = 0,
    resamples: int = 1000,
    counts: Weights = None,
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """(the statistic of each of `scores`, the first one's less each other's), by name, with intervals.

    The intervals are bootstraps over whole `groups` (without them: over rows), as `percentile_interval`
    widens them. The differences are paired: both are measured on the same resamples. `counts` are the weights
    of the rows.
    """
    labels, (first, *others) = check_finite(labels, "labels"), scores
    scores = {name: check_finite(x, name) for name, x in scores.items()}
    group = np.arange(len(labels)) if groups is None else group_numbers(groups, len(labels))
    n, rng = int(group.max()) + 1, np.random.default_rng(seed)
    counts = np.ones(len(labels)) if counts is None else np.asarray(counts)
    times = [rng.multinomial(n, np.full(n, 1 / n))[group] for _ in range(resamples)]
    values = {
        name: np.array([statistic(x, labels, counts * often) for often in (1, *times)])
        for name, x in scores.items()
    }
    interval = lambda x: percentile_interval(x[0], x[1:], n)
    own = {name: interval(x) for name, x in values.items()}
    return own, {name: interval(values[first] - values[name]) for name in others}
