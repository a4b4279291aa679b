"""Weights & Biases: one W&B run for each run directory, in which every stage is a group of charts.

The run is the same one whenever the same directory is opened, so a resumed run goes on in it. A metric is
`STAGE/NAME`, drawn against `STAGE/iteration`. WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP and every other
variable of the package are respected; WANDB_MODE=offline needs no network.
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from rlhf_jax.devices import hosts
from rlhf_jax.runs.disk import read_json

_open: dict[pathlib.Path, Any] = {}  # run directory to its W&B run, in this process


def load():
    """The package wandb. Raises ValueError where it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            'Weights & Biases is not installed: pip install "rlhf_jax[wandb]", or leave wandb off'
        ) from None
    return wandb


def start(folder: pathlib.Path) -> None:
    """Opens the W&B run of a run directory, with all settings of its config.json, on the first host."""
    if not hosts.is_first():
        return
    place = folder.resolve()
    config = read_json(folder / "config.json")
    name = {"WANDB_PROJECT": "rlhf_jax", "WANDB_RUN_GROUP": config["experiment"]}
    name["WANDB_NAME"] = f"{config['experiment']} {place.name}"
    project, group, own = (os.environ.get(x) or default for x, default in name.items())
    kept = ("experiment", "versions", "commit", "command")
    _open[place] = load().init(
        project=project,
        group=group,
        name=own,
        id=hashlib.sha256(str(place).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(folder),
        config=config.get("used", config["settings"]) | {x: config.get(x) for x in kept},
    )


def log(folder: pathlib.Path, stage: str, iteration: int, numbers: dict, samples: Sequence[dict]):
    """Metrics and texts of one iteration, where the run directory has a W&B run."""
    if (run := _open.get(folder.resolve())) is None:
        return
    values: dict[str, Any] = {f"{stage}/{name}": x for name, x in numbers.items()}
    if samples:
        values[f"{stage}/samples"] = _table(samples)
    run.define_metric(f"{stage}/*", step_metric=f"{stage}/iteration")
    run.log(values | {f"{stage}/iteration": iteration})


def conclude(folder: pathlib.Path, results: dict, samples: Sequence[dict]) -> None:
    """Results, samples and report of a run directory that has a W&B run, which this ends."""
    if (run := _open.pop(folder.resolve(), None)) is None:
        return
    run.summary.update({"results": results})
    tables = {"samples": _table(samples)} if samples else {}
    page = (folder / "report.html").read_text(encoding="utf-8")
    run.log(tables | {"report": load().Html(page, inject=False)})
    run.finish()


def _table(rows: Sequence[dict]):
    """A W&B table."""
    return load().Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
