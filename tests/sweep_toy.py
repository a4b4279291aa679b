"""A toy for sweeps: its results are a law of its settings, and it needs no JAX."""

import json
import os
import pathlib
import time
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.bounds import NonNegative, Seed, Settings


@dataclass(frozen=True)
class RLConfig(Settings):
    seed: Seed | None = None
    """Seed of the noise."""
    kl_coef: NonNegative = 0.1
    """Weight of the KL penalty; 13 is refused as the run begins."""
    kind: Literal["ppo", "rloo"] = "ppo"
    """Algorithm."""


@dataclass(frozen=True)
class Config(Settings):
    _incidental = ("run",)

    seed: Seed = 0
    """Seed of everything."""
    run: str = ""
    """Folder of the run."""
    words: tuple[str, ...] = ()
    """Words of no consequence."""
    fast: bool = False
    """Speed of no consequence."""
    waits: bool = False
    """Write the number of the process, and wait to be stopped, at the first time."""
    rl: RLConfig = RLConfig()


config = Config()
NOISE = (0.0, 0.1, -0.1)
"""What each seed adds to gold."""


def gold(kl_coef: float, kind: str, seed: int) -> float:
    return 1 - 10 * (kl_coef - 0.05) ** 2 - 0.5 * (kind == "ppo") + NOISE[seed % 3]


def main(cfg: Config):
    rl, folder = cfg.rl, pathlib.Path(cfg.run)
    if rl.kl_coef == 13:
        raise ValueError("rl.kl_coef = 13: take another")
    folder.mkdir(parents=True, exist_ok=True)
    if cfg.waits and not (folder / "process").exists():
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(600)
    seed = cfg.seed if rl.seed is None else rl.seed
    of = lambda x: {"mean": x, "low": x - 1, "high": x + 1}
    results = {
        "score of the reward model": {"before": of(0.0), "after": of(2.0 - rl.kl_coef)},
        "gold": {"before": of(-0.4), "after": of(gold(rl.kl_coef, rl.kind, seed))},
        "win rate of TOY over SFT, by gold": of(0.75),
        "kl": of(1 / (1 + rl.kl_coef) + NOISE[seed % 3]),
        "the reward model beats": {"length alone": "yes"},
        "calibration": [{"pairs": 3}],
        "seconds": {"sft": 2.0},
        "peak memory, GiB": 0.5,
    }
    config = {"experiment": "sweep_toy", "settings": {}, "versions": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "report.html").write_text("<html></html>")
