"""The application `answer`: what it is judged by, whose data it takes, and a tiny run."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import runs

import launch
from experiments.applications import answer
from rlhf_jax.pipeline import settings
from rlhf_jax.pipeline.texts import Row
from rlhf_jax.runs import command_line

CONFIG = answer.config


def judged(texts, answers, draws):
    """Every measure of `texts`, `draws` to each row with one of `answers`, where no task is known."""
    rows = [Row("how many ?", {"answer": x}, str(i)) for i, x in enumerate(answers)]
    run = SimpleNamespace(
        cfg=dataclasses.replace(CONFIG, eval_draws=draws),
        scorer=None,
        texts=SimpleNamespace(task=None, rows_held_out=rows),
    )
    asked, said = [row for row in rows for _ in range(draws)], SimpleNamespace(texts=texts)
    measures = answer.Judges().of(run)  # pyright: ignore[reportArgumentType]
    return {name: fn(asked, said) for name, fn in measures.items()}


def test_the_draws_of_a_prompt_are_judged_together():
    """Two prompts of equal text and other answers; one of GSM8K's worked answers among these."""
    texts = ["#### 7", "so 8", "#### 7", "none", *["#### 3", "#### 4", "#### 3", "#### 3"]]
    found = judged(texts, ["3 + 4 = <<3+4=7>>7\n#### 7", "4"], draws=4)
    np.testing.assert_array_equal(found["accuracy"], [1, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(found["pass@4"], [1] * 8)
    np.testing.assert_allclose(found["pass@2"], [5 / 6] * 4 + [1 / 2] * 4)
    assert [x for x in found if x.startswith("pass")] == ["pass@2", "pass@4"]
    np.testing.assert_array_equal(found["maj@4"], [1] * 4 + [0] * 4)
    np.testing.assert_array_equal(found["format errors"], [0, 0, 0, 1, 0, 0, 0, 0])
    assert list(judged(["7"], ["7"], draws=1)) == ["accuracy", "format errors", "pass@1", "maj@1"]


def test_rows_without_answers_are_not_verified():
    run = SimpleNamespace(
        cfg=dataclasses.replace(CONFIG, eval_draws=1),
        scorer=None,
        texts=SimpleNamespace(task=None, rows_held_out=[Row("how many ?", {}, "a")]),
    )
    assert answer.Judges().of(run) == {}  # pyright: ignore[reportArgumentType]
    assert answer.by_greedy_decoding(run, {}) == {}  # pyright: ignore[reportArgumentType]


def test_files_take_the_place_of_the_generated_problems():
    parse = lambda *args: command_line.parse(type(CONFIG), [*args], prog="answer", default=CONFIG)
    assert settings.task_of(parse()) is not None
    files = parse("--data.corpus", "c.jsonl", "--data.prompts", "p.jsonl")
    assert settings.task_of(files) is None
    with pytest.raises(ValueError, match="task = 'reviews' has no effect because data files"):
        parse("--data.prompts", "p.jsonl", "--task", "reviews")


def test_a_tiny_run_leaves_what_it_is_judged_by(tmp_path):
    own = runs.parts(
        "--data.demonstrations 80 --data.held-out 0.002 --eval-draws 2 --devices device --sft.batch-size 8"
    )
    command = ["answer", *runs.LOOP, *runs.SFT, *runs.SHAPE, *own, "--run", str(tmp_path / "run")]
    assert launch.main(command) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in ("accuracy", "pass@2", "maj@2", "format errors", "accuracy of greedy decoding"):
        for side in ("before", "after"):
            assert 0 <= results[name][side]["mean"] <= 1
    assert results["gold of the best responses"] == 2
    assert results["gold"]["before"]["mean"] >= -3
    assert "reward accuracy" not in results and not (tmp_path / "run/comparisons.jsonl").exists()


@pytest.mark.parametrize("reference", ["3", "no number", None, [], {"text": ["3"]}, [None]])
def test_only_prompts_with_a_number_as_answer_are_counted_right(reference):
    row = Row("how many ?", {} if reference is None else {"answer": reference}, "")
    run = SimpleNamespace(texts=SimpleNamespace(rows_held_out=[row]))
    assert answer.has_answers(run) == (reference == "3")  # pyright: ignore
