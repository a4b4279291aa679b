"""Over-optimization on a GPU: 32 seeds as one program, reward models of 1M to 10M parameters.

    python launch.py overoptimization_gpu

See `overoptimization.py`, whose other settings these are.
"""

from dataclasses import replace

from experiments import overoptimization
from experiments.lab import LabConfig

config = replace(
    overoptimization.config,
    seeds=32,
    pairs=(100, 300, 1000, 3000, 10_000),
    sizes=("1M", "3M", "10M"),
    trained_against="3M",
    lab=LabConfig(policy="1M", teacher="10M", pool_prompts=64, pool_draws=256),
)


def main(cfg: overoptimization.Config):
    """Runs what is not yet in the run directory, and writes tables and pictures of it."""
    overoptimization.main(cfg, "overoptimization_gpu")
