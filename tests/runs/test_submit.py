"""What `--on` sends: scripts that a shell accepts and a person can read."""

import json
import os
import re
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


def test_options_of_sbatch_have_settings_or_are_passed_through(capsys):
    own = ["--account", "lab", "--qos", "high", "--mem", "64G"]
    further = [
        "constraint=a100&nvlink",
        "exclusive",
        "mail-type=END",
        "comment=two words; $(x) `y`",
    ]
    text = said(capsys, "slurm", *own, "--sbatch", *further)
    for line in (
        "--account=lab",
        "--qos=high",
        "--mem=64G",
        "--constraint=a100&nvlink",
        "--exclusive",
        "--mail-type=END",
        '--comment="two words; $(x) `y`"',
    ):
        assert f"\n#SBATCH {line}\n" in text
    # a shell takes them for comments, and sbatch the last of two
    assert text.index("--requeue") < text.index("--constraint") < text.index("\ncd ")
    plain = said(capsys, "slurm")
    assert not re.search("account|qos|mem|array|constraint", plain)


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


def test_pods_have_secrets_variables_shared_memory_and_requests(capsys):
    settings = ["--image", "me/rlhf", "--secrets", "hf", "wandb.key", "--shm", "16Gi", "--cpu", "8"]
    words = ["A=1", "URL=http://x?a=b", "HOSTILE=$(POD_INDEX) $$ \"'\n- x", "EMPTY="]
    text = said(capsys, "k8s", *settings, "--memory", "64Gi", "--gpus", "2", "--env", *words)
    job = json.loads(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": x}} for x in ("hf", "wandb.key")]
    index, *given = container["env"]
    assert index["name"] == "POD_INDEX"
    known = {"POD_INDEX": "3"}  # which Kubernetes would put in, were it not escaped
    assert [f"{x['name']}={expanded(x['value'], known)}" for x in given] == words
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"nvidia.com/gpu": 2},
    }  # fmt: skip
    assert container["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert pod["volumes"] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    ]
    both = json.loads(said(capsys, "k8s", *settings, "--claim", "disk"))
    text = json.dumps(both)
    assert '"claimName": "disk"' in text and '"/dev/shm"' in text and '"/runs"' in text
    plain = said(capsys, "k8s", "--image", "me/rlhf")
    assert not re.search("envFrom|volume|resources", plain)


def expanded(text: str, known: dict[str, str]) -> str:
    """What Kubernetes makes of a word of a command: $$ is $, and $(NAME) what it stands for."""
    pattern = r"\$\$|\$\(([^)]*)\)"
    return re.sub(pattern, lambda m: "$" if m[1] is None else known.get(m[1], m[0]), text)


def test_kubernetes_gives_the_users_words_back_as_they_are(capsys):
    words = ["--run", "/runs/$(POD_INDEX)/$$a/$x/$", "--rl.reward", "a.py:$$(f)"]
    sent = ["sentiment", *words, "--on=k8s", "--image", "i", "--pods", "2", "--dry-run"]
    assert launch.main(sent) == 0
    manifest = json.loads(capsys.readouterr().out)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    command = job["template"]["spec"]["containers"][0]["command"]
    command = [expanded(word, {"POD_INDEX": "1"}) for word in command]
    assert command[3:-2] == words and command[-1].endswith(":1234,2,1")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (["--seed", "-1"], 1, "seed = -1: it must be 0 or more"),
        (["--ppo.microbatches", "3"], 1, "ppo.microbatches = 3 does not divide"),
        (["--sed", "1"], 2, "--seed"),
    ],
)
def test_settings_that_would_fail_in_the_queue_are_not_sent(capsys, settings, code, said):
    try:
        got = launch.main(["sentiment", *settings, "--on", "slurm", "--dry-run"])
    except SystemExit as left:
        got = left.code
    out, err = capsys.readouterr()
    assert got == code and out == "" and said in err


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["moon"], 2, "on = 'moon': use slurm, tpu-vm, k8s"),
        (["tpu-vm", "--zone", "z"], 1, "name is empty"),
        (["k8s"], 1, "image is empty"),
        (["slurm", "--nodes", "0"], 1, "nodes = 0: it must be 1 or more"),
        (
            ["slurm", "--partition", "a\n#SBATCH --x"],
            1,
            "partition = 'a\\n#SBATCH --x': write letters",
        ),
        (["slurm", "--time", "1:00 --x"], 1, "time = '1:00 --x': write minutes, 8:00:00"),
        (["tpu-vm", "--name=-x", "--zone", "z"], 1, "name = '-x': write small letters"),
        (["k8s", "--image", "a", "--pods", "0"], 1, "pods = 0: it must be 1 or more"),
        (["k8s", "--image", "a", "--name", "Big"], 1, "name = 'Big': write small letters"),
        (["k8s", "--image", "a", "--name", "n" * 60], 1, "has 60 characters"),
        (["k8s", "--image", "a b"], 1, "image = 'a b': write an image"),
        (["slurm", "--account", "a b"], 1, "account = 'a b': write letters"),
        (["slurm", "--qos", "a\n#SBATCH --x"], 1, "qos = 'a\\n#SBATCH --x': write letters"),
        (["slurm", "--mem", "64 G"], 1, "mem = '64 G': write a whole number and K, M, G or T"),
        (["slurm", "--sbatch", "a=b\nrm x"], 1, "sbatch = 'a=b\\nrm x': write NAME or NAME=VALUE"),
        (["slurm", "--sbatch", 'a="b" --c'], 1, 'without " and \\'),
        (["slurm", "--sbatch", "a b"], 1, "sbatch = 'a b': write NAME or NAME=VALUE in one line"),
        (["slurm", "--sbatch", "a=\r"], 1, "write NAME or NAME=VALUE in one line"),
        (
            ["slurm", "--sbatch", "nodes=2"],
            1,
            "sbatch = 'nodes=2': use --nodes, a setting of its own",
        ),
        (
            ["slurm", "--sbatch", "ntasks-per-node=2"],
            1,
            "use --tasks-per-node, a setting of its own",
        ),
        (["slurm", "--sbatch", "array=0-3"], 1, "sbatch = 'array=0-3': the launcher decides it"),
        (
            ["slurm", "--array-at-most", "2"],
            1,
            "array_at_most = 2 has no effect because one run is",
        ),
        (["k8s", "--image", "a", "--secrets", "A_B"], 1, "secrets = 'A_B': write small letters"),
        (["k8s", "--image", "a", "--env", "1=2"], 1, "env = '1=2': write NAME=VALUE"),
        (["k8s", "--image", "a", "--env", "A"], 1, "env = 'A': write NAME=VALUE"),
        (["k8s", "--image", "a", "--env", "A=1", "A=2"], 1, "env: A is given twice, leave it out"),
        (["k8s", "--image", "a", "--env", "POD_INDEX=2"], 1, "env: POD_INDEX holds the number of"),
        (["k8s", "--image", "a", "--shm", "16 Gi"], 1, "shm = '16 Gi': write a number and Mi, Gi"),
        (["k8s", "--image", "a", "--memory", "lots"], 1, "memory = 'lots': write a number and Mi"),
        (["k8s", "--image", "a", "--cpu", "1.5m"], 1, "cpu = '1.5m': write cores, as 8, or thou"),
    ],
)
def test_what_cannot_be_sent_is_refused(capsys, settings, code, words):
    assert launch.main([*RUN, *settings]) == code
    assert words in capsys.readouterr().err
