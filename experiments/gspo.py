"""GSPO: one clipped ratio a response, the geometric mean of its tokens' (Zheng et al., 2025).

    python launch.py gspo

Nothing holds it to the reference, as published, so that it over-optimizes: gold goes from -0.11 to 0.61
alone, at a KL of 6.9, while the reward model's score goes to 2.74 (seed 0); --pg.kl-in-reward k1 holds it
(1.51 at 3.3).
--start-from RUN takes the shared stages from a run.
"""

from dataclasses import replace

from experiments import rl
from rlhf_jax import policy_gradient

config = rl.Config(pg=replace(policy_gradient.GSPO, group=8))


def main(cfg: rl.Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    rl.main("gspo", cfg)
