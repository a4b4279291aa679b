"""The exact law of texts that are written part by part, each part drawn independently of the others."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

Part = dict[str, float]
"""The phrases that a part may be, "" included, and their probabilities."""


class Way(NamedTuple):
    """One way of writing a text: its probability, and its parts in order."""

    odds: float
    parts: list[Part]


def draw(ways: Sequence[Way], rng: random.Random) -> str:
    """A text of the law, its words separated by single spaces; it may be empty."""
    (way,) = rng.choices(ways, [way.odds for way in ways])
    phrases = [rng.choices(list(part), list(part.values()))[0] for part in way.parts]
    return " ".join(phrase for phrase in phrases if phrase)


def log_prob(ways: Sequence[Way], text: str) -> float:
    """The exact log-probability of a text, in nats; -inf for a text that the law never writes.

    The sum over all ways and over all divisions of the text into parts, by dynamic programming over the
    number of words that the first parts have written.
    """
    words = text.split()
    if " ".join(words) != text:
        return -math.inf
    total = sum(_probability(way, words) for way in ways)
    return math.log(total) if total else -math.inf


def _probability(way: Way, words: list[str]) -> float:
    reached = {0: way.odds}
    for part in way.parts:
        after = defaultdict(float)
        for at, p in reached.items():
            for phrase, odds in part.items():
                said = phrase.split()
                if words[at : at + len(said)] == said:
                    after[at + len(said)] += p * odds
        reached = after
    return reached.get(len(words), 0.0)


def mistaken(right: str, others: Sequence[str], odds: float) -> Part:
    """A part that is one of `others`, equally likely, with probability `odds`, and else the right one."""
    return {right: 1 - odds} | dict.fromkeys(others, odds / len(others))
