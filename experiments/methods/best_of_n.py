"""Best of n: no training, only the draw with the highest reward (Nakano et al., 2021).

    python launch.py best_of_n
    python launch.py best_of_n --rl.reward FILE.py:FUNCTION        # the highest score of a Python reward

Takes half a minute after the shared stages; --start-from RUN copies these from a run. Gold rises from
-0.39 to 1.57 at a KL of 3.2, that of n = 64 (seed 0).
"""

from dataclasses import dataclass
from typing import Annotated

import jax

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.bounds import Bound, Settings
from rlhf_jax.evaluation.intervals import bootstrap_interval
from rlhf_jax.pipeline import generation, keys, people, results, scoring, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.scoring import PythonRewardConfig


@dataclass(frozen=True)
class BestOfNConfig(Settings):
    """The number of draws."""

    _main = ("draws",)

    draws: Annotated[int, Bound(ge=2)] = 64
    """Draws for each response of the results (N)."""


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of the best_of_n experiment."""

    best: BestOfNConfig = BestOfNConfig()
    rl: PythonRewardConfig = PythonRewardConfig()

    def needs(self) -> texts.Needs:
        """The files that the method trains on."""
        return scoring.needs(self)

    def _unread(self) -> dict[str, str]:
        own = settings.NO_ROLLOUT | {"policy": "no policy is trained"}
        return super()._unread() | scoring.unread(self) | own


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("best_of_n", cfg, {})
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    judges = results.Judges(reward, held_out_reward)

    # N draws for each response of the results, and estimates for every n below
    N, rows = cfg.best.draws, results.held_out_rows(run)
    asked, prompts = [row for row in rows for _ in range(N)], [row.prompt for row in rows]
    key = keys.key_of(cfg.seed, "draws")
    pool = run.generator.generate(reference, asked, key)
    judged = judges.of(run)
    scores = next(iter(judged.values()))(asked, pool)
    by = next((x for x in (results.GOLD, results.HELD_OUT) if x in judged), None)
    values = ({by: judged[by](asked, pool)} if by else {}) | {"proxy": scores}
    proxy, ns = scores.reshape(-1, N), [2**p for p in range(N.bit_length()) if 2**p < N] + [N]
    means = {name: best_of_n.estimates(proxy, x.reshape(-1, N), ns) for name, x in values.items()}
    mean = lambda values: bootstrap_interval(values, prompts)._asdict()
    table = [
        {"n": n, "kl": float(best_of_n.kl(n))} | {name: mean(x[:, i]) for name, x in means.items()}
        for i, n in enumerate(ns)
    ]

    chosen = best_of_n.best_rows(scores, N)
    samples = jax.tree.map(lambda x: x[chosen], pool.samples)
    said = generation.Responses([pool.texts[row] for row in chosen], samples)
    bound = float(best_of_n.kl(N))  # of the policy, which has no log-probabilities
    results.conclude(
        run, f"the best of {N}", reference, said, judges,
        kl={"mean": bound, "low": bound, "high": bound},
        extra={"the KL is its analytic bound": "log n - (n - 1) / n", "best of n": table},
        pairs=pairs, facts=facts,
    )  # fmt: skip
