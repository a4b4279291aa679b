"""Sweeps from the command line: runs that are processes, go on, fail alone, and end in a table."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs
import sweep_toy

import launch
from rlhf_jax.evaluation.intervals import bootstrap_interval

TOY = sweep_toy.__file__
GRID = ["sweep", TOY, "--rl.kl-coef", "0.02", "0.05"]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """`start(*args)`: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def start(*args):
        try:
            code = launch.main([*args])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return start


def test_a_grid_runs_its_values_and_compares_them(start, tmp_path):
    code, out, err = start(*GRID, "--seeds", "2", "--jobs", "2", "--sweep-folder", "a")
    assert (code, err) == (0, "")
    assert "sweep_toy, 4 runs in a: rl.kl-coef 0.02, 0.05, each with seeds 0 to 1\n" in out
    record = json.loads((tmp_path / "a" / "sweep.json").read_text())
    for cell, x in zip(record["cells"], (0.02, 0.05), strict=True):
        golds = [sweep_toy.gold(x, "ppo", seed) for seed in (0, 1)]
        assert cell["values"] == {"rl.kl-coef": str(x)} and cell["seeds"] == [0, 1]
        want = bootstrap_interval(np.array(golds))._asdict()
        assert cell["over seeds"]["gold, after"] == pytest.approx(want)
    assert record["measure"] == "gold, after"
    assert "The highest gold is 0.550, with rl.kl-coef 0.05.\n" in out
    assert "--seed=2 --rl.kl-coef=0.05 --seeds 3\n" in out
    with (tmp_path / "a" / "sweep.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [(x["rl.kl-coef"], x["seed"]) for x in lines] == [
        ("0.02", "0"), ("0.02", "1"), ("0.05", "0"), ("0.05", "1"),
    ]  # fmt: skip
    assert float(lines[3]["gold, after"]) == pytest.approx(golds[1])
    assert (tmp_path / "a" / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # further values join what has finished, and a measure is chosen without a run
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.glob("a/*/results.json")}
    code, out, _ = start(*GRID, "0.2", "--seeds", "2", "--sweep-folder", "a", "--measure", "kl")
    assert code == 0 and "finished before: 4 of 6\n" in out and "The lowest kl is" in out
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    assert len([*tmp_path.glob("a/*/results.json")]) == 6
    code, _, err = start(*GRID, "--sweep-folder", "a", "--measure", "golt", "--table-only")
    assert code == 1 and "measure = 'golt' is none of the results, which are score of the" in err

    # settings that are not the runs' own
    code, _, err = start(*GRID, "--sweep-folder", "a", "--words", "x")
    assert code == 1 and "rl.kl-coef=0.02_seed=0 with other settings (words is [] there" in err
    code, _, err = start("sweep", "rloo", "--rl.kl-coef", "1", "2", "--sweep-folder", "a")
    assert code == 1 and "has a sweep of sweep_toy: give another folder" in err


def test_one_that_fails_is_named_and_the_others_go_on(start, tmp_path):
    folder = ["--sweep-folder", "a"]
    code, out, err = start("sweep", TOY, "--rl.kl-coef", "13", "0.05", *folder)
    assert code == 1 and "[2/2] rl.kl-coef=0.05_seed=0 is done" in out
    assert "[1/2] rl.kl-coef=13_seed=0 failed with exit code 1" in err
    assert ": error: rl.kl_coef = 13: take another\n" in err
    assert err.endswith(
        "error: 1 of 2 runs did not finish (rl.kl-coef=13_seed=0): the same command starts them again\n"
    )
    assert "0 of 1" in out  # in the table
    code, _, err = start("sweep", TOY, "--rl.kl-coef", "13", "14", "--table-only", *folder)
    assert code == 1 and "no run of a has finished: its output says why" in err


def test_seeds_of_one_command_are_runs_with_a_table_of_every_result(start, tmp_path):
    code, out, err = start(TOY, "--seeds", "2", "--seed", "1")
    assert (code, err) == (0, "")
    assert "seeds 1 to 2\n" in out and "Seeds vary the prompts and responses drawn in RL" in out
    (folder,) = (tmp_path / "runs" / "sweep").iterdir()
    assert {x.name for x in folder.iterdir() if x.is_dir()} == {"seed=1", "seed=2"}
    lines = {line[:34].strip(): line[34:].split() for line in out.splitlines()}
    assert lines["gold, before"] == ["-0.400", "equal", "in", "all", "seeds"]
    golds = [sweep_toy.gold(0.1, "ppo", seed) for seed in (1, 2)]
    assert lines["gold, after"][0] == f"{sum(golds) / 2:.3f}"
    assert not any(line.startswith(" seconds") for line in out.splitlines())
    assert (folder / "sweep.png").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["sweep"], 2, "sweep names no experiment: python launch.py sweep --help"),
        (["sweep", "--seeds", "3"], 2, "sweep names no experiment"),
        (["sweep", "rlo", "--seeds", "3"], 2, "no experiment 'rlo': did you mean rloo?"),
        (["sweep", TOY, "--seeds", "3"], 1, "no setting has several values: give one two or more"),
        (["sweep", TOY, "--words", "a", "b"], 1, "no setting has several values"),
        ([*GRID, "--seeds", "0"], 1, "seeds = 0: it must be 1 or more"),
        ([*GRID, "--jobs", "0"], 1, "jobs = 0: it must be 1 or more"),
        (["sweep", TOY, "--rl.kl-coeff", "1", "2"], 2, "no setting --rl.kl-coeff here: use --rl.kl-"),
        ([*GRID, "--rl.kl-coef", "3"], 1, "--rl.kl-coef is given twice: give all its values at once"),
        ([*GRID, "0.02"], 1, "--rl.kl-coef has the value 0.02 twice"),
        ([*GRID, "0.020"], 1, "rl.kl-coef=0.02_seed=0 and rl.kl-coef=0.020_seed=0 are one run"),
        ([*GRID, "-1"], 1, "rl.kl_coef = -1.0: it must be 0 or more"),
        ([*GRID, "--run", "x"], 1, "--run names one folder, and each run of a sweep has its own"),
        ([*GRID, "--sweep-folder", TOY], 1, f"sweep_folder = {TOY!r}: {TOY} is a file"),
        ([*GRID, "--distributed", "auto"], 1, 'distributed = "auto" takes one run'),
        ([*GRID, "--on", "k8s", "--image", "x"], 1, 'on = "k8s" takes one run'),
        ([*GRID, "--plan"], 1, "--plan is about one run, and several are asked for"),
        ([TOY, "--rl.kl-coef", "1", "2", "--seeds", "2"], 1, f"start python launch.py sweep {TOY}"),
        (["sweep", "export", "--to", "a", "b"], 1, "makes no run with results"),
        (["sweep", "prepare", "--seed", "1", "2"], 1, "prepare makes no run with results"),
        (["sweep", "dpo", "--dpo.epochs", "1", "2", "--seeds", "2", "--start-from", "x"], 1,
         'start_from = "x" has stages of one seed'),
    ],
)  # fmt: skip
def test_what_no_run_would_accept_is_refused_before_any_begins(start, tmp_path, args, code, said):
    got, out, err = start(*args)
    assert got == code and said in err.replace("\n", " "), err
    assert "starts" not in out and not [*tmp_path.iterdir()]


def test_help_explains_a_sweep_with_and_without_an_experiment(start):
    for words in (["sweep", "--help"], ["sweep", "rloo", "--help"]):
        code, out, _ = start(*words)
        assert (
            code == 0 and "python launch.py sweep rloo --rl.kl-coef 0.02 0.05 0.1 --seeds 3" in out
        )
        assert "--jobs INT >= 1 (1)" in out and "--measure STR (empty)" in out
    line = "rloo [--setting value ...] [--seeds N] (sweep --help: several values)\n"
    assert line in start("rloo", "--help")[1] and "[--seeds" not in start("export", "--help")[1]
    assert "job array" in start("--on", "slurm", "--help")[1]
    code, out, _ = start("compare", "--help")
    assert "--seeds INT >= 2" in out  # a study's own


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_sweep_that_is_stopped_stops_its_run_and_says_75(tmp_path):
    words = [*GRID, "--waits", "--sweep-folder", str(tmp_path / "a")]
    root = pathlib.Path(launch.__file__).parent
    sweep = subprocess.Popen(
        [sys.executable, root / "launch.py", *words], stdout=subprocess.DEVNULL
    )
    try:
        begun = tmp_path / "a" / "rl.kl-coef=0.02_seed=0" / "process"
        while not (begun.exists() and begun.read_text()):
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait() == 75
    finally:
        sweep.kill()
    assert not is_alive(int(begun.read_text()))
    assert len([*(tmp_path / "a").glob("*/")]) == 1  # the second did not start


def test_real_runs_of_several_seeds_have_a_table(start, tmp_path):
    tiny = [*runs.SHAPE, *runs.SFT, *runs.parts("--devices device --sft.batch-size 8")]
    tiny += runs.parts("--data.held-out 0.05 --data.demonstrations 80 --eval-draws 1")
    code, out, err = start("sft", *tiny, "--seeds", "2", "--sweep-folder", "a")
    assert code == 0, err
    assert "Seeds vary everything: sft has no rl.seed" in out
    found = [
        json.loads((tmp_path / "a" / f"seed={n}" / "results.json").read_text()) for n in (0, 1)
    ]
    losses = [x["SFT held-out loss, nats a token"] for x in found]
    over = json.loads((tmp_path / "a" / "sweep.json").read_text())["cells"][0]["over seeds"]
    assert over["SFT held-out loss, nats a token"]["mean"] == pytest.approx(sum(losses) / 2)


@pytest.mark.more
def test_a_real_sweep_trains_the_shared_stages_once(start, tmp_path):
    """Two KL coefficients and two seeds: three runs copy the stages of the first, bit for bit."""
    words = ["--rl.kl-coef", "0.02", "5", "--seeds", "2", "--sweep-folder", "a"]
    code, out, err = start("sweep", "rloo", *runs.TINY, *words)
    assert code == 0, err
    first, *rest = [
        tmp_path / "a" / f"rl.kl-coef={x}_seed={n}" for x in ("0.02", "5") for n in (0, 1)
    ]
    assert f"The shared stages are trained once, by {first.name}; the other runs copy them." in out
    name = "manifest.json" if [*first.glob("stages/sft/manifest*")] else "done.json"
    for run in rest:
        config = json.loads((run / "config.json").read_text())
        assert config["settings"]["start_from"] == f"a/{first.name}"
        assert (run / "stages/sft" / name).read_text() == (first / "stages/sft" / name).read_text()
        assert (run / "stages/rloo/done.json").exists() and (run / "report.html").exists()
    record = json.loads((tmp_path / "a" / "sweep.json").read_text())
    assert [cell["seeds"] for cell in record["cells"]] == [[0, 1], [0, 1]]
    assert len(record["finished"]) == 4 and (tmp_path / "a" / "sweep.png").exists()
