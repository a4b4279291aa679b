"""Over-optimization in full: 10 seeds, reward models of 10k to 1M parameters and 100 to 10k comparisons.

    python launch.py overoptimization_full

See `overoptimization.py`, whose other settings these are.
"""

from dataclasses import replace

from experiments import overoptimization

config = replace(
    overoptimization.config,
    seeds=10,
    pairs=(100, 300, 1000, 3000, 10_000),
    sizes=("10k", "100k", "1M"),
)


def main(cfg: overoptimization.Config):
    """Runs what is not yet in the run directory, and writes tables and pictures of it."""
    overoptimization.main(cfg, "overoptimization_full")
