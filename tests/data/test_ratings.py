"""Ratings and ranks: what is read, refused, split and encoded."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from rlhf_jax.data import comparisons, demonstrations, ratings, tokenizer
from rlhf_jax.data.comparisons import Comparison, ComparisonFields
from rlhf_jax.data.ratings import Rating, RatingFields, Scale
from rlhf_jax.pipeline import texts
from rlhf_jax.pipeline.texts import DataConfig, Needs


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.train(["a b c d e f g"] * 3, 300, tmp_path_factory.mktemp("words"))


def test_rows_with_any_name_of_the_score_are_read_and_a_repeated_one_counts_twice(tmp_path):
    said = {"prompt": "p  q", "response": "r"}
    path = write(
        tmp_path / "a.jsonl",
        said | {"rating": 4},
        said | {"rating": 4},
        said | {"score": 2.5},
        said | {"label": True},
        {"text": "t u", "label": 0},
        {"prompt": "", "response": "s", "rating": -1},
    )
    found = ratings.read_ratings(path)
    assert found[:4] == [Rating("p  q", "r", score, "p q") for score in (4, 4, 2.5, 1)]
    assert found[4:] == [Rating("", "t u", 0, "t u"), Rating("", "s", -1, "s")]
    assert [x.responses for x in found[:1]] == [("r",)]


def test_fields_can_be_named(tmp_path):
    row = {"ask": "q", "more": "m", "reply": "r", "stars": 3, "label": 9}
    path = write(tmp_path / "a.jsonl", row, row | {"stars": 5})
    fields = RatingFields(prompt="ask, more", response="reply", score="stars")
    assert ratings.read_ratings(path, fields) == [
        Rating("q\nm", "r", 3, "q m"),
        Rating("q\nm", "r", 5, "q m"),
    ]


SAID = {"prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SAID, "a rating needs one score, in the field 'rating' or 'score' or 'label', .* found are"),
        (SAID | {"rating": 1, "label": 0}, "with a score are 'rating', 'label': name yours with"),
        (SAID | {"rating": "good"}, "field 'rating' must be a number, and is a string"),
        (SAID | {"rating": None}, "field 'rating' must be a number, and is null"),
        (SAID | {"rating": float("nan")}, "field 'rating' must be a number of at most 1e"),
        (SAID | {"rating": float("inf")}, "field 'rating' must be a number of at most 1e"),
        (SAID | {"rating": -(10**400)}, "field 'rating' must be a number of at most 1e"),
        ({"response": "r", "rating": 1}, "field 'prompt' is missing"),
        ({"prompt": "p", "rating": 1}, "a rating needs the field 'response' or 'text', and"),
        ({"prompt": "p", "response": 5, "rating": 1}, "field 'response' must be a string"),
        ({"prompt": [{"role": "user", "content": "x"}], "response": "r", "rating": 1}, "dialogue"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_rating_is_refused_by_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", SAID | {"rating": 1}, row)
    with pytest.raises(ValueError, match=rf"a.jsonl:2: .*{message}") as caught:
        ratings.read_ratings(path)
    assert "\n" not in str(caught.value)


def test_equal_scores_teach_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", *[SAID | {"rating": 3}] * 4)
    with pytest.raises(ValueError, match=r"a.jsonl: each of the 4 scores is 3, and nothing can"):
        ratings.read_ratings(path)
    with pytest.raises(ValueError, match=r"each of the 2 ratings to learn from is 0.5"):
        ratings.scale_of([0.5, 0.5])


def test_labels_and_votes_stay_and_other_scores_are_standardised_and_read_back(words):
    assert ratings.scale_of([0.0, 1.0, 0.25]) == Scale("binary", 0, 1)
    scores = [1.0, 5.0, 4.0, 2.0]
    scale = ratings.scale_of(scores)
    assert scale[:2] == ("regression", 3.0)
    np.testing.assert_allclose(scale.deviation, np.sqrt(2.5))
    rows = [Rating("a", f"b {n}", score, "a") for n, score in enumerate(scores)]
    found = ratings.encode_ratings(words, rows, 3, 8, scale)
    np.testing.assert_allclose(found.score.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(found.score.std(), 1, rtol=1e-6)
    np.testing.assert_allclose(scale.mean + scale.deviation * found.score, scores, rtol=1e-6)
    want = demonstrations.encode_demonstrations(
        words, ["a"] * 4, [row.response for row in rows], 3, 8
    )
    for got, side in zip(found.responses, want, strict=True):
        np.testing.assert_array_equal(got, side)
    np.testing.assert_array_equal(found.weight, 1)


# ranks


def test_ranks_make_a_pair_of_every_two_responses_that_differ(tmp_path, words):
    row = {"prompt": "p", "responses": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 7.5]}
    alone = {"prompt": "q", "responses": ["e", "f"], "preference": 1}
    path = write(tmp_path / "a.jsonl", row, alone)
    found, ties = comparisons.read_comparisons(path)
    pairs = {("b", "a"), ("b", "c"), ("b", "d"), ("a", "d"), ("c", "d")}
    where = f"{path}:1"
    assert {c for c in found if c.ranking} == {Comparison("p", *x, "p", where) for x in pairs}
    assert found[-1] == Comparison("q", "f", "e", "q") and ties == 1
    got = comparisons.encode_rankings(words, found, 2, 4)
    assert got.rank.shape == (2, 4) and got.responses.tokens.shape == (2, 4, 6)
    said = {"a": 1, "b": 0, "c": 1, "d": 3}
    for column in range(4):
        response = words.decode(got.responses.tokens[0, column, -4:][got.responses.mask[0, column]])
        name = response.strip()[0]
        assert got.rank[0, column] == said.pop(name)
    assert sorted(got.rank[1]) == [-1, -1, 0, 1]
    want = comparisons.encode_comparisons(words, found[-1:], 2, 4)
    for side, rank in zip(want.sides, (0, 1), strict=True):
        column = int(np.argmax(got.rank[1] == rank))
        np.testing.assert_array_equal(got.responses.tokens[1, column], side.tokens[0])
    assert got.responses.attention_mask.any(axis=2).all()  # copies, where responses are missing


def test_a_preference_counts_before_ranks_and_ranks_can_be_named(tmp_path):
    row = {"prompt": "", "responses": ["a", "b"], "ranks": [1, 2]}
    path = write(tmp_path / "a.jsonl", row | {"preference": 1})
    assert comparisons.read_comparisons(path)[0][0][:3] == ("", "b", "a")
    path = write(tmp_path / "b.jsonl", {"prompt": "", "one": "a", "two": "b", "place": [1, 2]})
    fields = ComparisonFields(responses="one,two", ranks="place")
    assert comparisons.read_comparisons(path, fields)[0][0][:3] == ("", "a", "b")


@pytest.mark.parametrize(
    ("ranks", "responses", "message"),
    [
        ([1], ["a", "b"], "field 'ranks' must hold a number for each response, which are 2"),
        ([1, "2"], ["a", "b"], "field 'ranks' must hold a number for each"),
        ([1, True], ["a", "b"], "field 'ranks' must hold a number for each"),
        ([1, float("nan")], ["a", "b"], "field 'ranks' must hold a number for each"),
        (3, ["a", "b"], "field 'ranks' must be a list, and is a whole number"),
        ([1, 2], ["a", "a"], "'responses' holds the same text twice"),
    ],
)
def test_bad_ranks_are_refused_by_line(tmp_path, ranks, responses, message):
    path = write(tmp_path / "a.jsonl", {"prompt": "", "responses": responses, "ranks": ranks})
    with pytest.raises(ValueError, match=rf"a.jsonl:1: {message}"):
        comparisons.read_comparisons(path)


# what a run makes of ratings


def log(path, n=60):
    """Ratings of four responses to each of `n` prompts, from 1 to 4."""
    return write(
        path,
        *(
            {"prompt": f"question {i}", "response": f"answer {i} {k}", "rating": k}
            for i in range(n)
            for k in (1, 2, 3, 4)
        ),
    )


RL = Needs(("prompts", "corpus", "comparisons"), ("ratings",), halves=True)


def test_a_log_of_ratings_is_corpus_prompts_and_feedback_and_each_prompt_is_on_one_side(tmp_path):
    cfg = DataConfig(ratings=log(tmp_path / "a.jsonl"), held_out=0.3)
    texts.check_files(cfg, RL)
    read = texts.from_files(cfg, 0, needs=RL)
    assert read.pairs is not None
    sides = [*read.pairs.halves, read.pairs.held_out]
    groups = [{x.group for x in side} for side in sides]
    assert all(groups) and len(set.union(*groups)) == sum(map(len, groups)) == 60
    assert sum(map(len, sides)) == 240
    assert {row.prompt for row in read.rows} == groups[0] | groups[1]
    assert {row.prompt for row in read.rows_held_out} == groups[2]
    corpus = read.corpus + read.corpus_held_out
    assert {(p, r) for p, r in corpus} == {
        (x.prompt, x.response) for x in read.pairs.train if x.score > 2.5
    }


def test_ratings_of_held_out_prompts_and_texts_teach_nothing(tmp_path):
    asked = write(tmp_path / "p.jsonl", *({"prompt": f"question {i}"} for i in range(60)))
    cfg = DataConfig(ratings=log(tmp_path / "a.jsonl"), prompts=asked, held_out=0.3)
    read = texts.from_files(cfg, 0, needs=RL)
    assert read.pairs is not None
    held_out = {row.prompt for row in read.rows_held_out}
    assert held_out and not held_out & {x.prompt for x in read.pairs.train}
    assert not held_out & {prompt for prompt, _ in read.corpus + read.corpus_held_out}


def test_a_corpus_text_that_is_a_held_out_response_is_not_learned(tmp_path):
    first = log(tmp_path / "a.jsonl")
    cfg = DataConfig(ratings=first, held_out=0.3)
    rated = texts.from_files(cfg, 0, needs=RL).pairs
    assert rated is not None
    corpus = write(
        tmp_path / "b.jsonl", *({"text": x.response} for x in rated.held_out + rated.train)
    )
    read = texts.from_files(replace(cfg, corpus=corpus), 0, needs=RL)
    learned = {response for _, response in read.corpus + read.corpus_held_out}
    assert learned == {x.response for x in rated.train}


@pytest.mark.parametrize(
    ("settings", "needs", "message"),
    [
        ({"comparisons": "c"}, RL, 'data.ratings = "r" and data.comparisons = "c" are both given'),
        ({}, Needs(("corpus",), ("ratings", "prompts")), None),
        ({"corpus": "c", "comparisons": "d", "prompts": "p"},
         Needs(("corpus", "comparisons", "prompts")), 'data.ratings = "r" has no effect because'),
    ],
)  # fmt: skip
def test_files_beside_ratings_are_checked_by_name(settings, needs, message):
    cfg = DataConfig(ratings="r", **settings)
    if message is None:
        return texts.check_files(cfg, needs)
    with pytest.raises(ValueError, match=re.escape(message)):
        texts.check_files(cfg, needs)


def test_a_method_that_samples_needs_prompts_with_its_ratings(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(60)]
    cfg = DataConfig(ratings=write(tmp_path / "a.jsonl", *rows), held_out=0.3)
    with pytest.raises(
        ValueError, match=r"data.prompts is empty, and too few rows of data.ratings"
    ):
        texts.from_files(cfg, 0, needs=RL)
    assert texts.from_files(cfg, 0, needs=Needs(("comparisons",), ("corpus", "ratings"))).pairs


def test_halves_that_would_teach_rewards_of_two_kinds_are_refused(tmp_path):
    rows = [{"prompt": f"p {i}", "response": "r", "rating": i % 2} for i in range(40)]
    path = write(tmp_path / "a.jsonl", *rows, {"prompt": "p", "response": "s", "rating": 3})
    refused = 0
    for seed in range(4):
        try:
            texts.from_files(DataConfig(ratings=path, held_out=0.2), seed, needs=RL)
        except ValueError as error:
            refused += "the scores of one half are all from 0 to 1" in str(error)
    assert refused > 0
