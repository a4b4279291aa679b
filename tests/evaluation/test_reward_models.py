import math

import numpy as np
import pytest

from rlhf_jax.evaluation import intervals, reward_models


def test_the_length_rule_is_chosen_on_training_pairs_alone():
    long, short = np.array([9, 8, 7, 2]), np.array([1, 2, 3, 4])
    rule, accuracy = reward_models.length_baseline(long, short, np.array([5, 1]), np.array([4, 2]))
    assert (rule, accuracy.mean) == ("longer", 0.5)
    rule, accuracy = reward_models.length_baseline(short, long, np.array([5, 6]), np.array([4, 2]))
    assert (rule, accuracy.mean) == ("shorter", 0.0)
    rule, accuracy = reward_models.length_baseline(short, long, np.array([1, 2]), np.array([4, 2]))
    assert accuracy.mean == 0.75


def test_the_length_rule_and_its_accuracy_count_pairs_by_their_weights():
    lengths = np.array([9, 8, 1]), np.array([1, 2, 3])
    measured = np.array([5, 1]), np.array([4, 2])
    of = lambda train, held_out=None: reward_models.length_baseline(
        *lengths, *measured, weights_train=train, weights=held_out
    )
    assert of([1, 1, 1.5]).rule == "longer" and of([1, 1, 2.5]).rule == "shorter"
    assert of([0, 0, 1.0]).rule == "shorter"  # of the others neither response is better
    assert of([1, 1, 1], [3, 1]).accuracy.mean == 0.75
    scores, counts = np.array([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0]]), [4, 1, 9]
    longer = np.array([[2, 1], [2, 1], [1, 2]])
    report = reward_models.length_report(scores, longer, weights=counts)
    assert report.accuracy_longer_chosen.mean == 0.8


def simulated_margins(scale, n=40_000):
    """Scores whose difference is the logit; the margins are `scale` times as sure as they should be."""
    rng = np.random.default_rng(6)
    logit = rng.normal(0, 2, size=n)
    first_is_chosen = rng.random(n) < 1 / (1 + np.exp(-logit))
    return scale * np.where(first_is_chosen, logit, -logit)


def test_calibrated_margins_have_no_calibration_error_and_others_do():
    assert reward_models.ece(simulated_margins(1.0)) < 0.01
    assert reward_models.ece(simulated_margins(3.0)) > 0.08
    assert reward_models.ece(simulated_margins(0.2)) > 0.08


def test_the_table_by_hand():
    margins = np.array([0.0, math.log(3), math.log(3), -math.log(3), 50.0])
    rows = reward_models.calibration_table(margins, bins=5)
    assert [row.count for row in rows] == [1, 3, 1]  # bins without a pair are left out
    assert [row.predicted for row in rows] == pytest.approx([0.5, 0.75, 1.0])
    assert [row.observed for row in rows] == pytest.approx([0.5, 2 / 3, 1.0])
    assert (rows[1].low, rows[1].high) == pytest.approx((0.7, 0.8))
    assert reward_models.ece(margins) == pytest.approx(3 / 5 * (0.75 - 2 / 3))


def test_the_table_of_shares_and_weights_is_that_of_the_votes():
    """Three of four votes are one pair of probability .75 and weight 4."""
    log3 = math.log(3)
    pairs = dict(probability=[0.75, 0.5, 1.0], weights=[4, 2, 3])
    margins = np.array([log3, -log3, 0.1])
    votes = np.array([log3] * 3 + [-log3] + [log3, -log3] + [0.1] * 3)
    for got, want in zip(
        reward_models.calibration_table(margins, **pairs),
        reward_models.calibration_table(votes),
        strict=True,
    ):
        assert got._replace(count=want.count) == pytest.approx(want)
    assert reward_models.ece(margins, **pairs) == pytest.approx(reward_models.ece(votes))


def test_the_table_is_that_of_pairs_shown_in_random_order_folded_at_one_half():
    margins = simulated_margins(1.5)
    flip = np.random.default_rng(7).random(len(margins)) < 0.5
    p = 1 / (1 + np.exp(-np.where(flip, -margins, margins)))  # that the first shown is preferred
    first_preferred = ~flip
    for row in reward_models.calibration_table(margins):
        high, low = (p > row.low) & (p <= row.high), (1 - p > row.low) & (1 - p <= row.high)
        folded = (first_preferred[high].sum() + (~first_preferred[low]).sum()) / (high | low).sum()
        assert row.observed == pytest.approx(folded)


def correlated(n=400):
    """Scores that are gold and a taste for length; gold that goes with length too. Pairs [n, 2]."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(4, 30, size=(n, 2)).astype(float)
    gold = 0.1 * lengths + rng.normal(size=(n, 2))
    return 2 * gold + 0.05 * lengths + rng.normal(size=(n, 2)), lengths, gold


def partial_correlation(x, y, given=None):
    """The correlation of x and y, given a third if there is one, in a report of pairs."""
    pairs = (None if values is None else values.reshape(-1, 2) for values in (x, y, given))
    report = reward_models.length_report(*pairs)
    return (report.correlation if given is None else report.correlation_given_gold).mean


def test_partial_correlation_is_the_closed_form_of_three_correlations():
    x, y, z = (pairs.reshape(-1) for pairs in correlated())
    (_, xy, xz), (_, _, yz), _ = np.corrcoef([x, y, z])
    want = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_correlation(x, y, z) == pytest.approx(want, rel=1e-10)
    assert partial_correlation(x, y) == pytest.approx(xy, rel=1e-10)
    assert abs(want - xy) > 0.1
    assert partial_correlation(5 - 2 * x, y + 7, 3 * z) == pytest.approx(-want, rel=1e-10)


def test_nothing_is_left_of_what_the_given_explains():
    _, y, z = (pairs.reshape(-1) for pairs in correlated())
    assert partial_correlation(3 * z + 0.1, y, z) == 0
    assert partial_correlation(y, y, z) == pytest.approx(1)
    assert partial_correlation(np.full(len(y), 0.1), y, z) == 0
    assert partial_correlation(z, y, np.full(len(y), 0.1)) == pytest.approx(
        partial_correlation(z, y)
    )


def test_the_length_report_tells_a_taste_for_length_from_gold_that_is_long():
    scores, lengths, gold = correlated()
    honest = reward_models.length_report(gold, lengths, 0.5 * gold + 1)
    assert honest.correlation.low > 0.3 and honest.correlation_given_gold == (0, 0, 0)
    biased = reward_models.length_report(scores, lengths, gold)
    mean, low, high = biased.correlation_given_gold
    assert 0 < low < mean < high
    # n - 1 responses and one given: Fisher's z has the variance 1 / (n - 4)
    half = 1.96 * (1 - mean**2) / math.sqrt(scores.size - 4)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_the_length_report_by_hand_splits_the_pairs_by_which_was_chosen():
    scores = np.array([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0], [0.0, 4.0], [5.0, 5.0], [1.0, 0.0]])
    lengths = np.array([[9, 3], [9, 4], [8, 2], [2, 9], [3, 4], [6, 6]])
    report = reward_models.length_report(scores, lengths)
    assert report.accuracy_longer_chosen == intervals.wilson_interval(2, 3)
    assert report.accuracy_shorter_chosen == intervals.wilson_interval(0.5, 2)
    assert (report.pairs_longer_chosen, report.pairs_shorter_chosen) == (3, 2)
    assert report.correlation_given_gold is None
    equal = reward_models.length_report(scores, np.full((6, 2), 7))
    assert equal.accuracy_longer_chosen is equal.accuracy_shorter_chosen is None
    assert equal.correlation == (0, 0, 0)


def test_who_counts_words_is_right_where_the_longer_response_was_chosen_alone():
    rng = np.random.default_rng(10)
    lengths = rng.permuted(np.tile(np.arange(4.0, 30.0), (500, 1)), axis=1)[:, :2]
    words = reward_models.length_report(lengths, lengths)
    assert words.accuracy_longer_chosen.mean == 1 and words.accuracy_shorter_chosen.mean == 0
    honest = reward_models.length_report(rng.normal([1.0, 0.0], 1, size=(500, 2)), lengths)
    assert honest.accuracy_longer_chosen.low < honest.accuracy_shorter_chosen.high
    assert honest.accuracy_shorter_chosen.low < honest.accuracy_longer_chosen.high


def test_groups_widen_every_interval_of_the_length_report():
    """Each pair nine times over, under one prompt, is no more evidence than once."""
    scores, lengths, gold = correlated(200)
    once = reward_models.length_report(scores, lengths, gold)
    copies = [np.repeat(x, 9, axis=0) for x in (scores, lengths, gold)]
    prompts = [f"prompt {n}" for n in np.repeat(np.arange(200), 9)]
    grouped, naive = (reward_models.length_report(*copies, groups=g) for g in (prompts, None))
    width = lambda interval: interval.high - interval.low
    for got, want, less in zip(grouped[:4], once[:4], naive[:4], strict=True):
        assert got.mean == pytest.approx(want.mean)
        assert width(got) == pytest.approx(width(want), rel=0.25)
        assert width(got) > 2 * width(less)
