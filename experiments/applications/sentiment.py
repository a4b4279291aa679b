"""From people's preferences to a better policy: SFT, a reward model and PPO.

    python launch.py sentiment

trains on a generated world of movie reviews whose true sentiment ("gold") is known, in about three
minutes on two CPU cores: gold rises from about 0 to above 1, in reference standard deviations.

    python launch.py sentiment --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your JSONL (.gz too); gold is then a second reward model, taught by other comparisons.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import inference, outcome, rl
from rlhf_jax.pipeline.rl import RLConfig


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of the sentiment experiment."""

    ppo: PPOConfig = PPOConfig()
    rl: RLConfig = RLConfig()

    def _conditions(self, at: str):
        super()._conditions(at)
        rl.check_update(self, at, "ppo", self.ppo)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | rl.no_kl(self.ppo)


order = 1  # of the launcher's list
config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    # 1. a language model, and two reward models from what people preferred: ground.py
    ground = grounds.lay("sentiment", cfg, rl.batch_sizes(cfg, cfg.ppo))
    if ground is None:
        return
    cfg = ground.cfg

    # 2. PPO against the first of them: rl.py
    algorithm = rl.with_ppo(ground)
    params, kl_coef = rl.train(ground, algorithm)

    # 3. the verdict, on held-out prompts
    said = outcome.after(ground, params["policy"])
    scores = outcome.rewarded(ground, said)
    both = ground.devices.share((params, ground.reference))
    annotate = lambda samples: algorithm.learner.annotate(*both, samples)
    seen = inference.by_batches(ground.devices, annotate, said.samples)
    rolled = rollout.with_rewards(jax.tree.map(jnp.asarray, seen), scores, cfg.rollout)
    batch, _ = ppo.prepare(rolled, kl_coef, cfg.ppo)
    tokens = {
        "value": rolled.values,
        "advantage": batch.advantages,
        "reward": rolled.rewards - kl_coef * (rolled.logprobs - rolled.ref_logprobs),
    }
    outcome.conclude(ground, "PPO", said, tokens=tokens)
