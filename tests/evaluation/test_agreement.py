"""Agreement with ratings: AUC and correlation by slow twins, and paired intervals."""

import itertools

import numpy as np
import pytest
from scipy.stats import pearsonr

from rlhf_jax.evaluation import ratings


def slow_auc(scores, labels, weights):
    """All pairs of a good and a bad response, one after the other."""
    won = total = 0.0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if labels[i] > 0.5 >= labels[j]:
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * (0.5 + 0.5 * np.sign(scores[i] - scores[j]))
    return won / total


def test_auc_is_that_of_the_slow_twin_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 40).astype(float), rng.random(40)
    for weights in (np.ones(40), rng.multinomial(40, np.full(40, 1 / 40))):
        got = ratings.auc(scores, labels, weights)
        assert got == pytest.approx(slow_auc(scores, labels, weights))
        repeated = np.repeat(np.arange(40), weights.astype(int))
        assert got == pytest.approx(
            ratings.auc(scores[repeated], labels[repeated], np.ones(len(repeated)))
        )
    assert ratings.auc(labels, labels, np.ones(40)) == 1
    assert ratings.auc(-labels, labels, np.ones(40)) == 0
    assert ratings.auc(scores, np.ones(40), np.ones(40)) == 0.5  # no bad response


def test_correlation_is_pearsons_and_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    x = rng.normal(size=50)
    y, weights = x + rng.normal(size=50), rng.multinomial(50, np.full(50, 1 / 50))
    repeated = np.repeat(np.arange(50), weights)
    ones = np.ones(50)
    assert ratings.correlation(x, y, ones) == pytest.approx(pearsonr(x, y)[0])
    want = pearsonr(x[repeated], y[repeated])[0]
    assert ratings.correlation(x, y, weights) == pytest.approx(want)
    assert ratings.correlation(np.full(50, 0.1), y, ones) == 0


def test_differences_are_paired_and_groups_widen_every_interval():
    rng = np.random.default_rng(2)
    labels = (rng.random(150) < 0.5).astype(float)
    model = labels + rng.normal(size=150)
    scores = {"model": model, "nearly the same": model + 0.1 * rng.normal(size=150)}
    own, less = ratings.compared(ratings.auc, scores, labels)
    width = lambda x: x.high - x.low
    assert own["model"].low < own["model"].mean < own["model"].high
    assert [*less] == ["nearly the same"]
    assert less["nearly the same"].mean == pytest.approx(
        own["model"].mean - own["nearly the same"].mean
    )
    assert width(less["nearly the same"]) < 0.3 * width(own["model"])
    again = {name: np.repeat(x, 4) for name, x in scores.items()}
    times, groups = np.repeat(labels, 4), np.repeat(np.arange(150), 4)
    grouped, naive = (
        ratings.compared(ratings.auc, again, times, g)[0]["model"] for g in (groups, None)
    )
    assert width(grouped) == pytest.approx(width(own["model"]), rel=0.2)
    assert width(grouped) > 1.5 * width(naive)


def test_counts_of_rows_are_repetitions():
    rng = np.random.default_rng(3)
    labels, times = (rng.random(60) < 0.5).astype(float), rng.integers(1, 4, size=60)
    scores = {"model": labels + rng.normal(size=60), "other": rng.normal(size=60)}
    repeated = {name: np.repeat(x, times) for name, x in scores.items()}
    groups = np.repeat(np.arange(60), times)
    for statistic in (ratings.auc, ratings.correlation):
        got = ratings.compared(statistic, scores, labels, counts=times)
        want = ratings.compared(statistic, repeated, np.repeat(labels, times), groups)
        for x, y in zip(got, want, strict=True):
            assert x.keys() == y.keys()
            for name in x:
                assert x[name] == pytest.approx(y[name])


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"model\[1\] is nan"):
        ratings.compared(ratings.auc, {"model": np.array([1.0, np.nan])}, np.array([0.0, 1.0]))
