"""Dr. GRPO: GRPO without its normalisation by length and deviation (Liu et al., 2025).

    python launch.py dr_grpo

Nothing holds it to the reference, as published, so that it over-optimizes a weak reward model: --pg.kl-in-
reward k1 holds it. Gold goes from -0.11 to 1.44 at a KL of 3.5 (seed 0). --start-from RUN takes the shared
stages from a run.
"""

from experiments import rl
from rlhf_jax import policy_gradient

config = rl.Config(pg=policy_gradient.DR_GRPO)


def main(cfg: rl.Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    rl.main("dr_grpo", cfg)
