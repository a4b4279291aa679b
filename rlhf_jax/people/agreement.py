"""Agreement between people: Cohen's kappa, Fleiss' kappa, and Krippendorff's alpha with its interval.

Labels are numbers, never texts, so that an order of labels is the order of numbers. The five steps of a
pair's answer are ordinal; the side that was chosen is nominal.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

Level = Literal["nominal", "ordinal", "interval", "ratio"]


class Alpha(NamedTuple):
    """Krippendorff's alpha and its percentile bootstrap interval over items.

    All three are NaN where alpha is undefined: no item has two labels, or all labels are equal.
    """

    alpha: float
    low: float
    high: float


def cohen(table: Num[np.ndarray, "K K"]) -> float:
    """Cohen's kappa of two people: (p_o - p_e) / (1 - p_e); NaN where one label has everything.

    `table` counts the items that the first person gave the row's label and the second one the column's.
    Cohen (1960).
    """
    p = np.asarray(table, np.float64) / np.sum(table)
    expected = p.sum(1) @ p.sum(0)
    return _chance_corrected(np.trace(p), expected)


def fleiss(counts: Num[np.ndarray, "N K"]) -> float:
    """Fleiss' kappa: counts [N, K] of the labels that as many people gave to each item.

    Fleiss (1971). Raises ValueError unless all items have one number of labels, two or more.
    """
    counts = np.asarray(counts, np.float64)
    raters = counts.sum(1)
    n = raters[0] if len(raters) else 0
    if n < 2 or np.any(raters != n):
        raise ValueError(
            "Fleiss' kappa needs an equal number of labels on every item, two or more: use alpha"
        )
    agreeing = ((counts**2).sum(1) - n) / (n * (n - 1))
    shares = counts.sum(0) / counts.sum()
    return _chance_corrected(agreeing.mean(), shares @ shares)


def _chance_corrected(observed: float, expected: float) -> float:
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def alpha(
    items: Int[np.ndarray, " N"], labels: Num[np.ndarray, " N"], level: Level = "nominal"
) -> float:
    """Krippendorff's alpha, 1 - D_o / D_e, of labels [N] that people gave to items [N].

    Any number of labels an item; items with a single one say nothing. NaN where no item has two labels, or
    all labels are equal. 1 is perfect agreement, 0 chance, and below 0 disagreement on purpose. Krippendorff
    (2011), "Computing Krippendorff's alpha-reliability".
    """
    values, counts = label_counts(items, labels)
    return float(_alphas(values, counts, np.ones((1, len(counts))), level)[0])


def alpha_interval(
    items: Int[np.ndarray, " N"],
    labels: Num[np.ndarray, " N"],
    level: Level = "nominal",
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Alpha:
    """Alpha and its percentile bootstrap interval; whole items are resampled.

    The interval says how alpha would vary with other items, judged by these people.
    """
    values, counts = label_counts(items, labels)
    mean = float(_alphas(values, counts, np.ones((1, len(counts))), level)[0])
    if np.isnan(mean):
        return Alpha(mean, mean, mean)
    n = len(counts)
    # items with equal counts are one kind, of which a resample has a multinomial number
    kinds, many = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, many / n, size=resamples)
    found = _alphas(values, kinds, drawn.astype(np.float64), level)
    found = found[~np.isnan(found)]  # resamples in which all labels are equal
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if len(found) else (mean, mean)
    return Alpha(mean, float(low), float(high))


def label_counts(
    items: Int[np.ndarray, " N"], labels: Num[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, "U C"]]:
    """Distinct labels in ascending order, and how often each item with two or more labels has each."""
    values, column = np.unique(np.asarray(labels, np.float64), return_inverse=True)
    _, row = np.unique(items, return_inverse=True)
    counts = np.zeros((row.max(initial=-1) + 1, len(values)))
    np.add.at(counts, (row, column), 1)
    return values, counts[counts.sum(1) >= 2]


def _alphas(values, counts, weights, level: Level) -> Float[np.ndarray, " R"]:
    """Alpha for each row of weights [R, U] of the items, whose label counts are [U, C]."""
    pairs = np.einsum("uc,uk->uck", counts, counts)
    diagonal = np.arange(len(values))
    pairs[:, diagonal, diagonal] -= counts
    pairs /= np.maximum(counts.sum(1) - 1, 1)[:, None, None]
    observed = np.einsum("ru,uck->rck", weights, pairs, optimize=True)
    n = observed.sum(2)  # [R, C], how often each label takes part in a pair
    distance = _distances(values, n, level)
    total = n.sum(1)
    between = np.einsum("rck,rck->r", observed, distance)
    expected = np.einsum("rc,rk,rck->r", n, n, distance, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - (total - 1) * between / expected, np.nan)


def _distances(values, n, level: Level) -> Float[np.ndarray, "R C C"]:
    """Krippendorff's squared difference of each two labels, where label c takes part in n[r, c] pairs."""
    a, b = values[:, None], values[None, :]
    if level == "ordinal":
        upto = np.cumsum(n, 1)
        between = np.abs(
            upto[:, None, :] - upto[:, :, None]
        )  # labels above the lower up to the higher
        higher = np.maximum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        lower = np.minimum(np.arange(len(values))[:, None], np.arange(len(values))[None, :])
        return (between + (n[:, lower] - n[:, higher]) / 2) ** 2
    if level == "nominal":
        fixed = (a != b).astype(np.float64)
    elif level == "interval":
        fixed = (a - b) ** 2
    elif level == "ratio":
        with np.errstate(invalid="ignore", divide="ignore"):
            fixed = np.where(a == b, 0.0, ((a - b) / (a + b)) ** 2)
    else:
        raise ValueError(f"level is {level!r}, and must be nominal, ordinal, interval or ratio")
    return np.broadcast_to(fixed, (len(n), *fixed.shape))
