"""The applications on generated worlds of their own."""

import json

import pytest
import runs

import launch
from rlhf_jax.pipeline import settings
from rlhf_jax.pipeline.texts import load_task
from rlhf_jax.runs import command_line

OWN = {"summarize": {"faithful", "words"}, "translate": {"exact"}}


@pytest.mark.parametrize("name", ["translate", pytest.param("summarize", marks=pytest.mark.more)])
def test_an_application_runs_on_its_own_world(name, tmp_path):
    own = runs.PPO if name == "summarize" else []
    assert launch.main([name, *runs.TINY, *own, "--run", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results.keys() >= {"gold", "kl", "reward accuracy", *OWN[name]}
    task = load_task(name)
    rows = task.prompts(0.05, 0)[1]
    assert task.best is not None
    best = float(task.gold(rows, task.best(rows)).mean())
    assert results["gold of the best responses"] == pytest.approx(best)
    assert results["entropy of the demonstrations, nats a response"] > 2
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
