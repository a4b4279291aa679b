"""A sweep on a real SLURM: a stopped task of its array goes on alone, and the table waits for all.

pytest -m slurm -n 0          # with Debian's slurm-wlm and munge, as root; six minutes
"""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import sweep_toy

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tests" / "devices"))

from test_slurm import cluster, until  # noqa: E402, F401

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not shutil.which("slurmctld"), reason="SLURM is not installed"),
]


def test_a_stopped_task_goes_on_alone_and_the_table_waits(cluster, tmp_path):  # noqa: F811
    words = ["--rl.kl-coef", "0.02", "0.05", "--waits", "--sweep-folder", tmp_path / "a"]
    command = ["python", ROOT / "launch.py", "sweep", sweep_toy.__file__, *words, "--on", "slurm"]
    further = ["--mem", "900M", "--sbatch", "comment=two words; x"]
    answer = subprocess.run(
        [*command, *further], env=cluster, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    array, table = re.findall(r"submitted as (\d+)", answer.stdout)
    tell = lambda *words: (
        subprocess.run(words, env=cluster, capture_output=True, text=True, check=True).stdout
    )
    runs = [tmp_path / "a" / f"rl.kl-coef={x}_seed=0" for x in ("0.02", "0.05")]
    until(lambda: all((run / "process").exists() for run in runs), 120)
    tell("scancel", "--signal=TERM", f"{array}_1")
    until(lambda: (runs[1] / "report.html").exists(), 300)
    assert not (runs[0] / "report.html").exists() and not (tmp_path / "a" / "sweep.csv").exists()
    assert "Restarts=0" in tell("scontrol", "show", "job", f"{array}_0")
    assert "Comment=two words; x" in tell("scontrol", "show", "job", f"{array}_0")
    tell("scancel", "--signal=TERM", f"{array}_0")
    until(lambda: "JobState=COMPLETED" in tell("scontrol", "show", "job", table), 300)
    assert (tmp_path / "a" / "sweep.csv").read_text().count("\n") == 3
