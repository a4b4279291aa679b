"""PPO, RLOO, GRPO, DPO, best of n and SFT on the same data: gold at equal KL.

    python launch.py compare

Every method gets the comparisons of a data seed; those that need a reward model get the one that learned from
them, and on-policy methods the same number of samples. Each method has the same small grid to tune, two
learning rates times three strengths of its tie to the reference; the learning rate is chosen by gold at
the matched KL on seeds of its own, which the result does not use. It prints gold at matched KL with
intervals that bootstrap over nested seeds, and the regret to the frontier, and draws gold against KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from rlhf_jax.bounds import Bound, Count, NonNegative, Positive
from rlhf_jax.evaluation.nested_seeds import nested_bootstrap
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies import learners, matched_kl
from rlhf_jax.studies.context import Seed, StudyContext
from rlhf_jax.studies.frontier import find_frontiers
from rlhf_jax.studies.learners import GROUP, ON_POLICY, Method, MethodName
from rlhf_jax.studies.population import Job, nested_seeds
from rlhf_jax.studies.proxies import best_of_n_curves, learn_rewards, load_rewards, save_rewards
from rlhf_jax.studies.study import Study, StudyConfig, begin


@dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of the study."""

    _main = ("tuning_seeds", "methods", "pairs", "lrs", "kl_coefs", "betas", "passes", "iterations")
    _main += ("batch_size", "matched")

    tuning_seeds: Count = 1
    """Further seeds, for choosing the learning rates."""
    methods: tuple[MethodName, ...] = learners.METHODS
    """Methods beside best of n, which needs no training."""
    pairs: Annotated[int, Bound(ge=2)] = 4000
    """Comparisons of each data seed."""
    lrs: tuple[Positive, ...] = (3e-4, 1e-3)
    """Learning rates to choose from."""
    kl_coefs: tuple[NonNegative, ...] = (0.3, 0.1, 0.03)
    """KL coefficients of PPO, RLOO and GRPO; scores of reward models are scaled to standard deviation 1."""
    betas: tuple[Positive, ...] = (0.3, 0.1, 0.03)
    """Betas of DPO."""
    passes: tuple[Positive, ...] = (1.0, 3.0, 9.0)
    """Strengths of SFT on the chosen responses: passes over them."""
    iterations: Count = 60
    """Rollouts of each on-policy method."""
    batch_size: Count = 64
    """Responses in each rollout."""
    matched: tuple[Positive, ...] = (1.0, 2.0, 3.0)
    """KLs at which methods are compared, nats a response; the middle one chooses the learning rate."""

    def _conditions(self, at: str):
        super()._conditions(at)
        group = max(2, *(GROUP.get(name, 1) for name in self.methods))  # 2: the frontier's RLOO
        if self.batch_size % group:
            why = "draws of one prompt stand together, so it must be a multiple of"
            raise ValueError(f"{at}batch_size = {self.batch_size}: {why} {group}")

    def _unread(self) -> dict[str, str]:
        judged = "people judge by the grammar here"
        missing = {"shared.teacher": judged, "shared.teacher_pairs": judged}
        readers = {"betas": ["dpo"], "passes": ["sft"], "kl_coefs": ON_POLICY}
        for setting, names in readers.items():
            if not set(names) & set(self.methods):
                missing[setting] = f"methods lack {', '.join(names)}"
        return missing

    def grid(self, name: MethodName, lr: float) -> list[Method]:
        """One method at each of its strengths."""
        others = {"dpo": self.betas, "sft": [1 / x for x in self.passes]}
        batch_size = self.batch_size if name in ON_POLICY else self.shared.reward_batch
        method = Method(name, lr=lr, iterations=self.iterations, batch_size=batch_size)
        return [replace(method, strength=x) for x in others.get(name, self.kl_coefs)]


config = Config()


def reward_run(context: StudyContext, pairs: int, seeds: Sequence[Seed]) -> list[dict]:
    """The reward model of each seed, saved for the methods, and its best of n."""
    params, scores = learn_rewards(context, context.cfg.policy, "symbolic", pairs, seeds)
    save_rewards(context, params, seeds)
    return best_of_n_curves(context, "symbolic", scores)


def method_run(context: StudyContext, method: Method, pairs: int, seeds) -> list[dict]:
    """KL and gold of each seed's policy on held-out prompts."""
    size, kind = context.cfg.policy, "symbolic"
    if method.name in ON_POLICY:
        fn = contexts.reward_fn(context.lms[size])
        reward = Reward(fn, load_rewards(context, size, seeds))
        trained = learners.on_policy(context, method, seeds, kind=kind, reward=reward)
    else:
        trained = learners.from_comparisons(context, method, seeds, kind=kind, pairs=pairs)
    _, golds, ratios = learners.sample_held_out(context, trained.params, seeds, kind=kind)
    means = zip(ratios.mean(axis=1), golds.mean(axis=1), strict=True)
    return [{"kl": float(kl), "gold": float(gold)} for kl, gold in means]


def run_grids(study: Study, pairs: int, grids: dict, seeds: Sequence[Seed]) -> dict:
    """KL and gold of each seed's policies, one for each method of a grid, by the grid's name."""
    label = lambda m: f"{m.name}-{m.lr:g}-{m.strength:.3g}"
    methods = [method for grid in grids.values() for method in grid]
    found = study.run([Job(label(m), method_run, (m, pairs)) for m in methods], seeds)
    points = lambda grid: [list(x) for x in zip(*(found[label(m)] for m in grid), strict=True)]
    return {name: points(grid) for name, grid in grids.items()}


def main(cfg: Config):
    """Computes the missing runs of the study, and writes tables and a picture of all."""
    middle = sorted(cfg.matched)[len(cfg.matched) // 2]
    columns = [*(f"gold at KL {kl:g}" for kl in cfg.matched), f"regret at KL {middle:g}"]
    study = begin("compare", cfg, {"at matched KL": ("method", *columns, "gold at largest KL")})
    if study is None:
        return
    seeds, tuning = nested_seeds(cfg.seeds), nested_seeds(cfg.tuning_seeds, first=cfg.seeds)

    # 1. reward models and their best of n, and the most gold that a policy of each KL can have
    rewards = study.run([Job("reward", reward_run, (cfg.pairs,))], seeds + tuning)["reward"]
    best_of_n = rewards[: len(seeds)]
    free = Method("rloo", lr=1e-3, iterations=80, batch_size=2 * cfg.batch_size)
    frontier = find_frontiers(study, ["symbolic"], free, tuning[0])["symbolic"]
    start = float(contexts.pool_gold(study.context, "symbolic").mean())

    # 2. the learning rate of each method, on the tuning seeds
    grids = {(name, lr): cfg.grid(name, lr) for name in cfg.methods for lr in cfg.lrs}
    tuned = run_grids(study, cfg.pairs, grids, tuning)
    gold = {key: matched_kl.mean_gold(runs, start, middle) for key, runs in tuned.items()}
    lrs = {name: max(cfg.lrs, key=lambda lr, name=name: gold[name, lr]) for name in cfg.methods}

    # 3. the methods, on seeds of their own
    grids = {name.upper(): cfg.grid(name, lrs[name]) for name in cfg.methods}
    runs = run_grids(study, cfg.pairs, grids, seeds)
    pairs = [zip(x["kl"][1:], x["gold"][1:], strict=True) for x in best_of_n]
    runs["best of n"] = [[{"kl": kl, "gold": gold} for kl, gold in x] for x in pairs]

    # 4. the results
    samples: dict = {name.upper(): cfg.iterations * cfg.batch_size for name in ON_POLICY}
    samples["best of n"] = f"1 to {cfg.shared.pool_draws} an answer"
    rows = []
    for name, points in runs.items():
        row = {"method": name, "learning rate": lrs.get(name.lower())}
        row |= {"samples": samples.get(name, 0)}
        rows.append(row | matched_kl.table_row(points, start, frontier, cfg.matched))
    accuracy = nested_bootstrap(np.array([own["accuracy"] for own in best_of_n]))._asdict()
    matched_kl.draw(study.folder / "compare.png", runs, start, frontier, cfg.matched)
    results = {"gold of the reference": start, "reward accuracy, by gold": accuracy}
    study.conclude({"at matched KL": rows} | results, "compare.png")
