"""Baselines without a model, on files whose best words are known."""

import json
import pathlib
import runpy

import pytest

FILE = pathlib.Path(__file__).parent.parent.parent / "examples" / "trivial_baselines.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(FILE))


def file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_word_means_the_word_with_which_it_shares_most_sentences(script, tmp_path, capsys):
    nouns, verbs = (
        {"der Hund": "the dog", "die Katze": "the cat"},
        {"rennt": "runs", "schläft": "sleeps"},
    )
    pairs = [(f"{x} {y} .", f"{nouns[x]} {verbs[y]} .") for x in nouns for y in verbs]
    found = script["dictionary"](pairs)
    assert {x: found[x] for x in ("hund", "katze", "rennt", "schläft")} == {
        "hund": "dog", "katze": "cat", "rennt": "runs", "schläft": "sleeps"
    }  # fmt: skip
    rows = [{"prompt": x, "answer": y} for x, y in pairs]
    corpus = file(tmp_path / "corpus.jsonl", rows)
    prompts = file(tmp_path / "prompts.jsonl", [{"prompt": "Hund rennt.", "answer": ["Dog runs."]}])
    script["main"]("dictionary", prompts=prompts, corpus=corpus)
    assert "exact match: 1.000" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="corpus is empty, and dictionary is learned from it"):
        script["main"]("dictionary", prompts=prompts)


def test_the_first_sentence_and_the_most_frequent_answer(script, tmp_path, capsys):
    rows = [{"prompt": "One. Two.", "answer": "one."}, {"prompt": "Is it? No.", "answer": "is it?"}]
    script["main"]("first_sentence", prompts=file(tmp_path / "p.jsonl", rows))
    assert "ROUGE-1: 1.000" in capsys.readouterr().out
    rows = [{"prompt": str(n), "answer": f"so #### {x}"} for n, x in enumerate([3, 3, 4, 3])]
    path = file(tmp_path / "a.jsonl", rows)
    script["main"]("most_frequent", prompts=path, corpus=path)
    assert "accuracy of 3: 0.750" in capsys.readouterr().out
