"""Surroundings of a run: its command, the versions, the devices and the commit."""

import importlib.metadata
import pathlib
import platform
import resource
import subprocess
import sys
from typing import Any

import jax

PACKAGES = (
    "rlhf_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)


def surroundings() -> dict[str, Any]:
    """The program, the machine and the source that a run begins with, as config.json holds them."""
    devices = jax.devices()
    return {
        "command": command(),
        "versions": versions(),
        "platform": platform.platform(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind}
        | {"count": len(devices), "processes": jax.process_count()},
        "commit": _commit(),
    }


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that results depend on."""

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def command() -> list[str]:
    """The command line, without the folder of its program."""
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]


def peak_memory() -> float:
    """The most memory this process has held at once, in GiB; that of devices is not in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _commit():
    """The commit of the source tree and whether it was changed since; None if it is no checkout."""

    def git(*args):
        command = ["git", "-C", str(here.parent), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    here = pathlib.Path(__file__).resolve()
    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # an installed copy may lie in another checkout
        dirty = bool(git("status", "--porcelain", ":/").strip())
        return {"hash": git("rev-parse", "HEAD").strip(), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None
