"""Who scores the samples of a rollout: the reward model, a Python function on threads, or both."""

from collections.abc import Callable

import numpy as np
from jax.sharding import PartitionSpec as P

from experiments import outcome
from experiments.ground import Ground
from rlhf_jax.data import rewards
from rlhf_jax.evaluate import bootstrap_interval
from rlhf_jax.parallel import DATA


class Judge:
    """Scores of samples: by the reward model, a Python function on threads of the host, or both."""

    def __init__(self, ground: Ground, reward_fn: Callable):
        rl, devices = ground.cfg.rl, ground.devices
        self.ground, self.weight = ground, 1.0 if not rl.reward else rl.reward_model_weight
        self.scorer = rewards.Scorer(rewards.load(rl.reward), rl.scorer) if rl.reward else None
        self.score = devices.compile(reward_fn, (P(), P(DATA)), P(DATA))

    def begin(self, params, prompts: list[str], samples) -> Callable[[], np.ndarray]:
        """What gives the scores [B] when it is asked; until then the threads work, and the devices may."""
        fetch, pending = self.ground.devices.fetch, None
        if self.scorer is not None:
            pending = self.scorer.submit(prompts, self.ground.answers.texts(fetch(samples)))
        learned = self.score(params, samples) if self.weight else None

        def end():
            total = np.zeros(len(prompts), np.float32)
            if learned is not None:
                total += np.float32(self.weight) * fetch(learned)
            return total + pending.result() if pending else total

        return end


def python_reward(ground: Ground, said) -> dict:
    """What the Python reward, if there is one, gives to the held-out prompts before and after."""
    rl, prompts = ground.cfg.rl, outcome.held_out_prompts(ground)
    if not rl.reward:
        return {}
    scorer = rewards.Scorer(rewards.load(rl.reward), rl.scorer)
    sides = {"before": outcome.before(ground), "after": said}
    scores = {name: scorer.submit(prompts, side.texts).result() for name, side in sides.items()}
    return {
        "Python reward": {
            name: bootstrap_interval(np.asarray(x), prompts)._asdict() for name, x in scores.items()
        }
    }
