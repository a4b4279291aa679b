"""Baselines in words and in length: optima by hand, a separable world, and the strength of L2."""

import numpy as np
import pytest
from scipy.special import expit, logit

from rlhf_jax.evaluation import baselines


def test_logistic_regression_has_the_log_odds_of_each_feature_and_regression_the_least_squares():
    features = np.repeat(np.eye(3), 10, axis=0)
    labels = (np.arange(10) < np.array([[2], [5], [9]])).ravel().astype(float)
    line = baselines.fit(features, labels, "binary", l2=1e-9, intercept=False)
    np.testing.assert_allclose(line.weights, logit([0.2, 0.5, 0.9]), atol=1e-3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=50)
    for l2 in (1e-9, 7.0):
        line = baselines.fit(x, y, "regression", l2)
        a = np.column_stack([x, np.ones(50)])
        want = np.linalg.solve(a.T @ a + l2 * np.diag([1, 1, 1, 1, 0]), a.T @ y)
        np.testing.assert_allclose([*line.weights, line.intercept], want, atol=1e-4)


def test_the_optimum_with_l2_has_no_gradient():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 5)), rng.random(60)
    line = baselines.fit(x, y, "binary", l2=3.0)
    away = expit(line(x)) - y
    np.testing.assert_allclose(x.T @ away + 3.0 * line.weights, 0, atol=1e-3)
    np.testing.assert_allclose(away.sum(), 0, atol=1e-3)


def test_a_row_counts_as_often_as_it_weighs():
    rng = np.random.default_rng(2)
    x, y, times = rng.normal(size=(40, 3)), rng.random(40), rng.integers(1, 5, size=40)
    for kind in ("binary", "regression"):
        want = baselines.fit(np.repeat(x, times, axis=0), np.repeat(y, times), kind, l2=2.0)
        got = baselines.fit(x, y, kind, l2=2.0, counts=times)
        np.testing.assert_allclose(got.weights, want.weights, atol=1e-4)
    texts, groups = [f"w{n % 7} w{n % 3}" for n in range(40)], np.arange(40)
    score = baselines.of_words(texts, y, "binary", groups, times)
    repeat = lambda values: [x for x, n in zip(values, times, strict=True) for _ in range(n)]
    again = baselines.of_words(repeat(texts), np.array(repeat(y)), "binary", repeat(groups))
    np.testing.assert_allclose(score(texts), again(texts), atol=1e-3)


def test_shares_of_pairs_teach_a_bag_of_words_their_log_odds():
    chosen, rejected = ["good"] * 400, ["bad"] * 400
    score = baselines.of_words_in_pairs(chosen, rejected, probability=np.full(400, 0.8))
    gap = score(["good"])[0] - score(["bad"])[0]
    assert gap == pytest.approx(logit(0.8), rel=0.02)


NOUNS = [f"noun{n}" for n in range(20)]


def pairs(n, seed):
    """Pairs of random words; the chosen one says "good" and the other "bad", in either place."""
    rng = np.random.default_rng(seed)
    of = lambda word: " ".join(rng.permutation([*rng.choice(NOUNS, 5), word]))
    return [of("Good,") for _ in range(n)], [of("bad") for _ in range(n)]


def test_a_bag_of_words_separates_pairs_that_one_word_decides():
    score = baselines.of_words_in_pairs(*pairs(60, 0))
    chosen, rejected = pairs(40, 1)
    assert np.all(score(chosen) > score(rejected))
    swapped = baselines.of_words_in_pairs(*pairs(60, 0)[::-1])
    assert np.all(swapped(chosen) < swapped(rejected))
    assert score(["never seen"]) == score([""]) == 0


def test_a_bag_of_words_knows_labels_and_scores_of_single_texts():
    good, bad = pairs(60, 0)
    labels = np.repeat([1.0, 0.0], 60)
    chosen, rejected = pairs(40, 1)
    score = baselines.of_words([*good, *bad], labels, "binary")
    assert np.all(score(chosen) > 0) and np.all(score(rejected) < 0)
    score = baselines.of_words([*good, *bad], 2 + 3 * labels, "regression")
    np.testing.assert_allclose(score(chosen), 5, atol=0.5)
    np.testing.assert_allclose(score(rejected), 2, atol=0.5)


def test_cross_validation_leaves_out_groups_and_prefers_the_strongest_l2_for_noise():
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(NOUNS, 8)) for _ in range(100)]
    labels = (rng.random(100) < 0.5).astype(float)
    score = baselines.of_words(texts, labels, "binary")
    assert np.abs(score(texts) - score([""])).max() < 0.1  # 1.5 with l2 = 1
    # each text five times over, under one prompt: nothing is gained by learning it by heart
    grouped = baselines.of_words(texts * 5, np.tile(labels, 5), "binary", [*range(100)] * 5)
    alone = baselines.of_words(texts * 5, np.tile(labels, 5), "binary")
    spread = lambda score: np.std(score(texts))
    assert spread(grouped) < 0.5 * spread(alone)


def test_length_alone_is_a_line_in_the_number_of_words():
    texts = ["a b c", "a", "a b", "a b c d e"]
    score = baselines.of_length(texts, np.array([3.0, 1.0, 2.0, 5.0]), "regression")
    np.testing.assert_allclose(score(["x " * 7, ""]), [7, 0], atol=1e-3)
    same = baselines.of_length(["a", "b"], np.array([1.0, 0.0]), "binary")
    np.testing.assert_allclose(same(["c"]), 0, atol=1e-3)


@pytest.mark.parametrize("text", ["", " ", "Ein Satz, noch einer.", "好 👍🏽 3.5e9"])
def test_words_of_any_text(text):
    assert baselines.words_of(text) == baselines.words_of(text.upper())
