"""Means with their intervals, win rates, accuracy and calibration of held-out judgements."""

from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, Shaped
from scipy.special import expit

Groups = Sequence[Hashable] | np.ndarray | None


class Interval(NamedTuple):
    """A mean, or another estimate, and its confidence interval."""

    mean: float
    low: float
    high: float


class LengthBaseline(NamedTuple):
    """The rule that was better on the training pairs, "longer" or "shorter" wins, and its accuracy."""

    rule: str
    accuracy: Interval


class LengthReport(NamedTuple):
    """How much of a reward model is a taste for length.

    Correlations over responses of their score with their length: plain, and given gold. Accuracies on the
    pairs whose longer response was chosen, and on those whose shorter was, `pairs_` of each. What there is
    nothing to tell by is None.
    """

    correlation: Interval
    correlation_given_gold: Interval | None
    accuracy_longer_chosen: Interval | None
    accuracy_shorter_chosen: Interval | None
    pairs_longer_chosen: int
    pairs_shorter_chosen: int


class CalibrationRow(NamedTuple):
    """The pairs whose predicted probability lies in (low, high]: the mean of it, and what happened."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def bootstrap_interval(
    values: Shaped[np.ndarray, " N"],
    groups: Groups = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The mean and its percentile bootstrap interval (Efron, 1979).

    With `groups` [N], whole groups are resampled (values that share a prompt are not independent), and
    the mean is still over values. Raises ValueError for no values, or one that is not finite.
    """
    values = _finite(values, "values")
    if groups is None:
        sums, counts = values, np.ones(len(values))
    else:
        group = np.unique(_labels(groups, len(values)), return_inverse=True)[1]
        sums, counts = np.bincount(group, values), np.bincount(group).astype(float)
    rng, n = np.random.default_rng(seed), len(sums)
    means = np.empty(resamples)
    chunk = max(1, 1_000_000 // n)  # bounds the memory
    for start in range(0, resamples, chunk):
        rows = rng.integers(n, size=(min(chunk, resamples - start), n))
        means[start : start + chunk] = sums[rows].sum(1) / counts[rows].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def wilson_interval(successes: float | int, n: int, level: float = 0.95) -> Interval:
    """A share and its Wilson score interval (Wilson, 1927), which holds at 0 and 1 and for small `n`.

    Half successes (ties) are allowed, and make the interval a little wide. Raises ValueError where n is 0.
    """
    if n < 1:
        raise ValueError("n is 0: a share needs at least one judgement")
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(float(p), max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def accuracy(margins: Num[np.ndarray, " N"], groups: Groups = None) -> Interval:
    """The share of positive margins, a zero counting half.

    The interval is Wilson's; with `groups` it is the bootstrap over them.
    Raises ValueError for no margins, or one that is not finite.
    """
    right = 0.5 + 0.5 * np.sign(_finite(margins, "margins"))
    if groups is not None:
        return bootstrap_interval(right, groups)
    return wilson_interval(float(right.sum()), len(right))


def win_rate(a: Num[np.ndarray, " N"], b: Num[np.ndarray, " N"], groups: Groups = None) -> Interval:
    """How often `a` scores above `b` on the same prompt, ties counting half; intervals as `accuracy`."""
    return accuracy(_finite(a, "a") - _finite(b, "b"), groups)


def length_baseline(
    lengths_chosen_train: Num[np.ndarray, " M"],
    lengths_rejected_train: Num[np.ndarray, " M"],
    lengths_chosen: Num[np.ndarray, " N"],
    lengths_rejected: Num[np.ndarray, " N"],
    groups: Groups = None,
) -> LengthBaseline:
    """What length alone predicts: the rule is chosen on the training pairs, its accuracy held out."""
    longer = win_rate(lengths_chosen_train, lengths_rejected_train).mean >= 0.5
    chosen, rejected = _finite(lengths_chosen, "lengths"), _finite(lengths_rejected, "lengths")
    margins = chosen - rejected if longer else rejected - chosen
    return LengthBaseline("longer" if longer else "shorter", accuracy(margins, groups))


def partial_correlation(
    x: Num[np.ndarray, " N"], y: Num[np.ndarray, " N"], given: Num[np.ndarray, " N"] | None = None
) -> float:
    """The correlation of what a line in `given` leaves of x with what it leaves of y (Yule, 1907).

    Without `given`, Pearson's. 0 where nothing is left of x or of y (less than 1e-6 of its deviation).
    Raises ValueError for no values, or one that is not finite.
    """
    return float(_partial(_moments(x, y, given).sum(axis=0)))


def length_report(
    scores: Num[np.ndarray, "N 2"],
    lengths: Num[np.ndarray, "N 2"],
    gold: Num[np.ndarray, "N 2"] | None = None,
    groups: Groups = None,
    seed: int = 0,
    resamples: int = 1000,
) -> LengthReport:
    """What length does to scores, on pairs: column 0 is the chosen response, column 1 the rejected.

    A reward model may score long texts high because they are better: the correlation given `gold`, the
    true score, is what it has beyond that (on a line). Where people did not care for length, an honest
    model is right as often where the longer response was chosen as where the shorter was, and one that
    counts words in the first alone. Intervals are 95 %: for correlations the bootstrap over `groups` (over
    pairs without), for accuracies as in `accuracy`. Pairs of equal length are in the correlations only.
    """
    rng, n = np.random.default_rng(seed), len(scores)
    names = np.arange(n) if groups is None else _labels(groups, n)
    group = np.unique(names, return_inverse=True)[1]
    margins, longer = scores[:, 0] - scores[:, 1], np.sign(lengths[:, 0] - lengths[:, 1])

    def correlation(given):
        rows = _moments(*(None if x is None else x.reshape(-1) for x in (scores, lengths, given)))
        sums = np.zeros((group.max() + 1, 4, 4))
        np.add.at(sums, np.repeat(group, 2), rows)
        share = np.full(len(sums), 1 / len(sums))
        draws = (rng.multinomial(len(sums), share) for _ in range(resamples))
        found = _partial(np.stack([np.tensordot(times, sums, 1) for times in draws]))
        low, high = np.quantile(found, [0.025, 0.975])
        return Interval(float(_partial(rows.sum(axis=0))), float(low), float(high))

    def within(rows):
        if not rows.any():
            return None
        return accuracy(margins[rows], None if groups is None else group[rows])

    return LengthReport(
        correlation=correlation(None),
        correlation_given_gold=None if gold is None else correlation(gold),
        accuracy_longer_chosen=within(longer > 0),
        accuracy_shorter_chosen=within(longer < 0),
        pairs_longer_chosen=int(np.sum(longer > 0)),
        pairs_shorter_chosen=int(np.sum(longer < 0)),
    )


def calibration_table(margins: Num[np.ndarray, " N"], bins: int = 5) -> list[CalibrationRow]:
    """How often the response that the model prefers was the chosen one, by how sure the model is.

    `margins` are score(chosen) - score(rejected). The prediction of a pair is sigmoid(|margin|), from 0.5
    to 1, for the response with the higher score; it is observed to hold where the margin is positive, and
    half holds at zero. This is the table of a judge who is shown each pair in either order, folded at 0.5:
    the row for p and the row for 1 - p say the same. `bins` are equally wide, and empty ones left out.
    """
    margins = _finite(margins, "margins")
    predicted, observed = expit(np.abs(margins)), 0.5 + 0.5 * np.sign(margins)
    edges = np.linspace(0.5, 1.0, bins + 1)
    bin_of = np.clip(np.ceil((predicted - 0.5) * 2 * bins).astype(int) - 1, 0, bins - 1)
    return [
        CalibrationRow(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(np.sum(bin_of == i)),
            predicted=float(predicted[bin_of == i].mean()),
            observed=float(observed[bin_of == i].mean()),
        )
        for i in range(bins)
        if np.any(bin_of == i)
    ]


def ece(margins: Num[np.ndarray, " N"], bins: int = 5) -> float:
    """The expected calibration error (Naeini et al., 2015): mean |predicted - observed| over the table."""
    rows = calibration_table(margins, bins)
    total = sum(row.count * abs(row.predicted - row.observed) for row in rows)
    return total / sum(row.count for row in rows)


def _moments(x, y, given) -> Float[np.ndarray, "N 4 4"]:
    """The products of 1, x, y and `given` in each row, the last three to mean 0 and variance 1, or all 0."""
    columns = [np.ones(len(x))]
    for name, values in (("x", x), ("y", y), ("given", 0.0 * x if given is None else given)):
        values = _finite(values, name)
        left, deviation = values - values.mean(), values.std()
        constant = deviation <= 1e-10 * np.abs(values).max()  # but for rounding
        columns.append(0.0 * left if constant else left / deviation)
    rows = np.stack(columns, axis=1)
    return rows[:, :, None] * rows[:, None, :]


def _partial(moments: Float[np.ndarray, "*R 4 4"]) -> Float[np.ndarray, "*R"]:
    """The correlation of x and y given the third, from sums of `_moments` over rows."""
    mean = moments / moments[..., :1, :1]
    covariance = mean[..., 1:, 1:] - mean[..., 1:, :1] * mean[..., :1, 1:]
    given = covariance[..., 2:, 2:]
    slope = covariance[..., :2, 2:] / np.where(given > 1e-12, given, np.inf)
    left = covariance[..., :2, :2] - slope * covariance[..., 2:, :2]
    x, y = left[..., 0, 0], left[..., 1, 1]
    defined = np.minimum(x, y) > 1e-12
    return np.where(defined, left[..., 0, 1] / np.sqrt(np.where(defined, x * y, 1.0)), 0.0)


def _finite(values, name: str) -> np.ndarray:
    """The values as float64, refused where there are none or one is not finite."""
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError(f"{name} are empty: at least one is needed")
    if not np.all(np.isfinite(values)):
        i = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{name}[{i}] is {values[i]}: all of them must be finite")
    return values


def _labels(groups, n: int) -> np.ndarray:
    if len(groups) != n:
        raise ValueError(f"there are {len(groups)} groups for {n} values: each value needs one")
    return np.asarray(groups)
