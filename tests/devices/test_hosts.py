"""Two real processes of one run: they end with the bits of one process; one is killed, and both go on."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

from rlhf_jax.data import batching
from rlhf_jax.devices import hosts

ROOT = pathlib.Path(__file__).parent.parent.parent
parts = str.split  # of a command line
RUN = parts(
    """sentiment --data.demonstrations 80 --data.pairs 96 --data.held-out 0.05
    --rl.iterations 4 --rl.batch-size 8
    --rl.save-every 2 --ppo.epochs 2 --ppo.minibatches 2 --eval-draws 1 --model.d-model 16 --model.layers 1
    --model.heads 2 --data.vocab-size 400 --sft.steps 12 --sft.batch-size 8 --sft.eval-every 6
    --reward.batch-size 8 --reward.save-every 4 --devices mesh:fsdp=2"""
)
STUDY = parts(
    """overoptimization --golds symbolic --pairs 4 --sizes 10k --trained-against 10k --method.iterations 2
    --method.batch-size 8 --shared.policy 10k --shared.reviews 80 --shared.sft.steps 12
    --shared.sft.batch-size 8 --shared.sft.eval-every 6 --shared.reward-steps 3 --shared.reward-batch 4
    --shared.pool-prompts 8 --shared.pool-draws 8 --seeds 3 --devices mesh"""
)
PROGRAM = """
import os, signal, sys
import launch
from rlhf_jax.runs import loop

iterate = loop.iterate

def killing(folder, stage, carry, body, **settings):
    def counting(carry, i):
        if os.environ.get("KILL_AT") == f"{stage} {i}":
            os.kill(os.getpid(), signal.SIGKILL)
        return body(carry, i)
    return iterate(folder, stage, carry, counting, **settings)

if "KILL_AT" in os.environ:
    loop.iterate = killing
sys.exit(launch.main(sys.argv[1:]))
"""


READING = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rlhf_jax.devices import parallel
from rlhf_jax.data.batching import batch_at, rows_at

class Disk:
    shape = 30, 2
    __len__ = lambda self: 30
    def __getitem__(self, rows):
        print("read", *rows, flush=True)
        return np.stack([rows, rows], axis=1)

devices = parallel.on_mesh()
batch = batch_at(Disk(), 8, 0, 5, devices.take)
np.testing.assert_array_equal(devices.fetch(batch)[:, 0], rows_at(30, 8, 0, 5))
"""


def begin(folder, *more, devices=1, kill_at="", command=RUN):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": ""}
    environment |= {"KILL_AT": kill_at} if kill_at else {}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command, "--run", str(folder), *more],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin_two(folder, kill_at=("", ""), command=RUN):
    port = free_port()
    where = [("--distributed", f"localhost:{port},2,{i}") for i in range(2)]
    return [begin(folder, *where[i], kill_at=kill_at[i], command=command) for i in range(2)]


def end(process, timeout=300):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The arrays of a run in one process with two devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = end(begin(folder, devices=2))
    assert code == 0, err
    return runs.arrays(folder, "ppo")


def assert_same(folder, alone):
    jax.tree.map(np.testing.assert_array_equal, runs.arrays(folder, "ppo"), alone)


@pytest.mark.hosts
def test_two_processes_end_with_the_parameters_of_one(alone, tmp_path):
    first, second = map(end, begin_two(tmp_path / "run"))
    assert first[0] == second[0] == 0, (first, second)
    assert "gold, after" in first[1] and "sft" not in second[1]  # the first alone prints
    assert_same(tmp_path / "run", alone)


@pytest.mark.hosts
def test_a_host_reads_the_rows_of_its_own_devices_alone():
    environment, port = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""}, free_port()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", READING, f"localhost:{port}", str(i)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    ends = [end(process) for process in both]
    assert [code for code, *_ in ends] == [0, 0], ends
    lines = [line for _, out, _ in ends for line in out.splitlines() if line.startswith("read")]
    read = [[int(x) for x in line.split()[1:]] for line in lines]
    np.testing.assert_array_equal(np.concatenate(read), batching.rows_at(30, 8, 0, 5))
    assert len(read[0]) == len(read[1]) == 4


@pytest.mark.hosts
def test_a_study_of_two_processes_has_the_small_runs_of_one(tmp_path):
    both = begin_two(tmp_path / "two", command=STUDY)
    assert [code for code, *_ in map(end, both)] == [0, 0]
    code, _, err = end(begin(tmp_path / "one", devices=2, command=STUDY))
    assert code == 0, err
    one, two = (tmp_path / name / "cells" for name in ("one", "two"))
    cells = sorted(path.relative_to(one) for path in one.rglob("*.json"))
    assert len(cells) == 7  # a proxy and a control of three seeds, and a frontier
    for cell in cells:
        assert (one / cell).read_bytes() == (two / cell).read_bytes(), cell


@pytest.mark.hosts
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_says_so_at_once_and_both_go_on(alone, tmp_path, victim):
    kill_at = tuple("ppo 3" if i == victim else "" for i in range(2))
    both = begin_two(tmp_path / "run", kill_at)
    both[victim].wait(300)
    code, _, err = end(both[1 - victim], timeout=60)
    end(both[victim])
    assert code == hosts.LOST_CODE
    assert "another process of this run was lost" in err and "resume the run" in err
    assert all(code == 0 for code, *_ in map(end, begin_two(tmp_path / "run")))
    assert_same(tmp_path / "run", alone)


def test_an_address_that_is_none_is_refused(capsys):
    import launch

    assert launch.main(["sentiment", "--distributed", "host:1"]) == 1
    assert 'distributed = "host:1" is no address: use auto, or HOST:PORT' in capsys.readouterr().err
