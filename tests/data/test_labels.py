"""Labelled responses of comparisons and ratings: which label, with which weight, in which order."""

from collections import Counter

import numpy as np
import pytest

from rlhf_jax.algorithms import kto
from rlhf_jax.batches import Sequences
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.data.labels import Label, labelled
from rlhf_jax.data.ratings import Rating


def found(items):
    """{(prompt, response, label): weight} of the labelled responses."""
    return {row[:3]: row.weight for row in labelled(items, items)}


def test_the_chosen_response_is_desirable_and_a_soft_pair_has_both_labels_by_its_shares():
    pairs = [
        Comparison("p", "a", "b", "g"),
        Comparison("q", "c", "d", "g", probability=0.75, weight=4),
        Comparison("r", "e", "f", "g", probability=0.5),
    ]
    assert found(pairs) == {
        ("p", "a", True): 1,
        ("p", "b", False): 1,
        ("q", "c", True): 3,
        ("q", "c", False): 1,
        ("q", "d", False): 3,
        ("q", "d", True): 1,
        **{("r", x, label): 0.5 for x in "ef" for label in (True, False)},
    }


@pytest.mark.parametrize(
    ("scores", "weights", "good"),
    [
        ([0, 1, 1], [1, 1, 1], [0, 1, 1]),
        ([1, 3, 4, 5], [1, 1, 1, 1], [0, 0, 1, 1]),  # the mean is 3.25
        ([1, 3, 4, 5], [3, 1, 1, 1], [0, 1, 1, 1]),  # and 2.5 by weight
        ([-2, 2, 0], [1, 1, 1], [0, 1, 1]),  # one is as high as the mean
        ([0, 0.75, 1], [1, 2, 1], [0, 0.75, 1]),  # shares of votes
    ],
)
def test_a_rating_is_a_label_a_share_of_votes_or_beside_the_mean(scores, weights, good):
    want, rows = {}, []
    for n, (score, weight, x) in enumerate(zip(scores, weights, good, strict=True)):
        rows.append(Rating("p", f"r{n}", score, "g", weight))
        want |= {("p", f"r{n}", True): weight * x, ("p", f"r{n}", False): weight * (1 - x)}
    assert found(rows) == {key: weight for key, weight in want.items() if weight}


def test_held_out_ratings_are_measured_by_those_to_learn_from():
    train = [Rating("p", "a", 1, "g"), Rating("p", "b", 5, "g")]
    assert labelled([Rating("q", "c", 2, "h")], train) == [Label("q", "c", False, "h", 1)]
    assert labelled([Rating("q", "c", 4, "h")], train) == [Label("q", "c", True, "h", 1)]


def test_half_of_all_rows_further_down_stands_another_prompt():
    """KTO's reference point needs it, whatever the order of the pairs."""
    prompts = [5, 3, 5, 4, 3, 5, 4, 4]
    pairs = [Comparison(str(p), f"{n + 1}", f"-{n + 1}", "g") for n, p in enumerate(prompts)]
    rows = labelled(pairs, pairs)
    assert Counter(int(row.prompt) for row in rows) == Counter(prompts * 2)
    assert all(row.desirable == (int(row.response) > 0) for row in rows)
    tokens = np.array([[int(row.prompt), int(row.response)] for row in rows])
    real = np.ones(tokens.shape, bool)
    moved = np.asarray(kto.mismatch(Sequences(tokens, real, real[:, 1:]), len(rows) // 2).tokens)
    prompt_of = {int(row.response): int(row.prompt) for row in rows}
    np.testing.assert_array_equal(moved[:, 0], tokens[:, 0])
    assert sorted(moved[:, 1]) == sorted(tokens[:, 1])
    assert all(prompt_of[said] != asked for asked, said in moved.tolist())
