import math

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from rlhf_jax.evaluation import intervals


def test_the_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    rng, covered, n = np.random.default_rng(0), 0, 300
    for trial in range(n):
        values = rng.exponential(size=60)
        _, low, high = intervals.bootstrap_interval(values, seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / n <= 0.98


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=4000)
    mean, low, high = intervals.bootstrap_interval(values, resamples=4000)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(4000)
    assert low == pytest.approx(mean - half, abs=0.06 * half)
    assert high == pytest.approx(mean + half, abs=0.06 * half)
    assert intervals.bootstrap_interval(values) == intervals.bootstrap_interval(values)
    wider = intervals.bootstrap_interval(values, level=0.99)
    assert wider.low < low < high < wider.high


def test_of_few_values_the_interval_is_wider_than_all_of_them():
    """Resamples of three values reach the least and the greatest; Student's t goes 2.7 times as far."""
    assert intervals.widening_factor(3) == pytest.approx(
        4.30265 / 1.95996 * math.sqrt(3 / 2), rel=1e-4
    )
    far = intervals.widening_factor(3)
    assert intervals.bootstrap_interval(np.array([0.0, 1.0, 5.0])) == pytest.approx(
        (2.0, 2.0 - 2.0 * far, 2.0 + 3.0 * far)
    )
    grouped = intervals.bootstrap_interval(np.repeat([0.0, 1.0, 5.0], 4), np.repeat([0, 1, 2], 4))
    assert grouped == pytest.approx((2.0, 2.0 - 2.0 * far, 2.0 + 3.0 * far))
    assert intervals.bootstrap_interval(np.ones(4), np.zeros(4)) == (1.0, -np.inf, np.inf)


def test_groups_widen_the_interval_as_many_times_as_they_repeat():
    """Each value nine times over, in one group, is no more evidence than once."""
    values = np.random.default_rng(2).normal(size=300)
    once = intervals.bootstrap_interval(values, resamples=4000)
    copies, names = np.repeat(values, 9), [f"prompt {i}" for i in np.repeat(np.arange(300), 9)]
    grouped = intervals.bootstrap_interval(copies, groups=names, resamples=4000)
    naive = intervals.bootstrap_interval(copies, resamples=4000)
    assert grouped.mean == pytest.approx(once.mean)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.08)
    assert grouped.high - grouped.low == pytest.approx(3 * (naive.high - naive.low), rel=0.08)


def test_the_grouped_mean_is_over_values_and_covers_with_ragged_groups():
    rng, covered, n = np.random.default_rng(3), 0, 200
    for trial in range(n):
        sizes = rng.integers(1, 9, size=50)
        groups = np.repeat(np.arange(50), sizes)
        values = rng.normal(size=50)[groups] + 0.3 * rng.normal(size=len(groups)) + 2.0
        mean, low, high = intervals.bootstrap_interval(values, groups, trial, 400)
        assert mean == pytest.approx(values.mean())
        covered += low <= 2.0 <= high
    assert 0.86 <= covered / n <= 0.985


def test_the_memory_bound_changes_no_statistics():
    values = np.random.default_rng(4).normal(size=2000)  # 500 resamples a chunk
    mean, low, high = intervals.bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.1)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 10), (10, 10), (40, 40), (0, 7), (3, 7), (72, 100), (501, 1000)]
)
def test_wilson_is_scipys(k, n):
    want = binomtest(k, n).proportion_ci(0.95, "wilson")
    got = intervals.wilson_interval(k, n)
    assert got == pytest.approx((k / n, want.low, want.high), abs=1e-9)
    assert (got.low == 0) == (k == 0) and (got.high == 1) == (k == n)  # not but for rounding


def test_wilson_is_the_published_number():
    # Newcombe (1998), table I, method 3: 81 of 263
    assert intervals.wilson_interval(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_ties_count_half():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 4.0])
    assert intervals.win_rate(a, b).mean == (1 + 0.5 + 0 + 0.5) / 4
    assert intervals.win_rate(a, b).mean + intervals.win_rate(b, a).mean == 1
    assert intervals.accuracy(np.array([0.0, 0.0])).mean == 0.5
    assert intervals.accuracy(a - b) == intervals.win_rate(a, b)


def test_accuracy_with_groups_is_wilsons_of_as_many_judgements_as_they_are_worth():
    margins = np.repeat(np.random.default_rng(5).normal(0.5, 1, size=100), 16)
    groups = np.repeat(np.arange(100), 16)
    alone, grouped = intervals.accuracy(margins), intervals.accuracy(margins, groups)
    assert alone.mean == grouped.mean == np.mean(margins > 0)
    assert grouped.high - grouped.low == pytest.approx(4 * (alone.high - alone.low), rel=0.05)
    # copies are worth one each, but for the degrees of freedom
    once = intervals.accuracy(margins[::16])
    assert grouped == pytest.approx(once, abs=0.004)


def test_accuracy_does_not_collapse_where_all_are_right_or_wrong():
    every = np.ones(40)
    singles = intervals.accuracy(every, np.arange(40))
    assert singles == intervals.accuracy(every) == intervals.wilson_interval(40, 40)
    assert singles[0] == singles[2] == 1.0 and singles.low == pytest.approx(0.912, abs=5e-4)
    wrong = intervals.accuracy(-every, np.arange(40))
    assert wrong == pytest.approx((0.0, 0.0, 1 - singles.low)) and wrong.low == 0.0
    # nobody knows how alike judgements of a group are: ten groups are ten judgements, one is one
    fewer = student.ppf(0.975, [39, 9])  # degrees of freedom
    ten = intervals.effective_size(every, np.repeat(np.arange(10), 4))
    assert ten == pytest.approx(10 * (fewer[0] / fewer[1]) ** 2)
    assert intervals.accuracy(every, np.zeros(40)) == intervals.wilson_interval(1, 1)


def test_the_effective_size_of_groups_that_are_alike_by_a_half():
    """Values of a pair that correlate by r are worth n / (1 + r) judgements (Kish, 1965)."""
    rng = np.random.default_rng(9)
    first = rng.random(20_000) < 0.7
    again = np.where(rng.random(20_000) < 0.5, first, rng.random(20_000) < 0.7)
    values = np.stack([first, again], axis=1).reshape(-1).astype(float)
    groups = np.repeat(np.arange(20_000), 2)
    assert intervals.effective_size(values, groups) == pytest.approx(40_000 / 1.5, rel=0.02)
    assert intervals.effective_size(values, np.arange(40_000)) == 40_000
    apart = np.stack([first, ~first], axis=1).reshape(-1).astype(float)  # a group's mean is fixed
    assert intervals.effective_size(apart, groups) == pytest.approx(20_000, rel=1e-3)


def test_weights_count_as_repetitions_do_and_are_worth_kishs_number_of_judgements():
    rng = np.random.default_rng(10)
    margins, times = rng.normal(0.5, 1, size=4000), rng.integers(1, 5, size=4000)
    repeated, groups = np.repeat(margins, times), np.repeat(np.arange(4000), times)
    got = intervals.accuracy(margins, weights=times)
    assert got.mean == pytest.approx(np.mean(repeated > 0))
    assert got == intervals.accuracy(margins, np.arange(4000), 8.0 * times)
    assert tuple(got) == pytest.approx(tuple(intervals.accuracy(repeated, groups)), abs=1e-5)
    right = (margins > 0).astype(float)
    worth = intervals.effective_size(right, np.arange(4000), weights=times)
    assert worth == pytest.approx(times.sum() ** 2 / np.sum(times**2), rel=0.03)
    assert intervals.effective_size(right, np.arange(4000), weights=np.full(4000, 0.3)) == 4000
    ten = intervals.accuracy(np.ones(10), weights=np.arange(1, 11))  # all right: by weights alone
    assert ten.low == pytest.approx(intervals.wilson_interval(55**2 / 385, 55**2 / 385).low)
    mean = intervals.bootstrap_interval(margins, weights=times)
    assert mean.mean == pytest.approx(repeated.mean())
    assert tuple(mean) == pytest.approx(tuple(intervals.bootstrap_interval(repeated, groups)))


def test_bad_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"margins\[1\] is nan"):
        intervals.accuracy(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="values are empty"):
        intervals.bootstrap_interval(np.array([]))
    with pytest.raises(ValueError, match="there are 1 groups for 2 values"):
        intervals.bootstrap_interval(np.array([1.0, 2.0]), ["a"])
    with pytest.raises(ValueError, match="n = 0"):
        intervals.wilson_interval(0, 0)
