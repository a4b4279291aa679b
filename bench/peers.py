"""The peers: the environment of each, and the side that does its works."""

import pathlib
import sys

OURS = "bench.sides.ours"
PEERS = {  # name -> its environment, and its side
    "ours": ("", OURS),
    "bare": ("", "bench.sides.bare"),
    "transformers": ("transformers", "bench.sides.by_torch"),
    "torch": ("transformers", "bench.sides.by_torch"),
    "trl": ("trl", "bench.sides.by_trl"),
    "trl112": ("trl112", "bench.sides.by_trl112"),
    "tunix": ("tunix", "bench.sides.by_tunix"),
}


def interpreter(peer: str, envs: pathlib.Path) -> str:
    """The peer's Python. Raises ValueError, with the command that makes it, where there is none."""
    name, _ = PEERS[peer]
    if not name:
        return sys.executable
    folder = envs / name
    if not (folder / "bin" / "python").exists():
        raise ValueError(
            f"{peer} has no environment: python -m venv {folder} && "
            f"{folder}/bin/pip install -r bench/requirements-{name}.txt"
            + (f" && {folder}/bin/pip install --no-deps trl==1.12.0" if name == "trl112" else "")
        )
    return str((folder / "bin" / "python").absolute())
