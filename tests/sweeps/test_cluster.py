"""A sweep on SLURM: scripts that a shell accepts, in an order that lets shared stages be trained once."""

import os
import pathlib
import re
import subprocess

import pytest
import sweep_toy

import launch

TOY = sweep_toy.__file__
RLOO = ["sweep", "rloo", "--rl.kl-coef", "0.02", "0.05", "--seeds", "2", "--on", "slurm"]


@pytest.fixture
def say(tmp_path, monkeypatch, capsys):
    """`say(*args)`: standard output of a command that succeeds."""
    monkeypatch.chdir(tmp_path)

    def say(*args):
        assert launch.main([*args]) == 0
        return capsys.readouterr().out

    return say


def scripts(text: str) -> list[tuple[str, str]]:
    """(the line that submits it, the script) of each job that was printed."""
    found = re.findall(
        r"^# (sbatch --parsable[^\n]*)\n(#!/bin/bash\n.*?^exit \$code$)", text, re.M | re.S
    )
    return [(command, script + "\n") for command, script in found]


def test_the_first_run_trains_the_stages_an_array_follows_and_a_table_ends(say, tmp_path):
    limits = ["--array-at-most", "2", "--account", "me", "--gpus-per-node", "1", "--nodes", "2"]
    text = say(*RLOO, *limits, "--dry-run")
    (first, one), (then, rest), (last, table) = scripts(text)
    assert first == "sbatch --parsable" and "#SBATCH --array" not in one
    assert then.endswith(" --dependency=afterok:ID-OF-FIRST --kill-on-invalid-dep=yes")
    assert last.endswith(" --dependency=afterany:ID-OF-FIRST:ID-OF-REST")
    assert "#SBATCH --array=0-2%2\n" in rest and "#SBATCH --output=rloo-%A_%a.log\n" in rest
    assert one.count("srun ") == table.count("srun ") == 1 and rest.count("srun ") == 3
    (folder,) = re.findall(r"--run (\S+)/rl.kl-coef=0.02_seed=0 --distributed auto\n", one)
    assert rest.count(f"--start-from {folder}/rl.kl-coef=0.02_seed=0 --distributed auto") == 3
    assert "--start-from" not in one + table and "--distributed" not in table
    assert all("#SBATCH --account=me\n" in script for script in (one, rest, table))
    assert "#SBATCH --gpus-per-node=1\n" in one + rest and "gpus" not in table
    assert f"--seeds 2 --sweep-folder {folder} --table-only\n" in table
    assert not [*tmp_path.iterdir()]


def test_seeds_alone_are_sent_likewise_and_runs_that_share_nothing_wait_for_nothing(say):
    one, rest, _ = scripts(say("rloo", "--seeds", "3", "--on", "slurm", "--dry-run"))
    assert "--array=0-1\n" in rest[1] and "--rl.seed" not in one[1] and "--rl.seed=2 " in rest[1]
    (command, runs), (_, table) = scripts(say(TOY, "--seeds", "3", "--on", "slurm", "--dry-run"))
    assert command == "sbatch --parsable" and "--array=0-2\n" in runs
    assert f"launch.py {TOY} --seeds 3 --sweep-folder " in table


def program(folder: pathlib.Path, name: str, text: str):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_task_of_the_array_runs_its_own_words_and_requeues_itself_alone(say, tmp_path):
    words = ["--words", "a b", "$(touch x)", "c;;d\nesac"]
    (_, text), _ = scripts(
        say("sweep", TOY, *words, "--rl.kl-coef", "1", "2", "--on", "slurm", "--dry-run")
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    program(tools, "srun", 'printf "%s|" "$@"; exit 75')
    program(tools, "scontrol", 'echo; echo scontrol "$@"')
    environment = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    ran = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert ran.returncode == 75 and ran.stderr == "" and not (tmp_path / "x").exists()
    asked, _, requeued = ran.stdout.rpartition("\nscontrol ")
    assert requeued == "requeue 7_1\n"
    assert asked.split("|")[4:10] == [*words, "--rl.kl-coef=2", "--run"]


def test_what_is_sent_waits_for_the_numbers_that_slurm_gives(say, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    program(
        tools,
        "sbatch",
        f'echo "$@" >>{tmp_path}/asked; cat >>{tmp_path}/read; wc -l <{tmp_path}/asked',
    )
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    text = say(*RLOO, "--time", "8:00:00")
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--parsable",
        "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes",
        "--parsable --dependency=afterany:1:2",
    ]
    assert (tmp_path / "read").read_text() == "".join(script for _, script in scripts(text))
    assert "submitted as 3\n" in text and [*tmp_path.glob("runs/sweep/*/sweep.json")]


def test_a_refusal_of_slurms_is_said_and_an_absent_one_too(say, tmp_path, monkeypatch, capsys):
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert launch.main(RLOO) == 1
    assert "error: sbatch is not installed here: use --dry-run" in capsys.readouterr().err
    program(tools, "sbatch", "echo Invalid account >&2; exit 1")
    assert launch.main(RLOO) == 1
    assert "error: sbatch refused this job: Invalid account\n" in capsys.readouterr().err


def test_runs_that_have_finished_are_not_sent_and_the_table_is_made_at_once(say, tmp_path):
    grid = ["sweep", TOY, "--rl.kl-coef", "0.02", "0.05", "--sweep-folder", "a"]
    assert (
        launch.main([*grid[:3], "0.05", *grid[5:], "--seeds", "1", "--rl.kind", "ppo", "rloo"]) == 0
    )
    for kl_coef in ("0.02", "0.05"):  # as processes of the array would
        folder = tmp_path / "a" / f"rl.kl-coef={kl_coef}_seed=0"
        assert launch.main([TOY, "--rl.kl-coef", kl_coef, "--run", str(folder)]) == 0
    text = say(*grid, "--on", "slurm")
    assert not scripts(text) and "The highest gold is" in text
