"""A run that is killed at twenty random moments, in every stage and in mid-save, ends with its bits."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import runs

KINDS = "sft", "save", "reward", "save", "ppo"  # where each run is killed, one time after the other
RUNS = 4
ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = str.split(  # of a command line
    """sentiment --data.demonstrations 80 --data.pairs 96 --data.held-out 0.05
    --rl.iterations 12 --rl.batch-size 8
    --rl.save-every 1 --ppo.epochs 2 --ppo.minibatches 2 --eval-draws 1 --devices device --model.d-model 16
    --model.layers 1 --model.heads 2 --data.vocab-size 400 --sft.steps 60 --sft.batch-size 8
    --sft.eval-every 2 --reward.batch-size 8 --reward.save-every 1"""
)
PROGRAM = """
import json, os, random, signal, sys, threading
import orbax.checkpoint as ocp
import launch
from rlhf_jax.runs import checkpoint, loop

STAGES = "sft", "reward", "held_out_reward", "ppo"
kind, rng = os.environ["KIND"], random.Random(int(os.environ["NUMBER"]))
late = rng.randint(1, 5)  # which save of this process it is, of those that die in one
now = {"stage": "", "iteration": 0, "saving": False}

def die():
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps(now) + chr(10))
        os.fsync(log.fileno())
    os.kill(os.getpid(), signal.SIGKILL)

def arm(seconds):
    threading.Timer(rng.uniform(0, seconds), die).start()

iterate, save, write = loop.iterate, ocp.CheckpointManager.save, checkpoint._write_manifest
armed, saves = False, 0

def iterating(folder, stage, carry, body, **settings):
    def counting(carry, i):
        global armed
        now.update(stage=stage, iteration=i)
        if not armed and kind != "save" and STAGES.index(stage) >= STAGES.index(kind):
            armed = True
            arm(2)
        return body(carry, i)
    return iterate(folder, stage, carry, counting, **settings)

def saving(*args, **settings):
    global saves
    saves, now["saving"] = saves + 1, True
    if kind == "save" and saves == late:
        arm(0.1)
    return save(*args, **settings)

def written(*args):
    write(*args)
    now["saving"] = False

loop.iterate, ocp.CheckpointManager.save, checkpoint._write_manifest = iterating, saving, written
sys.exit(launch.main(sys.argv[1:]))
"""


def begin(folder, **killing):
    start = ["-c", PROGRAM] if killing else ["launch.py"]
    environment = os.environ | {name: str(x) for name, x in killing.items()}
    answer = subprocess.run(
        [sys.executable, *start, *RUN, "--run", str(folder)],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert answer.returncode in (0, -signal.SIGKILL), answer.stderr
    return answer.returncode == 0


def left(folder):
    """What must be equal: the arrays of every stage, the metrics, and what came of it."""
    stages = "sft", "reward", "held_out_reward", "ppo"
    results = json.loads((folder / "results.json").read_text())
    results = {k: v for k, v in results.items() if k not in ("seconds", "peak memory, GiB")}
    return {stage: runs.arrays(folder, stage) for stage in stages}, runs.untimed(folder), results


@pytest.mark.kills
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_left_alone(tmp_path):
    assert begin(tmp_path / "alone")
    want, log = left(tmp_path / "alone"), tmp_path / "log"
    for run in range(RUNS):
        folder = tmp_path / f"killed {run}"
        for i, kind in enumerate(KINDS):
            assert not begin(folder, LOG=log, KIND=kind, NUMBER=run * len(KINDS) + i)
        assert begin(folder)
        got = left(folder)
        for stage, arrays in want[0].items():
            assert arrays.keys() == got[0][stage].keys()
            for path, x in arrays.items():
                np.testing.assert_array_equal(got[0][stage][path], x, err_msg=f"{stage} {path}")
        assert got[1:] == want[1:]
    deaths = [json.loads(line) for line in log.read_text().splitlines()]
    where = collections.Counter(death["stage"] for death in deaths)
    saving = sum(death["saving"] for death in deaths)
    print(f"{len(deaths)} kills in {RUNS} runs: {dict(where)}, {saving} of them in mid-save")
    assert len(deaths) == RUNS * len(KINDS) and saving and {"sft", "reward", "ppo"} <= where.keys()
