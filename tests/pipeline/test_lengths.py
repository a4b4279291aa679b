"""Lengths of prompts and answers that come from the data, and what is told of what they cut."""

import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.applications import sentiment
from experiments.methods import reward
from rlhf_jax.data import tokenizer
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.pipeline import lengths, settings
from rlhf_jax.pipeline.lengths import Texts

LONG = "a " * 5000


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer that has a token for each letter, and for a space with one."""
    return tokenizer.train(["a a a a b"] * 9, 400, tmp_path_factory.mktemp("words"))


def texts(*counts: int) -> list[str]:
    """Texts of so many tokens, BOS included."""
    return ["a" + " a" * (n - 2) for n in counts]


def settled(folder, words, files, cfg: settings.RunConfig = sentiment.config):
    return lengths.settled(cfg, folder, words, lambda: files)


def asked(prompt=0, answer=0):
    cfg = lengths.put(sentiment.config, prompt, answer)
    return replace(cfg, model=replace(cfg.model, context=8))


def test_lengths_hold_all_but_a_hundredth_of_each_file_and_the_model_grows(tmp_path, words, capsys):
    """A prompt of n tokens has BOS among them, an answer its end; of 200, the longest is cut."""
    prompts = texts(*range(2, 202))
    files = [
        Texts("data.prompts", prompts, []),
        Texts("data.corpus", [], [("b", "a"), ("b", "a a")]),
    ]
    cfg = settled(tmp_path, words, files, asked())
    assert lengths.given(cfg) == {"data.prompt_length": 200, "sample.length": 3}
    assert cfg.model.context == 203
    said = capsys.readouterr().out
    assert "data.prompt_length = 200 and sample.length = 3" in said
    assert re.search(
        r"data.prompts: 1 of 200 prompts \(0.5 %\) are cut to 200 tokens .*--data.prompt-length 201",
        said,
    )
    assert "data.corpus: none of 2 answers is cut" in said and "warning" not in said
    # a run that goes on keeps them, and tells it again, whatever the files
    assert settled(tmp_path, words, None, asked()) == cfg and capsys.readouterr().out == said


def test_lengths_that_are_given_stand_and_what_they_cut_is_told(tmp_path, words, capsys):
    pairs = [Comparison(a, b, b, a) for a, b in zip(texts(5, 6, 7), texts(4, 5, 6), strict=True)]
    cfg = settled(tmp_path, words, [lengths.judged(pairs)], asked(4, 4))
    assert lengths.given(cfg) == {"data.prompt_length": 4, "sample.length": 4}
    assert cfg.model.context == 8
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "data.comparisons: 3 of 3 prompts (100.0 %) are cut to 4 tokens (a text loses its beginning"
    )
    assert (
        "4 of 6 answers (66.7 %) are cut to 4 tokens" in first
        and "--sample.length 6 keeps all" in first
    )
    assert second.startswith(
        "warning: only 2 of 6 answers (33.3 %) of data.comparisons keep their end"
    )
    with pytest.raises(ValueError, match="= 5 do not fit the model's 8 positions"):
        settled(tmp_path / "b", words, [lengths.judged(pairs)], asked(4, 5))


def test_more_than_half_of_a_file_is_cut_only_where_a_setting_says_so(tmp_path, words):
    files = [Texts("data.corpus", [], [("", LONG)] * 3)]
    with pytest.raises(
        ValueError, match=r"3 of 3 answers \(100.0 %\) of data.corpus .* set sample.length = 1023"
    ):
        settled(tmp_path / "a", words, files, asked())
    assert lengths.given(settled(tmp_path / "b", words, files, asked(0, 50)))["sample.length"] == 50
    both = [Texts("data.prompts", [LONG], [(LONG, "a")])]
    with pytest.raises(ValueError, match=r"1 of 1 prompts \(100.0 %\) of data.prompts .* = 1022"):
        settled(tmp_path / "c", words, both, asked())


def test_prompts_alone_do_not_say_how_long_answers_are(tmp_path, words, capsys):
    """Then answers have 256 tokens, or what the model's positions leave."""
    alone = [Texts("data.prompts", texts(5, 6), [])]
    assert lengths.given(settled(tmp_path / "a", words, alone, asked()))["sample.length"] == 256
    assert "the data hold prompts only" in capsys.readouterr().out
    cfg = settled(tmp_path / "b", words, alone, asked(0, 9))
    assert lengths.given(cfg) == {"data.prompt_length": 6, "sample.length": 9}
    assert "lengths that hold the data" in capsys.readouterr().out
    chosen = lengths._chosen({"p": 0, "a": 0}, [(np.array([5, 6]), np.array([], int))], 128)
    assert chosen == [6, 122]


def test_the_reward_experiment_has_lengths_of_its_own(tmp_path, words):
    cfg = settled(
        tmp_path, words, [lengths.demonstrated("data.corpus", [("a", "a a")])], reward.config
    )
    assert (cfg.data.prompt_length, cfg.sample.length) == (2, 3)
