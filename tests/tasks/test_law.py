import itertools
import math
import random
from collections import Counter

import pytest

from rlhf_jax.tasks import law
from rlhf_jax.tasks.law import Way

WAYS = [  # "a b" has two divisions in the first way, and the second way writes it too
    Way(0.75, [{"a": 0.5, "a b": 0.25, "": 0.25}, {"b": 0.5, "": 0.5}, {"c": 0.25, "": 0.75}]),
    Way(0.25, [{"a b": 1.0}, {"c": 0.5, "d": 0.5}, {"": 1.0}]),
]


def test_the_probability_is_the_sum_over_ways_and_divisions():
    assert law.log_prob(WAYS, "a b") == pytest.approx(
        math.log(0.75 * (0.5 * 0.5 + 0.25 * 0.5) * 0.75)
    )
    assert law.log_prob(WAYS, "a b c") == pytest.approx(
        math.log(0.75 * (0.5 * 0.5 + 0.25 * 0.5) * 0.25 + 0.25 * 0.5)
    )
    assert law.log_prob(WAYS, "a b b") == pytest.approx(math.log(0.75 * 0.25 * 0.5 * 0.75))
    assert law.log_prob(WAYS, "") == pytest.approx(math.log(0.75 * 0.25 * 0.5 * 0.75))


@pytest.mark.parametrize("text", ["b a", "a c d", "x", "a  b", " a", "a b c c", "ab"])
def test_what_the_law_never_writes_has_no_probability(text):
    assert law.log_prob(WAYS, text) == -math.inf


def test_the_probabilities_of_all_texts_sum_to_one():
    texts = {
        " ".join(words) for n in range(5) for words in itertools.product("abcd", repeat=n)
    }  # none is longer
    assert sum(math.exp(law.log_prob(WAYS, text)) for text in texts) == pytest.approx(1, abs=1e-12)


def test_texts_are_drawn_as_often_as_their_probability_says():
    rng, n = random.Random(0), 10_000
    for text, count in Counter(law.draw(WAYS, rng) for _ in range(n)).items():
        p = math.exp(law.log_prob(WAYS, text))
        assert count == pytest.approx(n * p, abs=5 * math.sqrt(n * p * (1 - p)))


def test_a_mistaken_part_has_each_wrong_phrase_equally_often():
    assert law.mistaken("x", ["y", "z"], 0.5) == {"x": 0.5, "y": 0.25, "z": 0.25}
