"""The applications on generated worlds of their own."""

import json
import subprocess
import sys

import pytest
import runs

import launch
from rlhf_jax.pipeline import generation, results, settings
from rlhf_jax.pipeline.texts import Row, load_task
from rlhf_jax.runs import command_line

OWN = {
    "summarize": {"faithful", "words", "ROUGE-1", "ROUGE-2", "ROUGE-L"},
    "translate": {"exact", "BLEU", "chrF", "exact match"},
}


@pytest.mark.parametrize("name", OWN)
def test_an_application_runs_on_its_own_world(name, tmp_path):
    own = runs.PPO if name == "summarize" else []
    assert launch.main([name, *runs.TINY, *own, "--run", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found.keys() >= {"gold", "kl", "reward accuracy", *OWN[name]}
    task = load_task(name)
    rows = task.prompts(0.05, 0)[1]
    assert task.best is not None
    best = float(task.gold(rows, task.best(rows)).mean())
    assert found["gold of the best responses"] == pytest.approx(best)
    assert found["entropy of the demonstrations, nats a response"] > 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["used"]["task"] == name


@pytest.mark.parametrize("name", OWN)
def test_the_task_of_an_application_gives_way_to_files(name):
    default = launch.load(name).config
    said = ["--data.corpus", "c", "--data.comparisons", "p", "--data.prompts", "q"]
    parse = lambda said: command_line.parse(type(default), said, prog=name, default=default)
    assert settings.task_of(parse(said)) is None
    assert settings.task_of(parse([])) is load_task(name)
    assert settings.task_of(parse(["--task", "reviews"])) is load_task("reviews")
    with pytest.raises(ValueError, match="task = 'reviews' has no effect because data files"):
        parse([*said, "--task", "reviews"])


@pytest.mark.parametrize("answer", [None, [], [None], {"text": "7"}])
def test_rows_without_a_text_as_answer_have_no_overlap(answer):
    rows = [Row("p", {"answer": 7}, ""), Row("q", {"answer": ["7", "8"]}, "")]
    said = generation.Responses(["7", "8"], None)  # pyright: ignore[reportArgumentType]
    found = results.overlap(["exact match"], rows, [said, said])["exact match"]
    assert found["before"]["mean"] == found["after"]["mean"] == 1.0
    other = Row("p", {"answer": answer}, "")
    assert results.overlap(["BLEU"], [*rows, other], [said, said]) == {}
    assert results.overlap(["BLEU"], [Row("p", {}, "")], [said, said]) == {}


TABLE = {  # the measure of each that a reader looks at, beside gold
    "sentiment": "gold",
    "summarize": "gold",
    "translate": "exact",
    "dialogue": "slot success",
    "answer": "accuracy",
}


@pytest.mark.applications
@pytest.mark.parametrize("name", TABLE)
def test_rl_gains_on_every_application_at_its_defaults(name, tmp_path):
    """SFT learns an honest policy, and RL is better by intervals apart, and below the best."""
    command = [sys.executable, "launch.py", name, "--run", str(tmp_path / "run")]
    subprocess.run(command, check=True, cwd=runs.ROOT)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    for measure in {"gold", TABLE[name]}:
        before, after = (found[measure][side] for side in ("before", "after"))
        assert before["high"] < after["low"], measure
    assert found["gold"]["after"]["mean"] < found["gold of the best responses"]
    (entropy,) = (found[key] for key in found if key.startswith("entropy of"))
    assert found["SFT held-out loss, nats a response"] < entropy + 0.5
    (wins,) = (found[key] for key in found if key.startswith("win rate of"))
    assert wins["low"] > 0.5
