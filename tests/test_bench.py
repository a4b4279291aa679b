import io
import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from bench import __main__ as entry
from bench import gate, measure, models, peers, works
from bench.measure import Side, Told
from bench.sides import protocol
from bench.targets import TARGETS, Target

SHAPE = works.Shape(layers=1, d_model=16, heads=2, d_mlp=32, vocab_size=300, context=16)
WORK = replace(works.WORKS["generate"], rows=2, prompt=3, response=4)


def test_a_gate_answers_when_the_work_has_ended_and_keeps_what_was_said_first():
    answers = io.StringIO()
    turns = protocol.Gate(
        io.StringIO("go\ngo\ncheck\nrate\ngo\n"), answers, {"rate": lambda: {"rate": 1}}
    )
    turns.wait()
    assert answers.getvalue() == ""
    turns.wait(0.5, units=3)
    turns.wait(0.25, units=4)
    first, second, check, rate = map(json.loads, answers.getvalue().splitlines())
    assert (first["units"], second["units"]) == (3, 4)
    assert {"wall", "cpu", "peak"} <= first.keys()
    assert check == {"said": [0.5, 0.25]}
    assert rate == {"rate": 1}


class Counter:
    """Takes seconds that it is given, and writes down whose turn it was."""

    def __init__(self, name, seconds, turns):
        self.name, self.seconds, self.turns = name, iter(seconds), turns

    def go(self):
        self.turns.append(self.name)
        return Told(wall=next(self.seconds), cpu=1.0, peak=7, units=6)


def test_sides_take_turns_and_ratios_are_taken_pair_by_pair():
    turns = []
    ours, peer = Counter("A", [1.0, 2.0, 4.0], turns), Counter("B", [2.0, 6.0, 2.0], turns)
    found = measure.pairs(ours, peer, least=3, seconds=0.0)
    assert "".join(turns) == "ABABAB"
    assert measure.ratios(found) == {"ratio": 2.0, "least": 0.5, "most": 3.0}
    assert measure.middle([a for a, _ in found]) == {
        "wall": 2.0,
        "cpu": 1.0,
        "rate": 3.0,
        "peak": 7,
    }


def test_ratios_are_of_tokens_a_second_where_sides_make_different_numbers_of_them():
    found = [(Told(1.0, 1.0, 0, units=30), Told(1.0, 1.0, 0, units=10))]
    assert measure.ratios(found)["ratio"] == 3.0


@pytest.mark.parametrize(
    ("kind", "ours", "theirs", "same"),
    [
        ("tokens", [[[1, 2], [3, 4]]], [[[1, 2], [3, 4]]], True),
        ("tokens", [[[1, 2], [3, 4]]], [[[1, 2], [3, 5]]], False),
        ("loss", [0.693147, 5.0], [0.693149, 5.00004], True),
        ("loss", [0.693147, 0.6], [0.693147, 0.60002], False),
    ],
)
def test_outputs_are_compared(kind, ours, theirs, same):
    assert measure.alike(kind, ours, theirs)[0] == same


def test_operations_are_those_of_the_matrices():
    weights, unembedding = 4 * 16 * 16 + 3 * 16 * 32, 16 * 300
    seen = 5 * 6 / 2
    one = 2 * (5 * weights + 4 * unembedding) + 4 * 16 * seen
    work = works.Work("", (), rows=3, length=5)
    assert works.operations("sft", work, SHAPE) == 3 * 3 * one
    # a prefill and decoding see together what one pass sees, less the token that is said last
    whole = works.passes(SHAPE, 2, 6, 4)
    assert works.operations("generate", WORK, SHAPE) == pytest.approx(whole)


def test_the_stops_of_the_ragged_work_end_a_uniform_response_at_a_quarter():
    work = works.WORKS["ragged"]
    stops = works.stops("ragged", work, 512)
    assert len(stops) / 512 == 4 / work.response
    assert works.lengths(np.array([[9, 40, 50], [60, 40, 50]]), [9, 40]).tolist() == [1, 2]


def test_the_packed_work_and_the_padded_one_are_the_same_texts():
    work = replace(works.WORKS["packed"], rows=2000)
    sizes = works.sizes(work)
    assert sizes.min() >= 2 and sizes.max() == work.length
    assert sizes.mean() == pytest.approx(work.length / 4, rel=0.05)
    few = replace(work, rows=3, length=8)
    each = [works.passes(SHAPE, 1, n, n - 1) for n in works.sizes(few).tolist()]
    done = [works.operations(name, few, SHAPE) for name in ("packed", "padded")]
    assert done == [3 * sum(each)] * 2


def test_targets_are_met_or_missed():
    told = {"ratio": 2.0, "ours": {"peak": 3, "warm": 12.0}, "theirs": {"peak": 4}}
    target = Target("ppo", "small", "trl112", "ratio", 1.9)
    assert target.met(told) and not replace(target, value=2.1).met(told)
    assert replace(target, what="peak", value=1.0).met(told)
    assert not replace(target, what="warm", value=10.0).met(told)
    for target in TARGETS:
        assert target.model in works.MODELS
        assert target.peer in ("", *works.WORKS[target.work].peers)


def test_a_peer_without_an_environment_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"python -m venv .*trl112.* && .*pip install -r bench/req"
    ):
        peers.interpreter("trl112", tmp_path)
    assert peers.interpreter("bare", tmp_path) == sys.executable


def test_names_that_are_not_known_are_refused(capsys):
    with pytest.raises(SystemExit):
        entry.cli(["generat"])
    assert "generate" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "least"
    models.make(SHAPE, folder)
    return folder


def test_we_and_the_bare_loop_say_the_same_in_processes_of_their_own(folder, tmp_path):
    asked = {"name": "generate", "folder": str(folder), "work": asdict(WORK)}
    sides = [
        Side([sys.executable, "-m", module], asked, [min(measure.cores())], tmp_path / module)
        for module in ("bench.sides.ours", "bench.sides.bare")
    ]
    for side in sides:
        side.warm()
    told = measure.compare(*sides, WORK, least=1, seconds=0.0)
    assert told["same"], told["why"]
    assert [told[side]["peak"] > 0 for side in ("ours", "theirs")] == [True, True]
    assert [x["units"] for x in told["pairs"][0]] == [8, 8]
    assert sides[0].ask("rate")["rate"] > 0
    for side in sides:
        side.close()


def test_a_side_that_fails_is_told_with_what_it_said(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    side = Side(command, {}, measure.cores()[:1], tmp_path / "log")
    with pytest.raises(RuntimeError, match="no such model"):
        side.go()
    side.close()


@pytest.mark.more
def test_the_trial_of_an_accelerator_measures_every_work(capsys):
    small = "--rows 2 --length 16 --batch 4 --prompt 4 --response 4 --square 64 --repeats 1"
    assert entry.cli(["accelerator", "--model", "trial", *small.split()]) == 0
    said = capsys.readouterr().out
    assert all(x in said for x in ("training step", "decoding", "PPO iteration"))


def test_an_accelerators_peer_without_an_environment_is_refused_with_the_command(capsys):
    assert entry.cli(["accelerator", "--model", "trial", "--peer", "nowhere"]) == 1
    assert "python -m venv nowhere && nowhere/bin/pip install -r" in capsys.readouterr().err


def test_the_gate_names_what_costs_a_tenth_more_than_is_recorded():
    before = {"sft": {"bytes": 1.0, "temporary": 2.0}, "ppo": {"bytes": 0.5}}
    now = {"sft": {"bytes": 1.09, "temporary": 2.3}, "ppo": {"bytes": 0.1}, "new": {"bytes": 9.0}}
    assert gate.losses(now, before) == [
        "sft: temporary is 2.300 of bare JAX's, and 2.000 is recorded"
    ]


def test_our_start_is_told_where_no_peer_is_installed():
    row = {
        "work": "start",
        "model": "tiny",
        "cores": 1,
        "peer": "tunix",
        "missing": "no environment",
    }
    ours = {"wall": 4.0, "rate": 0, "cold": 14.0, "warm": 4.0}
    row |= {"ours": ours, "rate": 0}
    targets = entry.of_work("start")
    assert [entry.matches(row, x) and x.met(row) for x in targets] == [True, True]
    shown = [next(iter(column.cells)) for column in entry.table([row]).columns]
    assert shown[:5] == ["start", "tiny", "1", "tunix", "4000 ms"]
    assert not entry.matches({k: x for k, x in row.items() if k != "ours"}, targets[0])
