"""A two-task job on a real SLURM, which this starts on one machine: submitted, requeued, resumed.

pytest -m slurm -n 0          # with Debian's slurm-wlm and munge, as root; four minutes
"""

import os
import pathlib
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import runs
from test_hosts import RUN, begin, end

ROOT = pathlib.Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not shutil.which("slurmctld"), reason="SLURM is not installed"),
]
LONGER = ["--rl.iterations", "60"]


@pytest.fixture
def cluster(tmp_path):
    """The environment of a user of the cluster."""
    script, folder = ROOT / "tests" / "slurm.sh", tmp_path / "slurm"
    subprocess.run([script, folder, "start"], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    yield environment | {"SLURM_CONF": str(folder / "slurm.conf"), "JAX_NUM_CPU_DEVICES": "1"}
    subprocess.run([script, folder, "stop"], check=True)


def until(found, timeout):
    """What `found()` gives as soon as it gives something."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        got = found()
        if got:
            return got
        time.sleep(1)
    raise AssertionError("it took too long")


def test_a_requeued_job_goes_on_and_ends_as_if_it_had_been_left_alone(cluster, tmp_path):
    code, _, err = end(begin(tmp_path / "alone", *LONGER, devices=2), timeout=600)
    assert code == 0, err
    command = ["python", ROOT / "launch.py", *RUN, *LONGER, "--run", tmp_path / "run"]
    answer = subprocess.run(
        [*command, "--on", "slurm", "--tasks-per-node", "2"],
        env=cluster, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = re.findall(r"Submitted batch job (\d+)", answer.stdout)[0]
    log = tmp_path / f"sentiment-{job}.log"
    said = lambda words: log.exists() and words in log.read_text()
    slurm = lambda *command: (
        subprocess.run(
            ["scontrol", *command, job], env=cluster, capture_output=True, text=True, check=True
        ).stdout
    )
    until(lambda: said("ppo: 6/60"), 300)
    slurm("requeue")
    until(lambda: said("ppo: stopped and saved"), 60)
    until(lambda: "JobState=COMPLETED" in slurm("show", "job"), 600)
    assert "Restarts=1" in slurm("show", "job") and said("ppo: goes on after")
    got, want = (runs.arrays(tmp_path / name, "ppo") for name in ("run", "alone"))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[path], want[path]) for path in want)
