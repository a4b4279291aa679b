"""What `--on` sends: scripts that a shell accepts and a person can read."""

import json
import os
import subprocess

import pytest

import launch

RUN = ["sentiment", "--seed", "1", "--run", "a folder", "--on"]


def said(capsys, *settings):
    assert launch.main([*RUN, *settings, "--dry-run"]) == 0
    return capsys.readouterr().out


def test_a_batch_script_asks_joins_and_requeues(capsys, tmp_path):
    text = said(capsys, "slurm", "--nodes", "2", "--partition", "gpu", "--time", "8:00:00")
    for line in (
        "--nodes=2",
        "--partition=gpu",
        "--time=8:00:00",
        "--requeue",
        "--signal=TERM@120",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "gpus" not in text
    assert "python launch.py sentiment --seed 1 --run 'a folder' --distributed auto\n" in text
    assert "--distributed" not in said(capsys, "slurm")

    # the script itself, with stand-ins for SLURM that say what they were asked
    for name, code in (("srun", 75), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    ran = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
    assert ran.returncode == 75
    assert ran.stdout.splitlines() == [
        "srun --kill-on-bad-exit=1 python launch.py sentiment --seed 1 --run a folder --distributed auto",
        "scontrol requeue 7",
    ]


def test_all_workers_of_a_tpu_slice_start_it_until_it_is_done(capsys):
    text = said(capsys, "tpu-vm", "--name", "v5e", "--zone", "z")
    assert text.startswith("gcloud compute tpus tpu-vm ssh v5e --zone=z --worker=all '--command=")
    assert "launch.py sentiment --seed 1" in text and "--distributed auto" in text


def test_a_manifest_has_a_pod_for_each_process(capsys):
    manifest = json.loads(said(capsys, "k8s", "--image", "me/rlhf", "--pods", "4", "--gpus", "8"))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--distributed", "auto"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["moon"], 2, "on = 'moon': use slurm, tpu-vm, k8s"),
        (["tpu-vm", "--zone", "z"], 1, "name is empty"),
        (["k8s"], 1, "image is empty"),
    ],
)
def test_what_cannot_be_sent_is_refused(capsys, settings, code, words):
    assert launch.main([*RUN, *settings]) == code
    assert words in capsys.readouterr().err
