"""Features of texts on spaCy's rules, by hand on small texts, and on texts that are none."""

import builtins
import pathlib

import numpy as np
import pytest

from rlhf_jax.rewards import features, functions
from rlhf_jax.rewards.functions import RewardError
from rlhf_jax.rewards.scorer import Scorer, ScorerConfig


def of(texts):
    """Every feature of the texts, by name."""
    return {name: np.array(fn((), texts)) for name, fn in features.REWARDS.items()}


NAMES = ["length", "repetition", "distinct", "sentences", "readability"]


@pytest.fixture(autouse=True)
def spacy(request):
    if "missing" not in request.node.name:
        pytest.importorskip("spacy")


def test_the_features_of_small_texts():
    cat = "The cat sat on the mat. It was happy!"  # 9 words, 10 syllables
    loop = "the cat sat on the cat sat on the cat sat"  # 8 sequences of four words, 4 different
    shy = 'Don\'t! A student (of 19) said "recognisable".'  # do + n't; re-cog-ni-sa-ble
    found = of([cat, loop, shy, "cat"])
    assert list(found) == NAMES == list(features.REWARDS)
    np.testing.assert_array_equal(found["length"], [9, 11, 8, 1])
    np.testing.assert_array_equal(found["repetition"], [0, 0.5, 0, 0])
    np.testing.assert_array_equal(found["distinct"], [1, 0.4, 1, 0])  # 10 pairs, 4 different
    np.testing.assert_array_equal(found["sentences"], [2, 1, 2, 1])
    ease = 206.835 - 1.015 * 9 / 2 - 84.6 * 10 / 9
    assert found["readability"][0] == pytest.approx(min(ease, 100))
    syllables = 1 + 1 + 1 + 2 + 1 + 1 + 1 + 5
    assert found["readability"][2] == pytest.approx(206.835 - 1.015 * 8 / 2 - 84.6 * syllables / 8)
    assert found["readability"][3] == 100.0


def test_hard_words_in_long_sentences_read_hard():
    easy = "We like to read. The sun is up."
    middle = "Reading pleases everybody, particularly outside."
    hard = "Institutional heterogeneity complicates interdisciplinary generalisation considerably."
    ease = of([easy, middle, hard])["readability"]
    assert ease[0] > ease[1] >= ease[2] == 0.0


@pytest.mark.parametrize("text", ["", " \n\t", "!!! ... ???", "\N{SNOWMAN}", "\ud800"])
def test_a_text_without_words_has_nothing(text):
    assert {name: float(x[0]) for name, x in of([text]).items()} == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize(
    "text", ["a" * 2**20, "go " * 2**15, "1", "nan", "日本語です。はい。", "\0"]
)
def test_features_of_hostile_texts_are_finite_and_bounded(text):
    found = {name: float(x[0]) for name, x in of([text]).items()}
    assert 0 <= found["repetition"] < 1 and 0 <= found["distinct"] <= 1
    assert 0 <= found["readability"] <= 100
    assert 0 <= found["sentences"] <= found["length"] <= 2**15
    if text.startswith("go"):
        assert found["repetition"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_is_a_reward_by_name(name):
    said = ["One two. Three four five!", "one", ""]
    scorer = Scorer(f"features:{name}", ScorerConfig(threads=2))
    scorer.check(["p"], [{}])
    found = scorer.submit(["p"] * 3, said).result()
    np.testing.assert_array_equal(found, np.float32(of(said)[name]))
    assert of([])[name].shape == (0,)


def test_an_unknown_feature_lists_the_known():
    with pytest.raises(
        RewardError, match="'features:size' is none of the library, which has features:leng"
    ):
        functions.load("features:size")


def test_a_feature_may_cost():
    path = pathlib.Path(__file__).parent.parent.parent / "examples/rewards.py"
    reward = functions.load(f"{path}:right_and_varied")
    said = ["so it is 42", "it is it is it is it is 42", "it is it is it is it is 41"]
    want = [1.0, 1.0 - 0.5 * 3 / 6, -0.5 * 3 / 6]  # 6 sequences of four words, 3 of them again
    np.testing.assert_allclose(reward(["p"] * 3, said, answer=["42"] * 3), want)


def test_where_spacy_is_missing_the_error_names_the_extra(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name == "spacy":
            raise ImportError(name)
        return imported(name, *rest)

    features._pipeline.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RewardError, match=r"text features need spaCy: .* rlhf_jax\[spacy\]"):
        functions.load("features:length")
