"""Rewards of the samples of a rollout: from a reward model, a Python function, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.bounds import NonNegative, Settings
from rlhf_jax.pipeline import generation, texts
from rlhf_jax.rewards import verifiers
from rlhf_jax.rewards.functions import columns_of
from rlhf_jax.rewards.scorer import Pending, Scorer, ScorerConfig


@dataclass(frozen=True)
class PythonRewardConfig(Settings):
    """Settings of a Python reward and its weight relative to the reward model."""

    _main = ("reward",)

    reward: str = ""
    """Python reward as FILE.py:FUNCTION; the function takes (prompts, responses) and returns one number per
    response. Further parameters name fields of the prompt rows. Built-in ones are verifiers:number, math,
    exact, chrf, rouge (they read the field "answer"), pattern ("pattern") and code ("tests"), and
    features:length, repetition, distinct, sentences and readability. Replaces the reward model unless
    `reward_model_weight` is set."""
    reward_model_weight: NonNegative = 0.0
    """Weight of the reward model beside a Python reward."""
    scorer: ScorerConfig = ScorerConfig()

    def _conditions(self, at: str):
        if self.reward_model_weight and not self.reward:
            raise ValueError(
                f"{at}reward_model_weight = {self.reward_model_weight} has no effect without a Python "
                f"reward: name one as {at}reward, or leave the weight at 0"
            )

    def _unread(self) -> dict[str, str]:
        return {} if self.reward else {"scorer": "no Python reward is named"}

    @property
    def model_weight(self) -> float:
        """Weight of the reward model in the maximised reward."""
        return self.reward_model_weight if self.reward else 1.0


class Reward(NamedTuple):
    """A reward model: `fn(params, tokens, attention_mask) -> scores [B]`, and its parameters."""

    fn: Callable
    params: Any


def needs(cfg) -> texts.Needs:
    """The files of a method that maximises a reward.

    With a reference, no corpus is needed. With a given reward model or a Python reward alone, no
    comparisons are needed; beside a given reward model, comparisons can train a held-out one. Ratings can
    stand in for comparisons.
    """
    needed, optional = ["prompts"], []
    (optional if cfg.reference else needed).append("corpus")
    if cfg.rl.model_weight:
        (optional if cfg.reward_model else needed).append("comparisons")
        optional.append("ratings")
    elif cfg.reference:
        optional.remove("corpus")  # nothing is trained on it, and no score is centred on it
    return texts.Needs(tuple(needed), tuple(optional), halves=True)


def unread(cfg) -> dict[str, str]:
    """The settings without effect beside a Python reward alone."""
    return {} if cfg.rl.model_weight else {"reward_model": "a Python reward alone is maximised"}


def python_reward(cfg, read: texts.Texts) -> Scorer | None:
    """The Python reward of an experiment, loaded once, and its columns compared with all rows of prompts.

    Raises ValueError where it cannot be called, or needs a column that the rows lack.
    """
    own = getattr(cfg, "rl", PythonRewardConfig())
    if not own.reward:
        return None
    found = Scorer(own.reward, own.scorer)
    rows = read.rows + read.rows_held_out
    asked = [row.prompt for row in rows], [row.columns for row in rows]
    found.check(*asked)
    verifiers.check_references(own.reward, *asked)
    return found


class RewardScorer:
    """The maximised reward: weight x reward model + Python reward."""

    def __init__(self, run, reward: Reward | None):
        self.run, self.weight = run, run.cfg.rl.model_weight
        self._score = generation.make_score(run.devices, *reward) if reward else None

    def score(self, rows: Sequence[texts.Row], samples) -> dict[str, Any]:
        """The scores of samples: "score", the weighted sum, on the devices, and "score/NAME" [B] on the host
        for each function of a Python reward.

        Nothing waits for those of a reward model alone; threads of the host call a Python reward.
        """
        devices, learned = self.run.devices, None
        if self._score and self.weight:
            learned = self._score(samples)
        if self.run.scorer is None:
            return {"score": learned}
        pending = submit(self.run, rows, self.run.generator.texts(devices.fetch(samples)))
        total = np.zeros(len(rows), np.float32)
        if learned is not None:
            total += np.float32(self.weight) * devices.fetch(learned)
        parts = {f"score/{name}": x for name, x in pending.parts().items()}
        return {"score": devices.put_batch(total + pending.result())} | parts


def submit(run, rows: Sequence[texts.Row], responses: Sequence[str]) -> Pending:
    """The Python reward's scores of responses to rows, in the making."""
    columns = columns_of([row.columns for row in rows])
    return run.scorer.submit([row.prompt for row in rows], responses, **columns)


def model_scores(run, reward: Reward, said: generation.Responses) -> np.ndarray:
    """Scores of responses under a reward model [N]."""
    return generation.score(run.devices, reward.fn, reward.params, said.samples)


def measures(run, reward: Reward | None) -> dict[str, Callable]:
    """Functions of (rows, responses) that return rewards [N], by name; the maximised one is first."""
    parts = {}
    weight = run.cfg.rl.model_weight if hasattr(run.cfg, "rl") else 1.0
    if run.scorer is not None:
        parts["Python reward"] = lambda rows, said: submit(run, rows, said.texts).result()
    if reward is not None:
        parts["score of the reward model"] = lambda rows, said: model_scores(run, reward, said)
    if len(parts) < 2:
        return parts
    python, model = parts.values()
    both = lambda rows, said: np.float32(weight) * model(rows, said) + python(rows, said)
    return {"reward, with both parts": both} | parts


def maximised(run, reward: Reward | None) -> Callable:
    """The function of (rows, responses) that returns the maximised reward [N]."""
    return next(iter(measures(run, reward).values()))
