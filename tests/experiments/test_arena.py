"""The arena: its pairs, a judge in people's place, and its agreement with people."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import launch
from rlhf_jax.people import judges
from rlhf_jax.pipeline import checkpoints, duels, finished, texts

pytest.importorskip("fastapi", reason="the labelling page needs the extra [feedback]")
RUNS = ("runs/weak", "runs/middle", "runs/strong")


@pytest.fixture
def policies(monkeypatch):
    """Three runs whose policies answer with a word and a number: 0, 1 or 2, by the run."""
    rows = [texts.Row(f"prompt {n}", {}, str(n)) for n in range(40)]
    said = {name: lambda row, n=n: f"answer {n} to {row.prompt}" for n, name in enumerate(RUNS)}

    def opened(folder):
        cfg = SimpleNamespace(pretrained="models/Qwen2.5", reference="")
        return SimpleNamespace(folder=folder, cfg=cfg, texts=SimpleNamespace(rows_held_out=rows))

    monkeypatch.setattr(finished, "opened", opened)
    monkeypatch.setattr(checkpoints, "own_stage", lambda folder: "ppo")
    monkeypatch.setattr(
        finished, "sampled", lambda run, stage, rows, seed: [said[str(run.folder)](x) for x in rows]
    )
    return said


def made(wanted=1):
    return duels.of_runs(RUNS, 30, wanted, 0)


def test_pairs_are_balanced_and_repeat(policies):
    items = made(wanted=2)
    assert items == made(wanted=2) and len(items) == 30
    assert len({x["prompt"] for x in items}) == 30 and {x["wanted"] for x in items} == {2}
    pairs = [tuple(y["policy"] for y in x["responses"]) for x in items]
    assert {pair: pairs.count(pair) for pair in pairs} == {
        (RUNS[0], RUNS[1]): 10, (RUNS[0], RUNS[2]): 10, (RUNS[1], RUNS[2]): 10,
    }  # fmt: skip
    for x in items:
        for y in x["responses"]:
            assert y["text"] == f"answer {RUNS.index(y['policy'])} to {x['prompt']}"


def test_answers_that_say_a_name_and_equal_answers_are_left_out(policies, capsys):
    policies[RUNS[1]] = lambda row: f"I am qwen2.5, and {row.prompt}"
    policies[RUNS[2]] = lambda row: "I am STRONG" if row.prompt.endswith("3") else "yes"
    policies[RUNS[0]] = lambda row: "yes" if row.prompt.endswith("5") else "no"
    items = made()
    told = capsys.readouterr().out
    shown = [y["text"] for x in items for y in x["responses"]]
    assert shown and not any("qwen" in x.lower() or "strong" in x.lower() for x in shown)
    assert all(x["responses"][0]["text"] != x["responses"][1]["text"] for x in items)
    assert "pairs with an answer that says a name" in told
    policies[RUNS[0]] = policies[RUNS[2]] = lambda row: "yes"
    with pytest.raises(ValueError, match="no pair is left to compare"):
        made()


def command(folder, *settings):
    return ["arena", "--runs", *RUNS, "--number", "30", "--to", str(folder), *settings]


def test_a_judge_in_peoples_place_and_its_agreement_with_them(policies, tmp_path, capsys):
    """A reward of the number in the answer; people who agree on all but the pairs of two of the runs."""
    from feedback import command_line

    (tmp_path / "judge.py").write_text(
        "def number(prompts, responses):\n    return [float(x.split()[1]) for x in responses]\n"
    )
    judged = command(tmp_path / "to", "--judge", f"{tmp_path}/judge.py:number")
    assert launch.main(judged) == 0
    said = capsys.readouterr().out
    assert "30 pairs judged in both orders, 0 without a verdict" in said
    assert "first place: +0.00" in said and "agreement" not in said
    items = [json.loads(x) for x in (tmp_path / "to/items.jsonl").read_text().splitlines()]
    votes = []
    for x in items:
        names = [RUNS.index(y["policy"]) for y in x["responses"]]
        better = int(np.argmax(names)) if {*names} != {0, 1} else int(np.argmin(names))
        votes.append(x | {"preference": better, "annotator": "ann"})
    rows = tmp_path / "votes.jsonl"
    rows.write_text("".join(json.dumps(x) + "\n" for x in votes))
    database = ["--database", f"sqlite:///{tmp_path}/to/feedback.db"]
    assert command_line.main(["import", str(rows), "--judgements", *database]) == 0
    capsys.readouterr()
    assert launch.main(judged) == 0
    assert "agreement with people: 0.67 of 30 pairs" in capsys.readouterr().out


def test_a_judge_that_talks_nonsense_is_counted(policies, tmp_path, capsys, monkeypatch):
    def asked(prompt, a, b):
        if prompt.endswith("1"):
            raise judges.MalformedError("?")
        return 1.0

    monkeypatch.setattr(judges, "endpoint", lambda url, model, key: asked)
    settings = ["--judge", "http://127.0.0.1:1/v1", "--model", "m"]
    assert launch.main(command(tmp_path / "to", *settings)) == 0
    said = capsys.readouterr().out
    assert "first place: +1.00" in said and " without a verdict" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--runs", "a"], "runs has fewer than two run directories"),
        (["--runs", "a", "a"], "runs names a run twice"),
        (
            ["--runs", "a", "b", "--model", "m"],
            "model = 'm' has no effect because no judge is given",
        ),
        (["--runs", "a", "b", "--judge", "http://x/v1"], "model is empty"),
        (["--runs", "a", "b", "--judge", "http://x/v1", "--port", "3"], "a judge needs no page"),
        (["--runs", "a", "b", "--judge", "nothing"], "does not say what to call"),
        (["--runs", "a", "b", "--judge", "verifiers:exact"], "needs the columns answer"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path, capsys, settings, words):
    assert launch.main(["arena", *settings, "--to", str(tmp_path / "to")]) != 0
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "to").exists()
