"""Diagnostics of a reward model on held-out pairs: calibration, and how much it rewards length."""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Num

from rlhf_jax.evaluation.intervals import (
    Groups,
    Interval,
    Weights,
    accuracy,
    check_finite,
    group_numbers,
    percentile_interval,
    win_rate,
)


class LengthBaseline(NamedTuple):
    """The better rule on the training pairs, "longer" or "shorter" wins, and its held-out accuracy."""

    rule: str
    accuracy: Interval


class LengthReport(NamedTuple):
    """How strongly a reward model prefers length.

    The correlations are over responses, of score with length: plain, and given gold. The accuracies are on
    pairs whose longer response was chosen and on pairs whose shorter response was chosen; `pairs_` count
    them. A value without data is None.
    """

    correlation: Interval
    correlation_given_gold: Interval | None
    accuracy_longer_chosen: Interval | None
    accuracy_shorter_chosen: Interval | None
    pairs_longer_chosen: int
    pairs_shorter_chosen: int


class CalibrationRow(NamedTuple):
    """Mean predicted probability and observed frequency of the pairs predicted in (low, high]."""

    low: float
    high: float
    count: int
    predicted: float
    observed: float


def length_baseline(
    lengths_chosen_train: Num[np.ndarray, " M"],
    lengths_rejected_train: Num[np.ndarray, " M"],
    lengths_chosen: Num[np.ndarray, " N"],
    lengths_rejected: Num[np.ndarray, " N"],
    groups: Groups = None,
    weights_train: Weights = None,
    weights: Weights = None,
) -> LengthBaseline:
    """The accuracy of length alone: the rule is chosen on the training pairs and measured on the others.

    Each pair counts by its weight; a training pair of which neither response is better has none.
    """
    longer = np.sign(np.subtract(lengths_chosen_train, lengths_rejected_train))
    if np.sum(longer if weights_train is None else longer * weights_train) >= 0:
        return LengthBaseline("longer", win_rate(lengths_chosen, lengths_rejected, groups, weights))
    return LengthBaseline("shorter", win_rate(lengths_rejected, lengths_chosen, groups, weights))


def length_report(
    scores: Num[np.ndarray, "N 2"],
    lengths: Num[np.ndarray, "N 2"],
    gold: Num[np.ndarray, "N 2"] | None = None,
    groups: Groups = None,
    seed: int = 0,
    resamples: int = 1000,
    weights: Weights = None,
) -> LengthReport:
    """The effect of length on scores of pairs: column 0 is the chosen response, column 1 the rejected.

    A reward model may score long texts high because they are better. The correlation given `gold`, the
    true score, is that of the residuals after linear regression on it (Yule, 1907), and 0 where nothing is
    left (less than 1e-6 of a deviation). If people ignored length, a model without a length bias is as
    accurate where the longer response was chosen as where the shorter was; a model that counts words is right
    only in the first case. Correlations have bootstrap intervals over `groups` (without them: over pairs),
    accuracies those of `accuracy`, with the `weights` of pairs; all are 95 %. Pairs of equal length enter the
    correlations only.

    Coverage for a correlation of .8 over 10, 30 and 100 groups of two pairs: .95, .93, .95.
    """
    rng, n = np.random.default_rng(seed), len(scores)
    group = np.arange(n) if groups is None else group_numbers(groups, n)
    margins, longer = scores[:, 0] - scores[:, 1], np.sign(lengths[:, 0] - lengths[:, 1])

    def correlation(given):
        rows = _moments(*(None if x is None else x.reshape(-1) for x in (scores, lengths, given)))
        sums = np.zeros((group.max() + 1, 4, 4))
        np.add.at(sums, np.repeat(group, 2), rows)
        share = np.full(len(sums), 1 / len(sums))
        draws = (rng.multinomial(len(sums), share) for _ in range(resamples))
        found = _partial(np.stack([np.tensordot(times, sums, 1) for times in draws]))
        plain = percentile_interval(_partial(rows.sum(axis=0)), found, len(sums))
        return plain._replace(low=max(plain.low, -1.0), high=min(plain.high, 1.0))

    def within(rows):
        if not rows.any():
            return None
        of = None if weights is None else np.asarray(weights)[rows]
        return accuracy(margins[rows], None if groups is None else group[rows], of)

    return LengthReport(
        correlation=correlation(None),
        correlation_given_gold=None if gold is None else correlation(gold),
        accuracy_longer_chosen=within(longer > 0),
        accuracy_shorter_chosen=within(longer < 0),
        pairs_longer_chosen=int(np.sum(longer > 0)),
        pairs_shorter_chosen=int(np.sum(longer < 0)),
    )


def calibration_table(
    margins: Num[np.ndarray, " N"],
    bins: int = 5,
    probability: Weights = None,
    weights: Weights = None,
) -> list[CalibrationRow]:
    """How often people chose the response that the model prefers, by the confidence of the model.

    `margins` are score(chosen) - score(rejected). The prediction of a pair is sigmoid(|margin|), from 0.5
    to 1, for the response with the higher score; it is correct where the margin is positive, and half
    correct at zero; where a share of people, `probability`, chose the first, it is correct for them alone.
    Pairs count by their `weights`. This equals the table of a judge who sees each pair in random order,
    folded at 0.5, where the rows for p and 1 - p agree. `bins` are equally wide; empty bins are left out.
    """
    return [row for row, _ in _weighed_rows(margins, bins, probability, weights)]


def ece(
    margins: Num[np.ndarray, " N"],
    bins: int = 5,
    probability: Weights = None,
    weights: Weights = None,
) -> float:
    """The expected calibration error (Naeini et al., 2015): mean |predicted - observed| over the table."""
    rows = _weighed_rows(margins, bins, probability, weights)
    total = sum(weight * abs(row.predicted - row.observed) for row, weight in rows)
    return total / sum(weight for _, weight in rows)


def _weighed_rows(margins, bins, probability, weights) -> list[tuple[CalibrationRow, float]]:
    """The rows of the calibration table, each with the weight of its pairs."""
    margins = check_finite(margins, "margins")
    sure = 1.0 if probability is None else 2 * np.asarray(probability) - 1
    predicted, observed = scipy.special.expit(np.abs(margins)), 0.5 + 0.5 * sure * np.sign(margins)
    weights = np.ones(len(margins)) if weights is None else np.asarray(weights)
    edges = np.linspace(0.5, 1.0, bins + 1)
    bin_of = np.clip(np.ceil((predicted - 0.5) * 2 * bins).astype(int) - 1, 0, bins - 1)
    rows = []
    for i in np.unique(bin_of):
        here = bin_of == i
        mean = lambda x, here=here: float(np.average(x[here], weights=weights[here]))
        row = CalibrationRow(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            count=int(here.sum()),
            predicted=mean(predicted),
            observed=mean(observed),
        )
        rows.append((row, float(weights[here].sum())))
    return rows


def _moments(x, y, given) -> Float[np.ndarray, "N 4 4"]:
    """Products of 1, x, y and `given` in each row, the last three standardised (constants become 0)."""
    columns = [np.ones(len(x))]
    for name, values in (("x", x), ("y", y), ("given", 0.0 * x if given is None else given)):
        values = check_finite(values, name)
        left, deviation = values - values.mean(), values.std()
        constant = deviation <= 1e-10 * np.abs(values).max()  # up to rounding
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
