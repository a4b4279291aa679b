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


def test_all_workers_of_a_tpu_slice_start_it_until_it_is_done(capsys, tmp_path):
    text = said(capsys, "tpu-vm", "--name", "v5e", "--zone", "z")
    assert text.startswith("gcloud compute tpus tpu-vm ssh v5e --zone=z --worker=all '--command=")

    # the command itself, with a gcloud that is one worker, and a python that is preempted twice
    (tmp_path / "rlhf_jax").mkdir()
    (tmp_path / "gcloud").write_text('#!/bin/bash\ncd; exec bash -c "${!##--command=}"\n')
    (tmp_path / "python3").write_text(
        '#!/bin/bash\necho "$PWD" "$@" >>said\n[ $(wc -l <said) -eq 3 ] || exit 75\n'
    )
    for name in ("gcloud", "python3"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    assert subprocess.run(["bash", "-c", text], env=environment).returncode == 0
    folder = tmp_path / "rlhf_jax"
    asked = f"{folder} launch.py sentiment --seed 1 --run a folder --distributed auto"
    assert (folder / "said").read_text().splitlines() == 3 * [asked]


def test_a_manifest_has_a_pod_for_each_process(capsys):
    settings = ["--image", "me/rlhf", "--pods", "4", "--gpus", "8", "--claim", "disk"]
    manifest = json.loads(said(capsys, "k8s", *settings))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    (container,) = job["template"]["spec"]["containers"]
    where = "rlhf-jax-worker-0-0.rlhf-jax:1234,4,$(POD_INDEX)"  # kubelet writes the number there
    assert container["command"][-2:] == ["--distributed", where]
    assert job["completionMode"] == "Indexed" and container["env"][0]["name"] == "POD_INDEX"
    assert container["volumeMounts"][0]["mountPath"] == "/runs"
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
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
