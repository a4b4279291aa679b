"""A command as a batch script, a pod's command or a manifest: what `launch.py ... --on KIND` sends.

    python launch.py sentiment --seed 1 --on slurm --nodes 2 --partition gpu --time 8:00:00 --dry-run

Each is a text that a person can read, and `--dry-run` prints it instead of sending it. The processes join
each other by `--distributed auto`; one that ends with 75 (preempted, or another was lost) is started again
with the same command, which goes on where it was.
"""

import json
import pathlib
import shlex
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Slurm:
    """Submits a batch script to SLURM; it is requeued when it is preempted."""

    nodes: int = 1
    """Machines."""
    tasks_per_node: int = 1
    """Processes on each; one takes all of its GPUs."""
    gpus_per_node: int = 0
    """GPUs on each; 0 asks for none."""
    cpus_per_task: int = 0
    """Cores of a process; 0 leaves it to the cluster."""
    partition: str = ""
    """Where it runs; empty: the cluster's default."""
    time: str = ""
    """Longest time, as 8:00:00; empty: the partition's."""
    dry_run: bool = False
    """Print the script and submit nothing."""


@dataclass(frozen=True)
class TpuVm:
    """Starts the command on all workers of a TPU slice, by gcloud."""

    name: str = ""
    """Of the TPU VM."""
    zone: str = ""
    """Where it is."""
    project: str = ""
    """Whose; empty: gcloud's default."""
    folder: str = "rlhf_jax"
    """The checkout on the workers, below the home folder."""
    python: str = "python3"
    """The interpreter there; seen from the checkout, as .venv/bin/python."""
    dry_run: bool = False
    """Print the command and run nothing."""


@dataclass(frozen=True)
class K8s:
    """Writes a JobSet manifest for Kubernetes (jobset.x-k8s.io), and applies it."""

    name: str = "rlhf-jax"
    """Of the JobSet."""
    image: str = ""
    """Container whose working folder is a checkout, with jax for its accelerator."""
    claim: str = ""
    """PersistentVolumeClaim, shared by all pods, that becomes the folder /runs: let --run lie there."""
    pods: int = 1
    """Processes."""
    gpus: int = 0
    """GPUs of each pod."""
    restarts: int = 100
    """How often it may be started again, after a preemption or the loss of a pod."""
    dry_run: bool = False
    """Print the manifest and apply nothing."""


KINDS = {"slurm": Slurm, "tpu-vm": TpuVm, "k8s": K8s}


def sbatch(cfg: Slurm, name: str, command: list[str], folder: pathlib.Path) -> str:
    """The batch script. SIGTERM reaches the processes two minutes before the time is over."""
    wanted = {
        "job-name": name,
        "nodes": cfg.nodes,
        "ntasks-per-node": cfg.tasks_per_node,
        "gpus-per-node": cfg.gpus_per_node or None,
        "cpus-per-task": cfg.cpus_per_task or None,
        "partition": cfg.partition or None,
        "time": cfg.time or None,
        "signal": "TERM@120",
        "open-mode": "append",
        "output": f"{name}-%j.log",
    }
    lines = [f"#SBATCH --{key}={value}" for key, value in wanted.items() if value is not None]
    joined = ["--distributed", "auto"] if cfg.nodes * cfg.tasks_per_node > 1 else []
    return "\n".join([
        "#!/bin/bash",
        *lines,
        "#SBATCH --requeue",
        f"cd {shlex.quote(str(folder))}",
        f"srun --kill-on-bad-exit=1 {shlex.join([*command, *joined])}",
        "code=$?",
        "# preempted, or a process was lost: the same command goes on where it was",
        'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $code",
        "",
    ])  # fmt: skip


def gcloud(cfg: TpuVm, command: list[str]) -> list[str]:
    """The command that starts all workers. Raises ValueError where the slice is not named."""
    for setting in ("name", "zone"):
        if not getattr(cfg, setting):
            raise ValueError(f"{setting} is empty: give the TPU VM's --name and --zone")
    project = [f"--project={cfg.project}"] if cfg.project else []
    again = "; ".join([
        f"cd {shlex.quote(cfg.folder)}",
        f"until {shlex.join([cfg.python, *command[1:], '--distributed', 'auto'])}",
        "do [ $? -eq 75 ] || exit 1",
        "done",
    ])  # fmt: skip
    where = [cfg.name, f"--zone={cfg.zone}", *project, "--worker=all"]
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", *where, f"--command={again}"]


def jobset(cfg: K8s, command: list[str]) -> str:
    """The manifest, in JSON, which kubectl reads as well. Raises ValueError where no image is named.

    A pod meets the others by the name that JobSet gives to the first and by its own index, so that it
    needs no right to ask the cluster. Exit codes 1 and 2 (bad input) end it all; else all start again.
    """
    if not cfg.image:
        raise ValueError("image is empty: name a container with this package, as --image")
    first = f"{cfg.name}-worker-0-0.{cfg.name}:1234"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    joined = ["--distributed", f"{first},{cfg.pods},$(POD_INDEX)"] if cfg.pods > 1 else []
    container = {
        "name": "main",
        "image": cfg.image,
        "command": [*command, *joined],
        "env": [{"name": "POD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": index}}}],
    }
    pod: dict = {"restartPolicy": "Never", "containers": [container]}
    if cfg.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": cfg.gpus}}
    if cfg.claim:
        container["volumeMounts"] = [{"name": "runs", "mountPath": "/runs"}]
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": cfg.claim}}]
    bad_input = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    job = {
        "completionMode": "Indexed",
        "parallelism": cfg.pods,
        "completions": cfg.pods,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [bad_input]},
        "template": {"spec": pod},
    }
    for_good = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    manifest = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": cfg.name},
        "spec": {
            "failurePolicy": {
                "maxRestarts": cfg.restarts,
                "rules": [{"name": "input", **for_good}],
            },
            "replicatedJobs": [{"name": "worker", "replicas": 1, "template": {"spec": job}}],
        },
    }
    return json.dumps(manifest, indent=2)


def send(cfg, name: str, command: list[str], folder: pathlib.Path) -> int:
    """Prints what is sent, sends it unless `cfg.dry_run`, and returns the exit code."""
    if isinstance(cfg, Slurm):
        text, run = sbatch(cfg, name, command, folder), ["sbatch"]
    elif isinstance(cfg, K8s):
        text, run = jobset(cfg, command), ["kubectl", "apply", "-f", "-"]
    else:
        run = gcloud(cfg, command)
        text = ""
    print(text or shlex.join(run), flush=True)
    if cfg.dry_run:
        return 0
    try:
        return subprocess.run(run, input=text, text=True).returncode
    except FileNotFoundError:
        raise ValueError(
            f"{run[0]} is not installed here: use --dry-run, and send it from where it is"
        ) from None
