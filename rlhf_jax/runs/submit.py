"""A command as a batch script, a pod's command or a manifest: what `launch.py ... --on KIND` sends.

    python launch.py sentiment --seed 1 --on slurm --nodes 2 --partition gpu --time 8:00:00 --dry-run

Each is a text that a person can read, and `--dry-run` prints it instead of sending it. The processes join
each other by `--distributed auto`; one that ends with 75 (preempted, or another was lost) is started again
with the same command, which goes on where it was.
"""

import pathlib
import shlex
import subprocess
from dataclasses import dataclass

from rlhf_jax.bounds import Settings
from rlhf_jax.runs.forms import check_form
from rlhf_jax.runs.kubernetes import K8s, jobset
from rlhf_jax.runs.slurm import Slurm, sbatch


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
            check_form(at + name, getattr(self, name), known, "small letters, digits and . : -")
        for name in ("folder", "python"):
            check_form(at + name, getattr(self, name), r"[^\n]+", "a path")


KINDS = {"slurm": Slurm, "tpu-vm": TpuVm, "k8s": K8s}


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


def send(cfg, name: str, command: list[str], folder: pathlib.Path) -> int:
    """Prints what is sent, sends it unless `cfg.dry_run`, and returns the exit code."""
    if isinstance(cfg, Slurm):
        if cfg.array_at_most:
            raise ValueError(
                f"array_at_most = {cfg.array_at_most} has no effect because one run is sent: leave it out, "
                "or give --seeds"
            )
        text, run = sbatch(cfg, name, [command], folder), ["sbatch"]
    elif isinstance(cfg, K8s):
        text, run = jobset(cfg, command), ["kubectl", "apply", "-f", "-"]
    else:
        run = gcloud(cfg, command)
        text = ""
    print(text or shlex.join(run), flush=True)
    if cfg.dry_run:
        return 0
    return call(run, input=text).returncode


def call(run: list[str], **given) -> subprocess.CompletedProcess:
    """Runs a command of the cluster's. Raises ValueError where it is not installed here."""
    try:
        return subprocess.run(run, text=True, **given)
    except FileNotFoundError:
        raise ValueError(
            f"{run[0]} is not installed here: use --dry-run, and send it from where it is"
        ) from None
