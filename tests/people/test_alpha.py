"""Agreement: published values, planted disagreement, and a slow twin from Krippendorff's definition."""

import itertools

import numpy as np
import published
import pytest

from rlhf_jax.people import agreement
from rlhf_jax.people.agreement import alpha


def test_krippendorffs_own_examples():
    assert alpha(*published.letters("0100000010", "1110010000")) == pytest.approx(0.095, abs=5e-4)
    two = published.letters("aabbdcccedda", "babbbccceddd")
    assert alpha(*two) == pytest.approx(0.692, abs=5e-4)
    four = published.long(published.FOUR_CODERS)
    values = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849, "ratio": 0.797}
    for level, value in values.items():
        assert alpha(*four, level) == pytest.approx(value, abs=5e-4)  # pyright: ignore[reportArgumentType]


def test_fleiss_and_cohens_own_examples():
    said = published.diagnoses()
    counts = np.stack([(said == k).sum(1) for k in range(1, 6)], axis=1)
    assert agreement.fleiss(counts) == pytest.approx(0.430, abs=5e-4)
    assert agreement.fleiss(published.FOURTEEN) == pytest.approx(0.210, abs=5e-4)
    units = np.repeat(np.arange(30), 6)
    assert alpha(units, said.ravel()) == pytest.approx(0.433, abs=5e-4)
    assert agreement.cohen(np.array([[20, 5], [10, 15]])) == pytest.approx(0.400, abs=5e-4)


def slow_alpha(items, labels, level):
    """1 - D_o / D_e by loops over all pairs of labels."""

    def distance(x, y):
        if level == "nominal":
            return float(x != y)
        if level == "interval":
            return (x - y) ** 2
        if level == "ratio":
            return ((x - y) / (x + y)) ** 2 if x != y else 0.0
        low, high = min(x, y), max(x, y)
        between = sum(v for label, v in often.items() if low <= label <= high)
        return (between - (often[low] + often[high]) / 2) ** 2 if x != y else 0.0

    units = [labels[items == u] for u in np.unique(items)]
    units = [u for u in units if len(u) >= 2]
    everything = np.concatenate(units)
    often = {x: int(np.sum(everything == x)) for x in np.unique(everything)}
    observed = sum(
        distance(x, y) / (len(u) - 1) for u in units for x, y in itertools.permutations(u, 2)
    ) / len(everything)
    n = len(everything)
    expected = sum(distance(x, y) for x in everything for y in everything) / (n * (n - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_equals_its_definition_on_ragged_labels(level):
    rng = np.random.default_rng(3)
    items, labels = rng.integers(20, size=70), rng.choice([1.0, 2.0, 5.0, 10.0], size=70)
    assert alpha(items, labels, level) == pytest.approx(slow_alpha(items, labels, level), abs=1e-12)


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_perfect_agreement_is_one_and_disagreement_on_purpose_is_negative(level):
    items = np.repeat(np.arange(40), 2)
    side = np.tile([0, 1], 20)
    assert alpha(items, np.repeat(side, 2), level) == 1.0
    against = np.stack([side, 1 - side], axis=1).ravel()
    assert alpha(items, against, level) == pytest.approx(1 - 79 / 40, abs=1e-12)
    assert agreement.cohen(np.array([[0, 20], [20, 0]])) == -1.0
    assert agreement.fleiss(np.tile([1, 1], (10, 1))) == -1.0


def test_labels_are_ordered_as_numbers_and_not_as_texts():
    """As texts, "-1" comes before "-2" and "10" before "2"."""
    items = np.repeat(np.arange(6), 2)
    near = np.array([-2, -1, 0, 1, 2, 10, -2, -1, 0, 1, 2, 10])
    shift = np.array([0, 1, 2, 3, 4, 5, 1, 0, 3, 2, 5, 4])  # the same order in small numbers
    values = np.unique(near)
    assert alpha(items, values[shift], "ordinal") == alpha(items, shift, "ordinal")
    assert alpha(items, -values[shift], "ordinal") == pytest.approx(alpha(items, shift, "ordinal"))


def test_without_two_labels_or_two_kinds_of_label_alpha_is_undefined():
    assert np.isnan(alpha(np.arange(5), np.arange(5)))
    assert np.isnan(alpha(np.repeat(np.arange(5), 2), np.ones(10)))
    assert np.isnan(agreement.cohen(np.array([[9, 0], [0, 0]])))
    assert all(np.isnan(agreement.alpha_interval(np.zeros(0, int), np.zeros(0))))
    with pytest.raises(ValueError, match="use alpha"):
        agreement.fleiss(np.array([[2, 1], [1, 1]]))


def test_the_interval_holds_the_truth_and_is_that_of_a_slow_bootstrap():
    """Two people who agree with probability .8 on fair coins: alpha is .6."""
    hits = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        first = rng.integers(2, size=100)
        second = np.where(rng.random(100) < 0.8, first, 1 - first)
        items = np.repeat(np.arange(100), 2)
        labels = np.stack([first, second], axis=1).ravel()
        found = agreement.alpha_interval(items, labels, seed=seed, resamples=300)
        assert found.alpha == alpha(items, labels)
        hits.append(found.low <= 0.6 <= found.high)
    assert 0.89 <= np.mean(hits) <= 0.99  # .94 measured, within three standard errors
