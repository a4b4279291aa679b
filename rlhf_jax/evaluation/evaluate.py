"""Means with their intervals, win rates, accuracy and calibration of held-out judgements.

How often an interval that says 95 % holds the truth was measured, and stands with each function;
`pytest -m more tests/evaluation/test_intervals.py` measures it again.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, Shaped
from scipy.special import expit
from scipy.stats import norm
from scipy.stats import t as student

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


def widening(n: int, level: float = 0.95) -> float:
    """By how much a bootstrap interval from `n` values or groups is too narrow: t / z sqrt(n / (n - 1)).

    Resamples of few values vary too little, and a percentile is the normal law's and not Student's
    (Hesterberg, 2015, section 3). 9.2 for 2 values, 2.7 for 3, 1.2 for 10, 1.02 for 100.
    """
    quantile = (1 + level) / 2
    return float(student.ppf(quantile, n - 1) / norm.ppf(quantile) * np.sqrt(n / (n - 1)))


def widened(estimate, found: Float[np.ndarray, " R"], n: int, level: float = 0.95) -> Interval:
    """The percentile interval of resamples `found` from `n` values, `widening` times as far from `estimate`.

    From one value alone nothing can be said: it is infinite.
    """
    if n < 2:
        return Interval(float(estimate), -np.inf, np.inf)
    ends = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    low, high = estimate + widening(n, level) * (ends - estimate)
    return Interval(float(estimate), float(low), float(high))


def bootstrap_interval(
    values: Shaped[np.ndarray, " N"],
    groups: Groups = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The mean and its bootstrap interval (Efron, 1979), `widened` for the number of values or groups.

    With `groups` [N], whole groups are resampled (values that share a prompt are not independent), and
    the mean is still over values. Raises ValueError for no values, or one that is not finite.

    95 % intervals of 2, 3, 5, 10, 30 and 100 values hold the mean so often: normal .93, .93, .95, .95, .95,
    .94; exponential .89, .88, .88, .91, .93, .94. Of 5 to 100 ragged groups: .94.
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
    return widened(values.mean(), means, n, level)


def wilson_interval(successes: float | int, n: float | int, level: float = 0.95) -> Interval:
    """A share and its Wilson score interval (Wilson, 1927), which holds at 0 and 1 and for small `n`.

    Half successes (ties) are allowed, and the interval does not know of them: their judgements vary less
    than wins and losses do, so it is wide, and where most are ties it holds the truth always.
    `n` may be an effective number, as `effective_size` makes it. Raises ValueError where it is not above 0.

    95 % intervals of 10, 30, 100 and 1000 judgements hold the share so often: .5 .98, .96, .94, .95; .76 .98,
    .95, .95, .95; .97 .97, .94, .97, .95. Of 30 judgements of which .2, .5 and .8 are ties: .97, .99, 1.00.
    """
    if not n > 0:
        raise ValueError(f"n = {n}: a share needs at least one judgement")
    z, p = norm.ppf((1 + level) / 2), successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low = (
        0.0 if p == 0 else max(0.0, float(centre - half))
    )  # exact, where the difference is rounded
    high = 1.0 if p == 1 else min(1.0, float(centre + half))
    return Interval(float(p), low, high)


def effective_size(values: Float[np.ndarray, " N"], groups: Groups, level: float = 0.95) -> float:
    """How many independent judgements `values` from 0 to 1 are worth, for Wilson's interval: N at most.

    N over the design effect, the variance of the mean over groups beside that of N independent judgements
    (Kish, 1965), times (t of N / t of the groups)^2, for that variance is itself an estimate (Korn and
    Graubard, 1998). Where all groups have the same mean, as at 0 and 1, it says nothing: then as if each
    group were one judgement, N^2 / sum of squared sizes. N where no two values share a group.
    """
    group = np.unique(_labels(groups, len(values)), return_inverse=True)[1]
    sums, sizes = np.bincount(group, values), np.bincount(group)
    n, many, p = len(values), len(sizes), values.mean()
    if many in (1, n):
        return float(many)
    away = sums - p * sizes
    if np.allclose(away, 0.0):
        effect = np.sum(sizes**2) / n
    else:
        effect = many / (many - 1) * np.sum(away**2) / n**2 / (p * (1 - p) / (n - 1))
    fewer = student.ppf((1 + level) / 2, n - 1) / student.ppf((1 + level) / 2, many - 1)
    return float(n / max(effect, 1.0) * fewer**2)


def accuracy(margins: Num[np.ndarray, " N"], groups: Groups = None) -> Interval:
    """The share of positive margins, a zero counting half.

    The interval is Wilson's; with `groups` of their `effective_size`. Raises ValueError for no margins, or
    one that is not finite.

    95 % intervals of groups of 4 that correlate by .3 hold the share so often: .76 of 10, 30 and 100 groups
    .96, .94, .95; .97 .96, .97, .93. Of 30 groups whose judgements are all alike, .97: .92; of 30 groups of 1
    to 31 that correlate by .3, .97: .86, for few of them then err at all.
    """
    right = 0.5 + 0.5 * np.sign(_finite(margins, "margins"))
    n = len(right) if groups is None else effective_size(right, groups)
    found = wilson_interval(float(right.mean() * n), n)
    return found._replace(mean=float(right.mean()))


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
    pairs without), `widened`, for accuracies as in `accuracy`. Pairs of equal length are in the correlations
    only.

    95 % intervals of 10, 30 and 100 groups of two pairs hold a correlation of .8 so often: .95, .93,
    .95.
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
        plain = widened(_partial(rows.sum(axis=0)), found, len(sums))
        return plain._replace(low=max(plain.low, -1.0), high=min(plain.high, 1.0))

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
