"""Aggregation: Dawid and Skene's published example, a slow twin, and gains over the majority."""

import itertools

import numpy as np
import published
import pytest
from scipy.special import expit, logit

from rlhf_jax.people import aggregation
from rlhf_jax.people.aggregation import Votes, dawid_skene, dawid_skene_classes, majority


def test_dawid_and_skenes_own_example():
    item, person, label = published.observers()
    fitted = dawid_skene_classes(item, person, label)
    np.testing.assert_allclose(fitted.prior, [0.400, 0.422, 0.112, 0.067], atol=6e-4)
    assert fitted.log_likelihood == pytest.approx(-192.891, abs=5e-4)
    first = [[0.889, 0.111, 0, 0], [0.071, 0.876, 0.053, 0], [0, 0.339, 0.661, 0]]
    first += [[0, 0, 0.556, 0.444]]
    np.testing.assert_allclose(fitted.confusion[0], first, atol=6e-4)
    sure = fitted.posterior.max(1)
    np.testing.assert_allclose(sure[[6, 34, 37]], [0.981, 0.948, 0.979], atol=6e-4)
    counts = np.zeros((45, 4))
    np.add.at(counts, (item, label), 1)
    often, best = counts.argmax(1), fitted.posterior.argmax(1)
    assert [x + 1 for x in np.flatnonzero(often != best)] == [2, 12, 36]


def simulated(seed, accuracies, items=600, votes=5):
    """Votes of people with these accuracies, and the truth: 1 where the first is better."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=items)
    people = np.concatenate([rng.choice(len(accuracies), votes, replace=False) for _ in truth])
    item = np.repeat(np.arange(items), votes)
    right = rng.random(len(item)) < np.asarray(accuracies)[people]
    first = np.where(right, truth[item], 1 - truth[item]).astype(float)
    return Votes(item, people, first), truth


def correct(probability, truth):
    """Share of items whose label is the truth, where even odds count half."""
    return np.mean(np.where(probability == 0.5, 0.5, (probability > 0.5) == truth))


def test_it_gains_where_people_differ_and_loses_nothing_where_they_do_not():
    gains = {}
    for name, accuracies in {"differ": np.linspace(0.55, 0.95, 8), "equal": [0.75] * 8}.items():
        found = [simulated(seed, accuracies) for seed in range(10)]
        gains[name] = [
            correct(dawid_skene(x).probability, y) - correct(majority(x), y) for x, y in found
        ]
    assert np.mean(gains["differ"]) >= 0.03
    assert abs(np.mean(gains["equal"])) < 0.005


def test_accuracies_and_probabilities_are_those_of_the_world():
    accuracies = np.linspace(0.55, 0.95, 8)
    votes, truth = simulated(0, accuracies, items=4000)
    fitted = dawid_skene(votes)
    np.testing.assert_allclose(fitted.accuracy, accuracies, atol=0.04)
    p = fitted.probability
    for low, high in itertools.pairwise([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]):  # calibrated
        rows = (p >= low) & (p <= high)
        error = 3.5 * np.sqrt(p[rows].mean() * (1 - p[rows].mean()) / rows.sum())
        assert truth[rows].mean() == pytest.approx(p[rows].mean(), abs=error + 0.01)


def test_the_fixed_point_is_bayes_rule_and_the_mode_of_the_accuracies():
    votes, _ = simulated(1, [0.9, 0.6, 0.7, 0.3], items=50, votes=3)
    fitted = dawid_skene(votes)
    for item in range(50):
        rows = votes.item == item
        odds = sum(
            logit(fitted.accuracy[p]) * (1 if x == 1 else -1)
            for p, x in zip(votes.person[rows], votes.first[rows], strict=True)
        )
        assert fitted.probability[item] == pytest.approx(expit(odds), abs=1e-6)
    for person in range(4):
        rows = votes.person == person
        p = fitted.probability[votes.item[rows]]
        right = np.where(votes.first[rows] == 1, p, 1 - p).sum()
        mode = (right + 3) / (rows.sum() + 4)  # of Beta(4 + right, 2 + wrong)
        assert fitted.accuracy[person] == pytest.approx(mode, abs=1e-6)


def test_which_response_is_first_and_ties_change_nothing():
    votes, _ = simulated(2, [0.9, 0.6, 0.7, 0.4], items=80, votes=3)
    fitted = dawid_skene(votes)
    turned = dawid_skene(votes._replace(first=1 - votes.first))
    np.testing.assert_allclose(turned.probability, 1 - fitted.probability, atol=1e-6)
    tied = Votes(
        *(
            np.concatenate(x)
            for x in zip(votes, (np.arange(80), np.zeros(80, int), np.full(80, 0.5)), strict=True)
        )
    )
    np.testing.assert_allclose(dawid_skene(tied).probability, fitted.probability, atol=1e-9)
    assert majority(
        Votes(np.array([0, 0, 2]), np.array([0, 1, 0]), np.array([1.0, 0.5, 0.0]))
    ).tolist() == [0.75, 0.5, 0.0]


def test_unanimous_strangers_agree_and_no_vote_is_even_odds():
    votes = Votes(np.array([0, 0, 2]), np.array([0, 1, 1]), np.array([1.0, 1.0, 0.5]))
    p = dawid_skene(votes).probability
    assert p[0] > 0.9 and p[1] == 0.5 and p[2] == 0.5
    nothing = Votes(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    assert len(aggregation.dawid_skene(nothing).probability) == 0
