"""The exact distribution of `gold` in the generated world of `reviews.py`.

With it the most gold that any policy can have for its KL is known (`overoptimization.frontier_of_law`).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from rlhf_jax.tasks import reviews


def gold_law(aspect: str) -> tuple[Float64[np.ndarray, " K"], Float64[np.ndarray, " K"]]:
    """The values of `gold` under the grammar, ascending, and their probabilities; takes about a second.

    The law is exact, by dynamic programming over the clauses. `aspect` is the one that the prompt names;
    the rest of a prompt has no effect. A response passes its side and its used general adjectives on to the
    next clause, and the sum of weight x worth to gold. Sums are whole numbers, so equal ones are merged.
    Raises ValueError for a word that is no aspect.
    """
    if aspect not in reviews.ASPECTS:
        raise ValueError(f"{aspect!r} is no aspect: name one of {', '.join(reviews.ASPECTS)}")
    others = [a for a in reviews.ASPECTS if a != aspect]
    halves = {word: round(2 * weight) for word, weight in reviews.CONNECTIVES.items()}
    # the largest worth of a clause
    most = round(1000 * max(reviews.STRENGTH.values()) * max(reviews.ADVERBS.values()))
    masses: dict[int, np.ndarray] = {}  # for each total weight, the probability of each sum

    def ends(weight, sums, probabilities):
        mass = masses.setdefault(weight, np.zeros(2 * weight * most + 1))
        places = (sums + weight * most).ravel()
        mass += np.bincount(places, probabilities.ravel(), len(mass))

    first = _phrases([aspect], [0])
    said_first = first.odds[0] * _sides(first.worth, "")[0]  # [N]
    sums_first, weight_first = halves[""] * first.worth, halves[""]
    ends(weight_first, sums_first, reviews.STOP_ODDS[0] * said_first)
    marks, mark_of = np.unique(first.mark, return_inverse=True)
    alike = defaultdict(list)  # second aspects whose adjectives are as strong give the same sums
    for other in others:
        alike[tuple(reviews.SPECIFIC[other].values())].append(other)
    for same in alike.values():
        second = _phrases(same[:1], marks)
        used, state = np.unique(first.mark[:, None] | second.mark, return_inverse=True)
        state = 2 * state + (second.worth < 0)  # [N, M]
        third = _phrases([a for a in others if a != same[0]], used)
        worths, worth_of = np.unique(third.worth, return_inverse=True)
        odds = third.odds @ (worth_of[:, None] == np.arange(len(worths))).astype(float)
        for connective, p in reviews.CONNECTIVE_ODDS.items():
            turns = _sides(second.worth, connective)[(first.worth < 0).astype(int)]  # [N, M]
            said = said_first[:, None] * second.odds[mark_of] * turns
            said *= (1 - reviews.STOP_ODDS[0]) * p * len(same) / len(others)
            sums = sums_first[:, None] + halves[connective] * second.worth
            weight = weight_first + halves[connective]
            ends(weight, sums, reviews.STOP_ODDS[1] * said)
            sums, sum_of = np.unique(sums, return_inverse=True)
            before = np.zeros((len(used) * 2, len(sums)))
            np.add.at(before, (state, sum_of), (1 - reviews.STOP_ODDS[1]) * said)
            for connective, p in reviews.CONNECTIVE_ODDS.items():
                after = (odds[:, None] * _sides(worths, connective)).reshape(-1, len(worths))
                ends(
                    weight + halves[connective],
                    sums[:, None] + halves[connective] * worths,
                    p * before.T @ after,
                )
    unit = math.lcm(*masses)
    sums = [(np.flatnonzero(m) - w * most) * (unit // w) for w, m in masses.items()]
    values, value_of = np.unique(np.concatenate(sums), return_inverse=True)
    probabilities = np.concatenate([m[m > 0] for m in masses.values()])
    return values / (1000 * unit * reviews.SCALE), np.bincount(value_of, probabilities)


class _Phrases(NamedTuple):
    """Clauses without verbs, for `gold_law`: an adjective, a negation and an adverb each."""

    worth: np.ndarray  # [N], in thousandths: the tables are in tenths, so these are whole numbers
    mark: np.ndarray  # [N], the bit of a general adjective; 0 for one of the aspect's own
    odds: np.ndarray  # [masks, N], the probability given the side that the clause takes


def _phrases(aspects: Sequence[str], masks: Sequence[int] | np.ndarray) -> _Phrases:
    """Every clause about one of `aspects`, equally likely, after the general adjectives of each mask."""
    words = [*reviews.GENERAL, *(word for aspect in aspects for word in reviews.SPECIFIC[aspect])]
    picked = np.zeros((len(masks), len(words)))
    for row, mask in zip(picked, masks, strict=True):
        used = [word for i, word in enumerate(reviews.GENERAL) if mask >> i & 1]
        for aspect, sign in itertools.product(aspects, (1, -1)):
            odds = reviews.adjective_odds(aspect, sign, used)
            for word, p in odds.items():
                row[words.index(word)] += p / sum(odds.values()) / len(aspects)
    worth, mark, said = [], [], []
    for i, word in enumerate(words):
        for negation, adverb in itertools.product(reviews.NEGATION_ODDS, reviews.ADVERB_ODDS):
            change = reviews.ADVERBS[adverb] * reviews.NEGATIONS[negation]
            worth.append(round(1000 * reviews.STRENGTH[word] * change))
            mark.append(1 << i if word in reviews.GENERAL else 0)
            said.append(reviews.NEGATION_ODDS[negation] * reviews.ADVERB_ODDS[adverb])
    odds = np.repeat(picked, len(worth) // len(words), axis=1) * said
    return _Phrases(np.array(worth), np.array(mark), odds)


def _sides(worth: np.ndarray, connective: str) -> np.ndarray:
    """The probability [2, N] of the side of each clause, after a good one and after a bad one."""
    same = reviews.SAME_SIDE[connective]
    return np.where((worth > 0) == [[True], [False]], same, 1 - same)
