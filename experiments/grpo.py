"""GRPO: responses to a prompt against each other, in deviations of their scores (Shao et al., 2024).

    python launch.py grpo

TODO
"""

from dataclasses import replace

from experiments import rl
from rlhf_jax import policy_gradient

config = rl.Config(pg=replace(policy_gradient.GRPO, group=8))


def main(cfg: rl.Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    rl.main("grpo", cfg)
