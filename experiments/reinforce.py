"""REINFORCE with the mean of the other responses as baseline (Williams, 1992).

    python launch.py reinforce

TODO
"""

from experiments import rl
from rlhf_jax import policy_gradient

config = rl.Config(pg=policy_gradient.REINFORCE)


def main(cfg: rl.Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    rl.main("reinforce", cfg)
