"""Who scores the samples of a rollout: the reward model, a Python reward, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax.bounds import NonNegative, Settings
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.rewards import scorer as rewards


@dataclass(frozen=True)
class PythonRewardConfig(Settings):
    """A Python reward, and how it stands beside the reward model."""

    _main = ("reward",)

    reward: str = ""
    """A Python reward, FILE.py:FUNCTION of (prompts, responses) that gives a number for each; its other
    parameters name fields of the prompts' rows. It takes the place of the reward model, or is added to it
    with `reward_model_weight`."""
    reward_model_weight: NonNegative = 0.0
    """Weight of the reward model beside a Python reward."""
    scorer: rewards.ScorerConfig = rewards.ScorerConfig()

    def _unread(self) -> dict[str, str]:
        return {} if self.reward else {"scorer": "no Python reward is named"}


def settings(cfg) -> PythonRewardConfig:
    """The settings of an experiment's Python reward; those of none where the experiment takes none."""
    return getattr(cfg, "rl", PythonRewardConfig())


def model_weight(cfg) -> float:
    """The weight of the reward model in what an experiment learns from."""
    own = settings(cfg)
    return own.reward_model_weight if own.reward else 1.0


def dispensable(cfg) -> tuple[str, ...]:
    """The settings of `data` that may be empty though other files are named.

    A Python reward alone needs no comparisons, and then a policy that is no SFT policy of this run no corpus.
    """
    if model_weight(cfg) or cfg.data.comparisons:
        return ()
    return ("comparisons", "corpus") if cfg.reference else ("comparisons",)


def scorer(cfg, world) -> rewards.Scorer | None:
    """The Python reward of an experiment, loaded once, and its columns compared with the prompts of `world`.

    Raises ValueError where it cannot be called, names a column that the prompts lack, or is told of without
    being named; and where a setting asks for the reward model that is not there beside it.
    """
    own = settings(cfg)
    if not own.reward:
        if own.reward_model_weight:
            raise ValueError(
                f"rl.reward_model_weight = {own.reward_model_weight} is not read without a Python reward: "
                "name it as rl.reward, or leave the weight at 0"
            )
        return None
    if world.comparisons is None:
        if cfg.reward_model:
            raise ValueError(
                f'reward_model = "{cfg.reward_model}" is not read where a Python reward judges alone: leave '
                "it out, or set rl.reward_model_weight and name data.corpus and data.comparisons"
            )
        if getattr(own, "value_from", "") == "reward":
            raise ValueError(
                'rl.value_from = "reward" needs a reward model, and without data.comparisons there is none: '
                "use policy"
            )
    found = rewards.Scorer(own.reward, own.scorer)
    found.check(world.prompts + world.prompts_held_out, world.columns + world.columns_held_out)
    return found


class Judge:
    """Scores of samples: by the reward model, a Python reward, or both."""

    def __init__(self, ground, reward_fn: Callable | None):
        self.ground, self.scorer = ground, ground.scorer
        self.weight = model_weight(ground.cfg)
        self.score: Any = None
        if self.weight:
            self.score = ground.devices.compile(reward_fn, (P(), P(DATA)), P(DATA))

    def begin(
        self, params, prompts: Sequence[str], columns: Sequence[dict], samples
    ) -> Callable[[], dict[str, np.ndarray]]:
        """What gives the scores when it is asked; until then threads work, and the devices may.

        They are [B] under "score", their sum with weights, and under "score/NAME" what each function of a
        Python reward said.
        """
        fetch, pending = self.ground.devices.fetch, None
        if self.scorer is not None:
            said = self.ground.answers.texts(fetch(samples))
            pending = self.scorer.submit(prompts, said, **rewards.columns_of(columns))
        learned = self.score(params, samples) if self.score else None

        def end():
            total = np.zeros(len(prompts), np.float32)
            if learned is not None:
                total += np.float32(self.weight) * fetch(learned)
            if pending is None:
                return {"score": total}
            parts = {f"score/{name}": x for name, x in pending.parts().items()}
            return {"score": total + pending.result()} | parts

        return end
