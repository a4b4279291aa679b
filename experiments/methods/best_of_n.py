"""Best of n: no training, the draw that the reward model likes best (Nakano et al., 2021).

    python launch.py best_of_n
    python launch.py best_of_n --rl.reward FILE.py:FUNCTION       # the draw that a Python reward likes best

Half a minute beyond the shared stages; --start-from RUN takes those from a run.
"""

from dataclasses import dataclass
from typing import Annotated

import jax

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.bounds import Bound, Settings
from rlhf_jax.evaluation.evaluate import bootstrap_interval
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import inference, outcome
from rlhf_jax.pipeline.judge import PythonRewardConfig


@dataclass(frozen=True)
class BestOfNConfig(Settings):
    """How many draws there are."""

    _main = ("draws",)

    draws: Annotated[int, Bound(ge=2)] = 64
    """Draws for each response of the verdict (N)."""


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of the best_of_n experiment."""

    best: BestOfNConfig = BestOfNConfig()
    rl: PythonRewardConfig = PythonRewardConfig()

    def _unread(self) -> dict[str, str]:
        return super()._unread() | grounds.NO_ROLLOUT


config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    ground = grounds.lay("best_of_n", cfg, {})
    if ground is None:
        return
    N, prompts = cfg.best.draws, outcome.held_out_prompts(ground)
    asked = [prompt for prompt in prompts for _ in range(N)]
    key = jax.random.fold_in(ground.key, 3)
    pool = ground.answers.respond(ground.reference, asked, key)
    flat = outcome.rewarded(ground, pool)
    by = {"gold": outcome.golds(ground, asked, pool)} if outcome.has_gold(ground) else {}
    proxy, ns = flat.reshape(-1, N), [2**p for p in range(N.bit_length()) if 2**p < N] + [N]
    means = {
        name: best_of_n.estimates(proxy, values.reshape(-1, N), ns)
        for name, values in (by | {"proxy": flat}).items()
    }
    mean = lambda values: bootstrap_interval(values, prompts)._asdict()
    rows = [
        {"n": n, "kl": float(best_of_n.kl(n))} | {name: mean(x[:, i]) for name, x in means.items()}
        for i, n in enumerate(ns)
    ]

    chosen = best_of_n.best_rows(flat, N)
    samples = jax.tree.map(lambda x: x[chosen], pool.samples)
    said = inference.Answers([pool.texts[row] for row in chosen], samples)
    bound = float(best_of_n.kl(N))  # of the policy: it has no log-probabilities that would tell
    outcome.conclude(
        ground,
        f"the best of {N}",
        said,
        kl={"mean": bound, "low": bound, "high": bound},
        extra={"the KL is its analytic bound": "log n - (n - 1) / n", "best of n": rows},
    )
