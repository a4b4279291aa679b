"""A command as a batch script, a pod's command or a manifest: what `launch.py ... --on KIND` sends.

    python launch.py sentiment --seed 1 --on slurm --nodes 2 --partition gpu --time 8:00:00 --dry-run

Each is a text that a person can read, and `--dry-run` prints it instead of sending it. The processes join
each other by `--distributed auto`; one that ends with 75 (preempted, or another was lost) is started again
with the same command, which goes on where it was.
"""

import json
import pathlib
import re
import shlex
import subprocess
from dataclasses import dataclass

from rlhf_jax.bounds import Count, Settings, Whole


@dataclass(frozen=True)
class Slurm(Settings):
    """Submits a batch script to SLURM; it is requeued when it is preempted."""

    nodes: Count = 1
    """Number of machines."""
    tasks_per_node: Count = 1
    """Processes per machine; a single one uses all GPUs of the machine."""
    gpus_per_node: Whole = 0
    """GPUs per machine; 0: none."""
    cpus_per_task: Whole = 0
    """CPU cores per process; 0: the cluster's default."""
    partition: str = ""
    """Partition to run in; empty: the cluster's default."""
    time: str = ""
    """Time limit, such as 8:00:00; empty: the partition's default."""
    dry_run: bool = False
    """Print the script and submit nothing."""

    def _conditions(self, at: str):
        _check_form(at + "partition", self.partition, r"[\w.,+-]*", "letters, digits and _ . , + -")
        _check_form(
            at + "time",
            self.time,
            r"|(\d+-)?\d+(:\d\d?){0,2}|infinite",
            "minutes, 8:00:00 or 2-12:00:00",
        )


@dataclass(frozen=True)
class TpuVm(Settings):
    """Starts the command on all workers of a TPU slice, by gcloud."""

    name: str = ""
    """Name of the TPU VM."""
    zone: str = ""
    """Zone of the TPU VM."""
    project: str = ""
    """Google Cloud project of the TPU VM; empty: gcloud's default."""
    folder: str = "rlhf_jax"
    """Checkout on the workers, relative to the home folder."""
    python: str = "python3"
    """Python interpreter on the workers, relative to the checkout, such as .venv/bin/python."""
    dry_run: bool = False
    """Print the command and run nothing."""

    def _conditions(self, at: str):
        for name in ("name", "zone", "project"):
            known = r"([a-z0-9][a-z0-9.:-]*)?"
            _check_form(at + name, getattr(self, name), known, "small letters, digits and . : -")
        for name in ("folder", "python"):
            _check_form(at + name, getattr(self, name), r"[^\n]+", "a path")


@dataclass(frozen=True)
class K8s(Settings):
    """Writes a JobSet manifest for Kubernetes (jobset.x-k8s.io), and applies it."""

    name: str = "rlhf-jax"
    """Name of the JobSet."""
    image: str = ""
    """Container image whose working folder is a checkout, with JAX for its accelerator."""
    claim: str = ""
    """PersistentVolumeClaim that all pods share, mounted at /runs: point --run inside it."""
    pods: Count = 1
    """Number of pods, with one process each."""
    gpus: Whole = 0
    """GPUs per pod."""
    restarts: Whole = 100
    """Most restarts after preemptions or lost pods."""
    dry_run: bool = False
    """Print the manifest and apply nothing."""

    def _conditions(self, at: str):
        label = r"[a-z]([a-z0-9-]*[a-z0-9])?"
        _check_form(at + "name", self.name, label, "small letters, digits and -, a letter first")
        longest = 63 - len(f"-worker-0-{self.pods - 1}-xxxxx")  # of a pod's name
        if len(self.name) > longest:
            raise ValueError(
                f"{at}name = {self.name!r} has {len(self.name)} characters, and its pods' names have more: "
                f"{longest} at most"
            )
        _check_form(at + "image", self.image, r"[\w.:/@+-]*", "an image, as REGISTRY/NAME:TAG")
        claim = r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?"
        _check_form(at + "claim", self.claim, claim, "small letters, digits and . -")


def _check_form(name: str, value: str, pattern: str, want: str):
    """What is written into a script or a manifest holds no line break and no blank that could change it."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{name} = {value!r}: write {want}")


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
    needs no right to ask the cluster. Kubernetes expands $(NAME) in every word of a command, and makes one $
    of $$: so each $ of the user's words is doubled. Exit codes 1 and 2 (bad input) end it all; else all
    start again.
    """
    if not cfg.image:
        raise ValueError("image is empty: name a container with this package, as --image")
    first = f"{cfg.name}-worker-0-0.{cfg.name}:1234"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    joined = ["--distributed", f"{first},{cfg.pods},$(POD_INDEX)"] if cfg.pods > 1 else []
    container = {
        "name": "main",
        "image": cfg.image,
        "command": [*(word.replace("$", "$$") for word in command), *joined],
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
