"""Manifests for Kubernetes: a command as a JobSet with a pod for each process."""

import json
from dataclasses import dataclass
from typing import Any

from rlhf_jax.bounds import Count, Settings, Whole
from rlhf_jax.runs.forms import check_form

INDEX = "POD_INDEX"
"""Environment variable that holds the number of a pod."""
SIZE = r"(\d+(\.\d+)?([KMGT]i|[kMGT])?)?"


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
    cpu: str = ""
    """CPU cores that each pod requests, such as 8 or 500m; empty: none."""
    memory: str = ""
    """Memory that each pod requests, such as 64Gi; empty: none."""
    shm: str = ""
    """Size of /dev/shm, such as 16Gi, which is memory of the pod; empty: the node's 64 MB."""
    secrets: tuple[str, ...] = ()
    """Secrets whose keys become environment variables, such as one with HF_TOKEN or WANDB_API_KEY."""
    env: tuple[str, ...] = ()
    """Environment variables, each NAME=VALUE; anybody who reads the manifest sees them."""
    restarts: Whole = 100
    """Most restarts after preemptions or lost pods."""
    dry_run: bool = False
    """Print the manifest and apply nothing."""

    def _conditions(self, at: str):
        label = r"[a-z]([a-z0-9-]*[a-z0-9])?"
        check_form(at + "name", self.name, label, "small letters, digits and -, a letter first")
        longest = 63 - len(f"-worker-0-{self.pods - 1}-xxxxx")  # of a pod's name
        if len(self.name) > longest:
            raise ValueError(
                f"{at}name = {self.name!r} has {len(self.name)} characters, and its pods' names have more: "
                f"{longest} at most"
            )
        check_form(at + "image", self.image, r"[\w.:/@+-]*", "an image, as REGISTRY/NAME:TAG")
        name, small = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "small letters, digits and . -"
        check_form(at + "claim", self.claim, rf"({name})?", small)
        check_form(
            at + "cpu", self.cpu, r"(\d+(\.\d+)?|\d+m)?", "cores, as 8, or thousandths, as 500m"
        )
        for size in ("memory", "shm"):
            check_form(at + size, getattr(self, size), SIZE, "a number and Mi, Gi or Ti, as 64Gi")
        for secret in self.secrets:
            check_form(at + "secrets", secret, name, small)
        named = [word.partition("=")[0] for word in self.env]
        for word in self.env:
            check_form(at + "env", word, r"[A-Za-z_]\w*=[^\x00]*", "NAME=VALUE")
        if twice := next((x for x in named if named.count(x) > 1 or x == INDEX), ""):
            why = "holds the number of the pod" if twice == INDEX else "is given twice"
            raise ValueError(f"{at}env: {twice} {why}, leave it out")


def jobset(cfg: K8s, command: list[str]) -> str:
    """The manifest, in JSON, which kubectl reads as well. Raises ValueError where no image is named.

    A pod meets the others by the name that JobSet gives to the first and by its own index, so that it
    needs no right to ask the cluster. Exit codes 1 and 2 (bad input) end it all; else all start again.
    """
    if not cfg.image:
        raise ValueError("image is empty: name a container with this package, as --image")
    bad_input = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    job = {
        "completionMode": "Indexed",
        "parallelism": cfg.pods,
        "completions": cfg.pods,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [bad_input]},
        "template": {"spec": _pod(cfg, command)},
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


def _pod(cfg: K8s, command: list[str]) -> dict[str, Any]:
    first = f"{cfg.name}-worker-0-0.{cfg.name}:1234"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    joined = ["--distributed", f"{first},{cfg.pods},$({INDEX})"] if cfg.pods > 1 else []
    variables = [word.partition("=")[::2] for word in cfg.env]
    container: dict[str, Any] = {
        "name": "main",
        "image": cfg.image,
        "command": [*map(_escaped, command), *joined],
        "env": [
            {"name": INDEX, "valueFrom": {"fieldRef": {"fieldPath": index}}},
            *({"name": name, "value": _escaped(value)} for name, value in variables),
        ],
    }
    if cfg.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in cfg.secrets]
    requests = {name: x for name, x in (("cpu", cfg.cpu), ("memory", cfg.memory)) if x}
    limits = {"nvidia.com/gpu": cfg.gpus} if cfg.gpus else {}
    kinds = {"requests": requests, "limits": limits}
    if resources := {kind: x for kind, x in kinds.items() if x}:
        container["resources"] = resources
    volumes = {
        "runs": ("/runs", {"persistentVolumeClaim": {"claimName": cfg.claim}}, cfg.claim),
        "shm": ("/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": cfg.shm}}, cfg.shm),
    }
    mounted = {name: x for name, x in volumes.items() if x[-1]}
    pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [container]}
    if mounted:
        container["volumeMounts"] = [
            {"name": name, "mountPath": place} for name, (place, *_) in mounted.items()
        ]
        pod["volumes"] = [{"name": name} | source for name, (_, source, _) in mounted.items()]
    return pod


def _escaped(word: str) -> str:
    """A word of the user's as Kubernetes gives it back: it expands $(NAME), and makes one $ of $$."""
    return word.replace("$", "$$")
