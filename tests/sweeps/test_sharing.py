"""Shared stages of a sweep: who trains them, who waits, and who starts from whom."""

import json
import pathlib

import pytest

import launch
from rlhf_jax.runs import command_line
from rlhf_jax.sweeps import grid, sharing


def jobs(name: str, words: str, seeds: int = 1) -> list[grid.Job]:
    default = launch.load(name).config
    known = [*command_line.settings(type(default), default)]
    parse = lambda words: command_line.parse(type(default), words, prog=name, default=default)
    return grid.jobs_of(grid.divided(words.split(), known), seeds, known, parse)


def groups(name: str, words: str, seeds: int = 1) -> list[list[str]]:
    return [
        [x.name for x in group] for group in sharing.groups_of(jobs(name, words, seeds)).values()
    ]


@pytest.mark.parametrize(
    ("name", "words", "seeds", "sizes"),
    [
        ("rloo", "--rl.kl-coef 0.02 0.05", 3, [6]),
        ("rloo", "--rl.kl-coef 0.02 0.05 --seed 0 1", 2, [4, 4]),
        ("rloo", "--data.pairs 64 128", 3, [3, 3]),
        ("rloo", "--reward.epochs 1 2", 1, []),
        ("rloo", "--rl.kl-coef 1 2 --start-from x", 2, []),  # they have their stages from there
        ("dpo", "--preference.beta 0.1 0.2", 2, [2, 2]),  # whole seeds, each with its own SFT
        ("dpo", "--preference.beta 0.1 0.2 --reference gpt2", 1, []),  # nothing is trained
        ("sft", "--sft.steps 5 6", 2, []),
        ("game", "--kl-coef 0.1 0.2", 2, []),
    ],
)
def test_runs_share_stages_where_no_setting_of_these_differs(name, words, seeds, sizes):
    found = groups(name, words, seeds)
    assert [len(group) for group in found] == sizes


def test_the_axis_that_changes_stages_is_said():
    many = jobs("rloo", "--data.pairs 64 128 --rl.kl-coef 1 2", 2)
    assert [x for x in ("data.pairs", "rl.kl-coef") if sharing.changes_stages(x, many)] == [
        "data.pairs"
    ]
    said = " ".join(sharing.in_words("rloo", many, ["data.pairs", "rl.kl-coef"], False))
    assert "trained 2 times (data.pairs changes them)" in said
    assert "say nothing of other reward models" in said
    said = " ".join(sharing.in_words("dpo", jobs("dpo", "--preference.beta 0.1 0.2", 2), [], True))
    assert "Seeds vary everything: dpo has no rl.seed" in said
    seeds = jobs("rloo", "--seed 0 1", 2)
    assert sharing.changes_stages("seed", seeds)
    alone = sharing.in_words(
        "rloo", jobs("rloo", "--rl.kl-coef 1 2 --start-from runs/x"), [], False
    )
    assert alone == ["The shared stages are copied from runs/x."]


def begun(folder: pathlib.Path, name: str, *stages: str, ends: bool = True):
    for stage in stages:
        (folder / name / "stages" / stage).mkdir(parents=True, exist_ok=True)
        if ends:
            (folder / name / "stages" / stage / "done.json").write_text("{}")


def test_one_run_trains_the_stages_while_the_others_wait(tmp_path):
    a, b, c = jobs("rloo", "--rl.kl-coef 1 2 3")
    group = [[a, b, c]]
    turn = lambda job, running=(): sharing.turn_of(job, group, running, tmp_path)
    assert turn(a) == sharing.Turn(False, [])
    assert turn(b, [a.name]) == sharing.Turn(True, [])
    begun(tmp_path, a.name, "sft", "reward")
    begun(tmp_path, a.name, "held_out_reward", ends=False)
    begun(tmp_path, a.name, ".rloo.partial")
    assert turn(b, [a.name]) == sharing.Turn(True, [])  # it is at the shared stages
    assert turn(b) == sharing.Turn(False, [])  # it failed there, and the next one leads
    assert turn(c, [b.name]) == sharing.Turn(True, [])
    begun(tmp_path, a.name, "rloo", ends=False)
    start = ["--start-from", str(tmp_path / a.name)]
    assert turn(b, [a.name]) == turn(c) == sharing.Turn(False, start)
    assert turn(a) == sharing.Turn(False, [])  # it goes on alone


def test_a_run_that_trained_no_shared_stage_is_nobodys_start(tmp_path):
    a, b = jobs("rloo", "--rl.kl-coef 1 2")
    begun(tmp_path, a.name, "rloo")
    assert sharing.turn_of(b, [[a, b]], (), tmp_path) == sharing.Turn(False, [])


def test_what_is_sent_first_is_what_waits_for_nothing(tmp_path):
    many = jobs("rloo", "--data.pairs 64 128 --rl.kl-coef 1 2")
    first, then = sharing.leaders_of(many, tmp_path)
    assert [many.index(x) for x in first] == [0, 2] and [many.index(x) for x in then] == [1, 3]
    assert [sharing.leader_of(x, first) for x in then] == first
    folder = tmp_path / many[0].name
    begun(tmp_path, many[0].name, "sft", "reward", "held_out_reward", "rloo")
    for file, text in (("config.json", "{}"), ("results.json", "{}"), ("report.html", "</html>")):
        (folder / file).write_text(text)
    first, then = sharing.leaders_of(many, tmp_path)
    assert [many.index(x) for x in first] == [1, 2] and [many.index(x) for x in then] == [3]
    assert json.loads(sharing.key_of(many[0])) != json.loads(sharing.key_of(many[2]))
