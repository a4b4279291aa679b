"""Planted people are found, and honest ones are left in peace."""

import collections

import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.people import reliability
from rlhf_jax.people.judgements import Judgements

PLANTED = ("first", "coin", "coin", "inverts", "tires", "longer")
FOUND_BY = ("position", "consensus", "consensus", "consensus", "fatigue", "length")


def judged(seed, planted=True, items=600, votes=5, people=12, correlation=0.0):
    """Pairs whose better response is clear or less so; the first six people are those of PLANTED."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(size=items)
    noise = rng.normal(size=items)
    words = 5 * (correlation * gap + np.sqrt(1 - correlation**2) * noise)
    words = np.round(words).astype(int)
    item = np.repeat(np.arange(items), votes)
    person = np.argsort(rng.random((items, people)))[:, :votes].ravel()
    order = rng.permutation(len(item))
    item, person = item[order], person[order]
    a_first = (rng.random(len(item)) < 0.5).astype(float)
    late = np.zeros(len(item), bool)
    for p in range(people):
        rows = np.flatnonzero(person == p)
        late[rows[len(rows) // 2 :]] = True
    s = 3 * gap[item]
    if planted:
        s = np.select(
            [person == 3, (person == 4) & late, person == 5], [-s, 0 * s, s + 0.3 * words[item]], s
        )
        s = np.where((person == 1) | (person == 2), 0, s)
    p = expit(s)
    if planted:
        p = np.where(person == 0, np.where(a_first == 1, 0.65, 0.35), p)
    none = np.full(len(item), np.nan)
    return Judgements(
        *(item, person, (rng.random(len(item)) < p).astype(float), none, a_first, words[item]),
        *(none, np.arange(len(item), dtype=float), none, np.zeros(len(item), bool)),
        *(np.full(len(item), -1), np.zeros(len(item), bool)),
        *(tuple(map(str, range(items))), tuple(map(str, range(people)))),
    )


@pytest.mark.parametrize("correlation", [0.0, 0.5], ids=["no length in gold", "gold likes length"])
def test_planted_people_are_found_and_honest_ones_are_not(correlation):
    found, honest = collections.Counter(), 0
    for seed in range(30):
        people = reliability.people(judged(seed, correlation=correlation))
        for number, name in enumerate(FOUND_BY):
            found[number] += name in people[number].flags
        honest += sum(bool(x.flags) for x in people[len(PLANTED) :])
    assert all(found[number] >= 27 for number in range(len(PLANTED))), found
    assert honest <= 0.05 * 30 * 6


def test_where_all_are_honest_nobody_stands_out():
    """The false discovery rate controls at 5 % of the worlds where nobody is to be found."""
    flagged = sum(any(x.flags for x in reliability.people(judged(s, False))) for s in range(40))
    assert flagged <= 6  # 99.5 % of Binomial(40, .05)


def test_a_record_counts_what_it_says():
    one = judged(0)
    person = reliability.people(one)[3]
    mine = one.person == 3
    assert person.judged == mine.sum() and person.position.n == mine.sum()
    first = np.where(one.a_shown_first == 1, one.first, 1 - one.first)[mine]
    assert person.position.k == first.sum() and person.position.mean == first.mean()
    assert person.accuracy < 0.35 and person.consensus.mean < 0.4
    assert sum(x.n for x in person.halves) == person.consensus.n
    assert np.isnan(person.seconds) and np.isnan(person.gold.mean)


def test_wilson():
    """Values of the exact formula."""
    values = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (k, n), ends in {**values, (1, 29): (0.0061, 0.1718)}.items():
        assert reliability.Share(k, n).interval() == pytest.approx(ends, abs=6e-5)
    assert reliability.Share(0, 0).interval() == (0.0, 1.0)


def test_hidden_gold_and_repeats():
    """Ten people with twenty gold pairs and repeats each; one misses the gold, one contradicts himself."""
    rng = np.random.default_rng(0)
    rows = []
    for p in range(10):
        for i in range(60):
            rows.append((i, p, 1.0, np.nan, -1))
        for i in range(60, 80):
            rows.append((i, p, float(rng.random() < 0.5) if p == 4 else 1.0, 1.0, -1))
        for i in range(20):
            again = float(rng.random() < 0.5) if p == 7 else 1.0
            rows.append((80 + 20 * p + i, p, again, np.nan, i))
    item, person, first, gold, repeats = map(np.array, zip(*rows, strict=True))
    n = len(rows)
    none, sides = np.full(n, np.nan), (rng.random(n) < 0.5).astype(float)
    one = Judgements(
        *(item, person, first, none, sides, np.zeros(n, int), np.full(n, 3.0), np.arange(n) * 1.0),
        *(
            gold,
            gold == 1,
            repeats,
            np.zeros(n, bool),
            tuple(map(str, range(280))),
            tuple("abcdefghij"),
        ),
    )
    people = reliability.people(one)
    assert "gold" in people[4].flags and "self" in people[7].flags
    assert people[4].gold.n == 20 and people[7].self.n == 20 and people[0].self.mean == 1.0
    assert people[0].judged == 60 and people[0].seconds == 3.0
    others = [x for n, x in enumerate(people) if n not in (4, 7)]
    assert not any({"gold", "self", "consensus"} & {*x.flags} for x in others)


def test_a_few_votes_flag_nobody_for_length():
    few = reliability.people(judged(0, planted=False, items=6, votes=3))
    assert all("length" not in x.p_values for x in few)


def test_one_slip_is_no_flag():
    """Three people with six gold pairs, of whom one misses one; two with one repeat, of which one differs."""
    person = np.repeat([0, 1, 2], 6)
    n = len(person)
    first = np.ones(n)
    first[-1] = 0
    none = np.full(n, np.nan)
    one = Judgements(
        *(np.tile(np.arange(6), 3), person, first, none, none, np.zeros(n, int), none, none),
        *(np.ones(n), np.ones(n, bool), np.full(n, -1), np.zeros(n, bool)),
        *(tuple("abcdef"), tuple("xyz")),
    )
    people = reliability.people(one)
    assert people[2].gold == reliability.Share(5, 6) and people[2].p_values["gold"] > 0.3
    assert not any(x.flags for x in people)
