"""Weights and probabilities in rows of comparisons, ratings and ranks: what is read, refused and encoded."""

import itertools
import json
import re

import numpy as np
import pytest

from rlhf_jax.data import comparisons, ratings, sources, tokenizer
from rlhf_jax.data.bad_records import BadRecords
from rlhf_jax.data.builders import builder
from rlhf_jax.data.builders.demonstrations import Demonstrations
from rlhf_jax.data.builders.preferences import Preferences
from rlhf_jax.data.comparisons import Comparison, ComparisonFields
from rlhf_jax.data.ratings import Rating, RatingFields, Scale
from rlhf_jax.pipeline import reading
from rlhf_jax.pipeline.texts import DataConfig, Needs

PAIR = {"prompt": "p", "responses": ["a", "b"]}
SAID = {"prompt": "p", "response": "r"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer.train(["a b c d e f g"] * 3, 300, tmp_path_factory.mktemp("words"))


def test_a_probability_makes_one_pair_of_the_likelier_response_over_the_other(tmp_path, words):
    path = write(
        tmp_path / "a.jsonl",
        PAIR | {"probability": 0.75, "weight": 4},
        PAIR | {"probability": 0.25},
        PAIR | {"probability": 0.5, "preference": 1},
        PAIR | {"preference": 0, "weight": 0.5},
        {"prompt": "p", "chosen": "a", "rejected": "b", "probability": 0, "weight": 2},
        {"chosen": "c", "rejected": "d", "probability": 1},
    )
    found, ties = comparisons.read_comparisons(path)
    assert ties == 0
    assert found == [
        Comparison("p", "a", "b", "p", probability=0.75, weight=4),
        Comparison("p", "b", "a", "p", probability=0.75),
        Comparison("p", "a", "b", "p", probability=0.5),
        Comparison("p", "a", "b", "p", weight=0.5),
        Comparison("p", "b", "a", "p", weight=2),
        Comparison("", "c", "d", "c\nd"),
    ]
    encoded = comparisons.encode_comparisons(words, found, 2, 4)
    assert encoded.weight.tolist() == [4, 1, 1, 0.5, 2, 1]
    assert encoded.probability.tolist() == [0.75, 0.75, 0.5, 1, 1, 1]
    assert (encoded.weight.dtype, encoded.probability.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("extra", [{"preference": 0}, {"chosen": "a", "rejected": "b"}])
def test_certainty_and_a_weight_of_one_are_a_label(tmp_path, extra):
    layout = {x: y for x, y in PAIR.items() if x == "prompt" or "preference" in extra}
    hard = write(tmp_path / "hard.jsonl", layout | extra)
    soft = {x: y for x, y in (layout | extra).items() if x != "preference"}
    sure = write(tmp_path / "soft.jsonl", soft | {"probability": 1, "weight": 1.0})
    read = comparisons.read_comparisons
    assert read(hard) == read(sure)


def test_the_fields_can_be_named_and_can_be_none(tmp_path):
    row = PAIR | {"preference": 1, "p": 0.75, "votes": 3, "weight": "70 kg", "probability": "high"}
    path = write(tmp_path / "a.jsonl", row)
    named = ComparisonFields(probability="p", weight="votes")
    (found,), _ = comparisons.read_comparisons(path, named)
    assert found == Comparison("p", "a", "b", "p", probability=0.75, weight=3)
    (found,), _ = comparisons.read_comparisons(path, ComparisonFields(probability="", weight=""))
    assert found == Comparison("p", "b", "a", "p")
    path = write(tmp_path / "b.jsonl", SAID | {"rating": 1, "votes": 3}, SAID | {"rating": 2})
    assert [x.weight for x in ratings.read_ratings(path, RatingFields(weight="votes"))] == [3, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PAIR | {"probability": 1.1}, "field 'probability' must be a number from 0 to 1, and is 1.1"),
        (PAIR | {"probability": -1}, "field 'probability' must be a number from 0 to 1, and is -1"),
        (PAIR | {"probability": float("nan")}, "must be a number from 0 to 1, and is nan"),
        (PAIR | {"probability": None}, "field 'probability' must be a number, and is null"),
        (PAIR | {"probability": True}, "field 'probability' must be a number, and is true or false"),
        (PAIR | {"probability": "0.5"}, "field 'probability' must be a number, and is a string"),
        (PAIR | {"responses": ["a", "b", "c"], "probability": 1}, "'probability' is about two resp"),
        ({"chosen": "a", "rejected": "b", "probability": 2}, "number from 0 to 1, and is 2"),
        (PAIR | {"preference": 0, "weight": -0.5}, "field 'weight' must be a weight from 0 to 1e"),
        (PAIR | {"preference": 0, "weight": float("nan")}, "from 0 to 1e.30, and is nan"),
        (PAIR | {"preference": 0, "weight": float("inf")}, "from 0 to 1e.30, and is inf"),
        (PAIR | {"preference": 0, "weight": None}, "field 'weight' must be a number, and is null"),
        (PAIR | {"preference": "tie", "weight": "1"}, "'weight' must be a number, and is a string"),
        (PAIR | {"ranks": [1, 2], "weight": -1}, "field 'weight' must be a weight from 0 to 1e"),
        ({"text": "t", "label": 1, "weight": -1}, "field 'weight' must be a weight from 0 to 1e"),
        (SAID | {"rating": 1, "weight": -1}, "field 'weight' must be a weight from 0 to 1e"),
        (SAID | {"rating": 1, "weight": [1]}, "field 'weight' must be a number, and is a list"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_line_in_one_sentence(tmp_path, row, message):
    rated = "rating" in row
    good = SAID | {"rating": 2} if rated else PAIR | {"preference": 0}
    path = write(tmp_path / "a.jsonl", good, row)
    read = ratings.read_ratings if rated else comparisons.read_comparisons
    with pytest.raises(ValueError, match=rf"a.jsonl:2: .*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    path = write(tmp_path / "b.jsonl", good, row, good | {"rating": 3, "preference": 1})
    read(path, bad=(bad := BadRecords(skip=True)))
    assert [error.where for error in bad.found] == [f"{path}:2"]


LAYOUTS = {
    "preference": PAIR | {"preference": 0},
    "tie": PAIR | {"preference": "tie"},
    "probability": PAIR | {"probability": 0.3},
    "chosen": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "ranks": {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]},
    "positive": {"text": "good", "label": 1},
    "negative": {"text": "bad", "label": 0},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_of_weight_zero_is_a_row_left_out_and_told(tmp_path, capsys, words, layout):
    """Whatever its layout, and wherever it stands; also where labelled texts are matched at random."""
    others = [
        x | {"prompt": f"{n}"} if "prompt" in x else x for n, x in enumerate(LAYOUTS.values())
    ]
    others += [{"text": f"t {n}", "label": n % 2} for n in range(9)]
    nothing = LAYOUTS[layout] | {"weight": 0}
    fewer = write(tmp_path / "fewer.jsonl", *others)
    more = write(tmp_path / "more.jsonl", nothing, *others[:4], nothing, *others[4:])
    (want, ties), (found, same) = map(comparisons.read_comparisons, (fewer, more))
    assert f"left out: 2 rows of {more}, whose weight is 0" in capsys.readouterr().out
    unnamed = lambda pairs: [pair._replace(ranking=bool(pair.ranking)) for pair in pairs]
    assert unnamed(found) == unnamed(want) and ties == same
    for encode in (comparisons.encode_comparisons, comparisons.encode_rankings):
        got, as_if = encode(words, found, 2, 6), encode(words, want, 2, 6)
        for x, y in zip(flat(got), flat(as_if), strict=True):
            np.testing.assert_array_equal(x, y)


def flat(record):
    if isinstance(record, np.ndarray):
        return [record]
    return [x for part in record for x in flat(part)]


def test_a_rating_of_weight_zero_is_left_out_and_told(tmp_path, capsys):
    rows = [SAID | {"rating": 1}, SAID | {"rating": 3, "weight": 2}]
    path = write(tmp_path / "a.jsonl", rows[0], SAID | {"rating": 9, "weight": 0}, rows[1])
    assert ratings.read_ratings(path) == [Rating("p", "r", 1, "p"), Rating("p", "r", 3, "p", 2)]
    assert f"left out: 1 rows of {path}, whose weight is 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("read", "rows", "message"),
    [
        (comparisons.read_comparisons, [PAIR | {"preference": 0, "weight": 0}] * 2, "every row has a weight"),
        (comparisons.read_comparisons, [PAIR | {"probability": 0.5}] * 2, "all 2 preferences are ties"),
        (ratings.read_ratings, [SAID | {"rating": 1, "weight": 0}] * 2, "every row has a weight of 0"),
    ],
)  # fmt: skip
def test_rows_that_teach_nothing_are_refused_together(tmp_path, read, rows, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}.*{message}"):
        read(write(tmp_path / "a.jsonl", *rows))


def test_labelled_texts_multiply_their_weights(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"text": "good", "label": 1, "weight": 3},
        {"text": "bad", "label": 0, "weight": 0.5},
    )
    ((pair,), _) = comparisons.read_comparisons(path)
    assert (pair.chosen, pair.rejected, pair.weight) == ("good", "bad", 1.5)


def test_a_ranking_has_the_weight_of_its_row_and_a_soft_pair_is_two_of_them(tmp_path, words):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 3], "weight": 3},
        {"prompt": "q", "responses": ["d", "e"], "probability": 0.25, "weight": 2},
        {"prompt": "r", "responses": ["f", "g"], "preference": 1},
    )
    found, _ = comparisons.read_comparisons(path)
    got = comparisons.encode_rankings(words, found, 2, 4)
    assert got.weight.tolist() == [3, 1.5, 0.5, 1]
    assert sorted(got.rank[0]) == [0, 1, 2] and got.rank[1:].tolist() == [[0, 1, -1]] * 3
    said = [
        [words.decode(x[-4:][m]).removesuffix("<eos>").strip() for x, m in zip(*row, strict=True)]
        for row in zip(got.responses.tokens, got.responses.mask, strict=True)
    ]
    assert [x[:2] for x in said[1:]] == [["e", "d"], ["d", "e"], ["g", "f"]]


def test_scores_are_standardised_by_the_mean_and_deviation_of_what_they_weigh():
    scores, times = [1.0, 5.0, 4.0, 2.0], [3, 1, 2, 1]
    repeated = list(itertools.chain(*([x] * n for x, n in zip(scores, times, strict=True))))
    want, found = ratings.scale_of(repeated), ratings.scale_of(scores, np.array(times))
    assert found.kind == "regression"
    np.testing.assert_allclose(found[1:], want[1:], rtol=1e-12)
    assert ratings.scale_of([0.0, 0.5], [1.0, 9.0]) == Scale("binary", 0, 1)


def test_weights_and_probabilities_come_back_from_tfds(tmp_path):
    """Numbers of seven digits, as the builders keep them."""
    soft = [PAIR | {"probability": 0.666667, "weight": 3}, PAIR | {"probability": 0.0, "weight": 1}]
    rated = [SAID | {"rating": 4, "weight": 2}, SAID | {"rating": 1, "weight": 1}]
    for kind, name, rows, read in (
        (Preferences, "pairs", soft, comparisons.read_comparisons),
        (Demonstrations, "rated", rated, ratings.read_ratings),
    ):
        path = write(tmp_path / f"{name}.jsonl", *rows)
        builder.prepare(kind, {"train": sources.read(path)}, tmp_path / name)
        assert read(path) == read(str(tmp_path / name))
        assert [dict(row) for row in sources.read(str(tmp_path / name))] == rows


def test_held_out_ties_are_not_counted_and_those_to_learn_from_are_learned(tmp_path, capsys):
    """A prompt is asked all the same, and the better responses are of pairs that have one."""
    rows = [
        {"prompt": f"p {n}", "responses": [f"a {n}", f"b {n}"], "probability": (0.5, 0.2)[n % 2]}
        for n in range(60)
    ]
    cfg = DataConfig(comparisons=write(tmp_path / "a.jsonl", *rows), held_out=0.3)
    found = reading.from_files(cfg, 0, needs=Needs(("comparisons",), ("corpus", "prompts")))
    sure = [x for x in found.pairs.train if x.probability > 0.5]
    assert 0 < len(sure) < len(found.pairs.train)
    assert {x.probability for x in found.pairs.held_out} == {0.8}
    ties = len(found.rows_held_out) - len(found.pairs.held_out)
    assert (
        ties > 0
        and f"not counted: {ties} of {len(found.rows_held_out)} held-out pairs of data.c"
        in (capsys.readouterr().out)
    )
    assert len(found.rows) + len(found.rows_held_out) == 60
    taught = {said for _, said in found.corpus + found.corpus_held_out}
    assert taught == {x.chosen for x in sure} and all(said.startswith("b") for said in taught)
    learned = next(row for row in rows if row["responses"][1] in taught)
    tied = write(tmp_path / "b.jsonl", learned, *rows[::2])
    cfg, needs = DataConfig(comparisons=tied, held_out=0.3), Needs(("comparisons",))
    with pytest.raises(ValueError, match="in every held-out pair both responses are as good"):
        reading.from_files(cfg, 0, needs=needs)
