"""Lengths of prompts and answers that come from the data, and what is told of what they cut."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.applications import sentiment
from experiments.methods import reward, sft
from rlhf_jax.data import tokenizer
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.pipeline import lengths, long_texts, prepare, reading, settings
from rlhf_jax.pipeline.lengths import Texts
from rlhf_jax.pipeline.texts import Needs

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


def written(tmp_path, long: dict) -> str:
    """A corpus of forty rows with a prompt and a response each, and longer ones on some lines."""
    rows = [{"prompt": f"a {n}", "response": "a"} for n in range(1, 41)]
    for line, row in long.items():
        rows[line - 1] |= row
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{tmp_path}/c.jsonl"


def test_texts_that_are_too_long_are_cut_refused_or_left_out_by_file_and_line(tmp_path, capsys):
    """A run does nothing with what it leaves out, and one that refuses it ends before it trains."""
    said = {line: {"response": f"{LONG[:20]}{line}"} for line in (2, 9, 17, 30, 38)}
    corpus = written(tmp_path, said | {5: {"prompt": LONG}})

    def prepared(name, **data):
        own = replace(sft.config.data, corpus=corpus, prompt_length=9, held_out=0.3, **data)
        sample = replace(sft.config.sample, length=4)
        cfg = replace(sft.config, run=str(tmp_path / name), data=own, sample=sample)
        read = prepare.prepare("sft", cfg, {})
        return read.texts, [
            x for x in capsys.readouterr().out.splitlines() if "longer" in x or "cut" in x
        ]

    whole, told = prepared("cut")
    assert len(whole.corpus) + len(whole.corpus_held_out) == 40
    line = rf"{corpus}:(?:2|9|17|30|38)"
    where = rf"{line}, {line}, {line} and 2 more"
    assert re.match(
        rf"data.corpus: 1 of 40 prompts \(2.5 %; {corpus}:5\) are cut to 9 tokens ", told[0]
    )
    assert re.search(
        rf"5 of 40 answers \(12.5 %; {where}\) are cut to 4 tokens \(their end", told[0]
    )
    assert re.match(rf"data.prompts: 1 of 40 prompts \(2.5 %; {corpus}:5\) are cut", told[1])

    with pytest.raises(
        ValueError, match=rf"1 of 40 prompts \(2.5 %; {corpus}:5\) of data.corpus are longer"
    ):
        prepared("refused", long="bad")
    assert not (tmp_path / "refused" / "stages").exists()

    left, told = prepared("left", long="bad", bad="skip")
    assert re.search(
        rf"5 of 40 answers \(12.5 %; {where}\) are longer than 4 tokens and left out", told[0]
    )
    long = {x["response"] for x in said.values()} | {LONG}
    kept = lambda pairs: [pair for pair in pairs if not long & {*pair}]
    assert left.corpus == kept(whole.corpus) and left.corpus_held_out == kept(whole.corpus_held_out)
    assert len(left.corpus) + len(left.corpus_held_out) == 34
    assert left.rows == [row for row in whole.rows if row.prompt != LONG]


def test_a_source_of_long_texts_alone_is_refused(tmp_path, words):
    data = replace(sft.config.data, corpus=written(tmp_path, {}), held_out=0.3)
    read = reading.from_files(data, 0, needs=Needs(("corpus",)))
    assert long_texts.without(asked(90, 90), words, read) == read
    with pytest.raises(
        ValueError, match=r"data.corpus: all \d+ rows of one side of a split are too"
    ):
        long_texts.without(asked(90, 1), words, read)
