import math

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from rlhf_jax.evaluation import evaluate


def test_the_bootstrap_interval_covers_the_true_mean_as_often_as_it_says():
    rng, covered, n = np.random.default_rng(0), 0, 300
    for trial in range(n):
        values = rng.exponential(size=60)
        _, low, high = evaluate.bootstrap_interval(values, seed=trial, resamples=400)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / n <= 0.98


def test_the_bootstrap_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=4000)
    mean, low, high = evaluate.bootstrap_interval(values, resamples=4000)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(4000)
    assert low == pytest.approx(mean - half, abs=0.06 * half)
    assert high == pytest.approx(mean + half, abs=0.06 * half)
    assert evaluate.bootstrap_interval(values) == evaluate.bootstrap_interval(values)
    wider = evaluate.bootstrap_interval(values, level=0.99)
    assert wider.low < low < high < wider.high


def test_of_few_values_the_interval_is_wider_than_all_of_them():
    """Resamples of three values reach the least and the greatest; Student's t goes 2.7 times as far."""
    assert evaluate.widening(3) == pytest.approx(4.30265 / 1.95996 * math.sqrt(3 / 2), rel=1e-4)
    far = evaluate.widening(3)
    assert evaluate.bootstrap_interval(np.array([0.0, 1.0, 5.0])) == pytest.approx(
        (2.0, 2.0 - 2.0 * far, 2.0 + 3.0 * far)
    )
    grouped = evaluate.bootstrap_interval(np.repeat([0.0, 1.0, 5.0], 4), np.repeat([0, 1, 2], 4))
    assert grouped == pytest.approx((2.0, 2.0 - 2.0 * far, 2.0 + 3.0 * far))
    assert evaluate.bootstrap_interval(np.ones(4), np.zeros(4)) == (1.0, -np.inf, np.inf)


def test_groups_widen_the_interval_as_many_times_as_they_repeat():
    """Each value nine times over, in one group, is no more evidence than once."""
    values = np.random.default_rng(2).normal(size=300)
    once = evaluate.bootstrap_interval(values, resamples=4000)
    copies, names = np.repeat(values, 9), [f"prompt {i}" for i in np.repeat(np.arange(300), 9)]
    grouped = evaluate.bootstrap_interval(copies, groups=names, resamples=4000)
    naive = evaluate.bootstrap_interval(copies, resamples=4000)
    assert grouped.mean == pytest.approx(once.mean)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.08)
    assert grouped.high - grouped.low == pytest.approx(3 * (naive.high - naive.low), rel=0.08)


def test_the_grouped_mean_is_over_values_and_covers_with_ragged_groups():
    rng, covered, n = np.random.default_rng(3), 0, 200
    for trial in range(n):
        sizes = rng.integers(1, 9, size=50)
        groups = np.repeat(np.arange(50), sizes)
        values = rng.normal(size=50)[groups] + 0.3 * rng.normal(size=len(groups)) + 2.0
        mean, low, high = evaluate.bootstrap_interval(values, groups, trial, 400)
        assert mean == pytest.approx(values.mean())
        covered += low <= 2.0 <= high
    assert 0.86 <= covered / n <= 0.985


def test_the_memory_bound_changes_no_statistics():
    values = np.random.default_rng(4).normal(size=2000)  # 500 resamples a chunk
    mean, low, high = evaluate.bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.1)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 10), (10, 10), (40, 40), (0, 7), (3, 7), (72, 100), (501, 1000)]
)
def test_wilson_is_scipys(k, n):
    want = binomtest(k, n).proportion_ci(0.95, "wilson")
    got = evaluate.wilson_interval(k, n)
    assert got == pytest.approx((k / n, want.low, want.high), abs=1e-9)
    assert (got.low == 0) == (k == 0) and (got.high == 1) == (k == n)  # not but for rounding


def test_wilson_is_the_published_number():
    # Newcombe (1998), table I, method 3: 81 of 263
    assert evaluate.wilson_interval(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_ties_count_half():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 4.0])
    assert evaluate.win_rate(a, b).mean == (1 + 0.5 + 0 + 0.5) / 4
    assert evaluate.win_rate(a, b).mean + evaluate.win_rate(b, a).mean == 1
    assert evaluate.accuracy(np.array([0.0, 0.0])).mean == 0.5
    assert evaluate.accuracy(a - b) == evaluate.win_rate(a, b)


def test_accuracy_with_groups_is_wilsons_of_as_many_judgements_as_they_are_worth():
    margins = np.repeat(np.random.default_rng(5).normal(0.5, 1, size=100), 16)
    groups = np.repeat(np.arange(100), 16)
    alone, grouped = evaluate.accuracy(margins), evaluate.accuracy(margins, groups)
    assert alone.mean == grouped.mean == np.mean(margins > 0)
    assert grouped.high - grouped.low == pytest.approx(4 * (alone.high - alone.low), rel=0.05)
    # copies are worth one each, but for the degrees of freedom
    once = evaluate.accuracy(margins[::16])
    assert grouped == pytest.approx(once, abs=0.004)


def test_accuracy_does_not_collapse_where_all_are_right_or_wrong():
    every = np.ones(40)
    singles = evaluate.accuracy(every, np.arange(40))
    assert singles == evaluate.accuracy(every) == evaluate.wilson_interval(40, 40)
    assert singles[0] == singles[2] == 1.0 and singles.low == pytest.approx(0.912, abs=5e-4)
    wrong = evaluate.accuracy(-every, np.arange(40))
    assert wrong == pytest.approx((0.0, 0.0, 1 - singles.low)) and wrong.low == 0.0
    # nobody knows how alike judgements of a group are: ten groups are ten judgements, one is one
    fewer = student.ppf(0.975, [39, 9])  # degrees of freedom
    ten = evaluate.effective_size(every, np.repeat(np.arange(10), 4))
    assert ten == pytest.approx(10 * (fewer[0] / fewer[1]) ** 2)
    assert evaluate.accuracy(every, np.zeros(40)) == evaluate.wilson_interval(1, 1)


def test_the_effective_size_of_groups_that_are_alike_by_a_half():
    """Values of a pair that correlate by r are worth n / (1 + r) judgements (Kish, 1965)."""
    rng = np.random.default_rng(9)
    first = rng.random(20_000) < 0.7
    again = np.where(rng.random(20_000) < 0.5, first, rng.random(20_000) < 0.7)
    values = np.stack([first, again], axis=1).reshape(-1).astype(float)
    groups = np.repeat(np.arange(20_000), 2)
    assert evaluate.effective_size(values, groups) == pytest.approx(40_000 / 1.5, rel=0.02)
    assert evaluate.effective_size(values, np.arange(40_000)) == 40_000
    apart = np.stack([first, ~first], axis=1).reshape(-1).astype(float)  # a group's mean is fixed
    assert evaluate.effective_size(apart, groups) == pytest.approx(20_000, rel=1e-3)


def test_bad_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"margins\[1\] is nan"):
        evaluate.accuracy(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="values are empty"):
        evaluate.bootstrap_interval(np.array([]))
    with pytest.raises(ValueError, match="there are 1 groups for 2 values"):
        evaluate.bootstrap_interval(np.array([1.0, 2.0]), ["a"])
    with pytest.raises(ValueError, match="n = 0"):
        evaluate.wilson_interval(0, 0)


def test_the_length_rule_is_chosen_on_training_pairs_alone():
    long, short = np.array([9, 8, 7, 2]), np.array([1, 2, 3, 4])
    rule, accuracy = evaluate.length_baseline(long, short, np.array([5, 1]), np.array([4, 2]))
    assert (rule, accuracy.mean) == ("longer", 0.5)
    rule, accuracy = evaluate.length_baseline(short, long, np.array([5, 6]), np.array([4, 2]))
    assert (rule, accuracy.mean) == ("shorter", 0.0)
    rule, accuracy = evaluate.length_baseline(short, long, np.array([1, 2]), np.array([4, 2]))
    assert accuracy.mean == 0.75


def simulated_margins(scale, n=40_000):
    """Scores whose difference is the logit; the margins are `scale` times as sure as they should be."""
    rng = np.random.default_rng(6)
    logit = rng.normal(0, 2, size=n)
    first_is_chosen = rng.random(n) < 1 / (1 + np.exp(-logit))
    return scale * np.where(first_is_chosen, logit, -logit)


def test_calibrated_margins_have_no_calibration_error_and_others_do():
    assert evaluate.ece(simulated_margins(1.0)) < 0.01
    assert evaluate.ece(simulated_margins(3.0)) > 0.08
    assert evaluate.ece(simulated_margins(0.2)) > 0.08


def test_the_table_by_hand():
    margins = np.array([0.0, math.log(3), math.log(3), -math.log(3), 50.0])
    rows = evaluate.calibration_table(margins, bins=5)
    assert [row.count for row in rows] == [1, 3, 1]  # bins without a pair are left out
    assert [row.predicted for row in rows] == pytest.approx([0.5, 0.75, 1.0])
    assert [row.observed for row in rows] == pytest.approx([0.5, 2 / 3, 1.0])
    assert (rows[1].low, rows[1].high) == pytest.approx((0.7, 0.8))
    assert evaluate.ece(margins) == pytest.approx(3 / 5 * (0.75 - 2 / 3))


def test_the_table_is_that_of_pairs_shown_in_random_order_folded_at_one_half():
    margins = simulated_margins(1.5)
    flip = np.random.default_rng(7).random(len(margins)) < 0.5
    p = 1 / (1 + np.exp(-np.where(flip, -margins, margins)))  # that the first shown is preferred
    first_preferred = ~flip
    for row in evaluate.calibration_table(margins):
        high, low = (p > row.low) & (p <= row.high), (1 - p > row.low) & (1 - p <= row.high)
        folded = (first_preferred[high].sum() + (~first_preferred[low]).sum()) / (high | low).sum()
        assert row.observed == pytest.approx(folded)


def correlated(n=400):
    """Scores that are gold and a taste for length; gold that goes with length too. Pairs [n, 2]."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(4, 30, size=(n, 2)).astype(float)
    gold = 0.1 * lengths + rng.normal(size=(n, 2))
    return 2 * gold + 0.05 * lengths + rng.normal(size=(n, 2)), lengths, gold


def test_partial_correlation_is_the_closed_form_of_three_correlations():
    x, y, z = (pairs.reshape(-1) for pairs in correlated())
    (_, xy, xz), (_, _, yz), _ = np.corrcoef([x, y, z])
    want = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert evaluate.partial_correlation(x, y, z) == pytest.approx(want, rel=1e-10)
    assert evaluate.partial_correlation(x, y) == pytest.approx(xy, rel=1e-10)
    assert abs(want - xy) > 0.1
    assert evaluate.partial_correlation(5 - 2 * x, y + 7, 3 * z) == pytest.approx(-want, rel=1e-10)


def test_nothing_is_left_of_what_the_given_explains():
    _, y, z = (pairs.reshape(-1) for pairs in correlated())
    assert evaluate.partial_correlation(3 * z + 0.1, y, z) == 0
    assert evaluate.partial_correlation(y, y, z) == pytest.approx(1)
    assert evaluate.partial_correlation(np.full(len(y), 0.1), y, z) == 0
    assert evaluate.partial_correlation(z, y, np.full(len(y), 0.1)) == pytest.approx(
        evaluate.partial_correlation(z, y)
    )


def test_the_length_report_tells_a_taste_for_length_from_gold_that_is_long():
    scores, lengths, gold = correlated()
    honest = evaluate.length_report(gold, lengths, 0.5 * gold + 1)
    assert honest.correlation.low > 0.3 and honest.correlation_given_gold == (0, 0, 0)
    biased = evaluate.length_report(scores, lengths, gold)
    flat = [x.reshape(-1) for x in (scores, lengths, gold)]
    mean, low, high = biased.correlation_given_gold
    assert mean == evaluate.partial_correlation(*flat) and 0 < low < mean < high
    # n - 1 responses and one given: Fisher's z has the variance 1 / (n - 4)
    half = 1.96 * (1 - mean**2) / math.sqrt(len(flat[0]) - 4)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_the_length_report_by_hand_splits_the_pairs_by_which_was_chosen():
    scores = np.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0], [0.0, 4.0], [5.0, 5.0], [1.0, 0.0]])
    lengths = np.array([[9, 3], [9, 4], [8, 2], [2, 9], [3, 4], [6, 6]])
    report = evaluate.length_report(scores, lengths)
    assert report.accuracy_longer_chosen == evaluate.wilson_interval(2, 3)
    assert report.accuracy_shorter_chosen == evaluate.wilson_interval(0.5, 2)
    assert (report.pairs_longer_chosen, report.pairs_shorter_chosen) == (3, 2)
    assert report.correlation_given_gold is None
    equal = evaluate.length_report(scores, np.full((6, 2), 7))
    assert equal.accuracy_longer_chosen is equal.accuracy_shorter_chosen is None
    assert equal.correlation == (0, 0, 0)


def test_who_counts_words_is_right_where_the_longer_response_was_chosen_alone():
    rng = np.random.default_rng(10)
    lengths = rng.permuted(np.tile(np.arange(4.0, 30.0), (500, 1)), axis=1)[:, :2]
    words = evaluate.length_report(lengths, lengths)
    assert words.accuracy_longer_chosen.mean == 1 and words.accuracy_shorter_chosen.mean == 0
    honest = evaluate.length_report(rng.normal([1.0, 0.0], 1, size=(500, 2)), lengths)
    assert honest.accuracy_longer_chosen.low < honest.accuracy_shorter_chosen.high
    assert honest.accuracy_shorter_chosen.low < honest.accuracy_longer_chosen.high


def test_groups_widen_every_interval_of_the_length_report():
    """Each pair nine times over, under one prompt, is no more evidence than once."""
    scores, lengths, gold = correlated(200)
    once = evaluate.length_report(scores, lengths, gold)
    copies = [np.repeat(x, 9, axis=0) for x in (scores, lengths, gold)]
    prompts = [f"prompt {n}" for n in np.repeat(np.arange(200), 9)]
    grouped, naive = (evaluate.length_report(*copies, groups=g) for g in (prompts, None))
    width = lambda interval: interval.high - interval.low
    for got, want, less in zip(grouped[:4], once[:4], naive[:4], strict=True):
        assert got.mean == pytest.approx(want.mean)
        assert width(got) == pytest.approx(width(want), rel=0.25)
        assert width(got) > 2 * width(less)
