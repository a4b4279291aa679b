"""RLOO: each response against the mean of the others to its prompt (Ahmadian et al., 2024).

    python launch.py rloo

TODO
"""

from experiments import rl
from rlhf_jax import policy_gradient

config = rl.Config(pg=policy_gradient.RLOO)


def main(cfg: rl.Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    rl.main("rloo", cfg)
