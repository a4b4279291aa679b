"""Over-optimization: a policy's gain by its reward model, and how much of it is true.

    overoptimization        Over-optimization: 3 seeds, reward models of 100k parameters (11 minutes)
    overoptimization_full   Over-optimization: 10 seeds, reward models of 10k to 1M parameters (1 hour)
    overoptimization_gpu    Over-optimization on a GPU: 32 seeds as one program, 1M to 10M parameters

After Gao et al. (2022). Reward models learn from few or many comparisons of the reference's responses,
judged by one of two golds: the symbolic one of the grammar, and a frozen teacher reward model that is
larger than they are. Best of n (one pool of draws) and RLOO without a KL penalty then spend KL on them.
It draws gold and proxy against KL beside the frontier (the most gold that any policy of that KL can
have), fits the curves of Gao et al., tests them beyond the range they were fitted on, and says where gold
turns. Controls: with gold itself as the reward nothing turns; with few pairs gold turns
while the proxy rises.

Seeds are nested (preference data, reward model, policy) and intervals bootstrap over them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from rlhf_jax.bounds import Bound, Count
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.runs import disk
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies import curves, figures
from rlhf_jax.studies.context import Gold, Seed, SharedConfig, Size, StudyContext
from rlhf_jax.studies.curves import Cell
from rlhf_jax.studies.frontier import find_frontiers, grammar_frontier
from rlhf_jax.studies.learners import ON_POLICY, Method, on_policy
from rlhf_jax.studies.population import Job, nested_seeds
from rlhf_jax.studies.proxies import best_of_n_curves, learn_rewards
from rlhf_jax.studies.study import StudyConfig, begin

TABLE = "over-optimization"
COLUMNS = {
    TABLE: ("gold", "reward model", "pairs", "policy", "gold turns at KL", "fall after it",
            "gold at the end", "regret at KL 2")
}  # fmt: skip


@dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of the study."""

    _main = ("reward_seeds", "policy_seeds", "golds", "pairs", "sizes", "trained_against")

    reward_seeds: Count = 1
    """Seeds of the reward model, for each seed of the data."""
    policy_seeds: Count = 1
    """Seeds of the policy, for each seed of the reward model."""
    golds: tuple[Gold, ...] = ("symbolic", "teacher")
    """Golds that people judge by: the grammar's own sentiment, a frozen teacher, or both."""
    pairs: tuple[Annotated[int, Bound(ge=2)], ...] = (100, 1000, 4000)
    """Comparisons for a reward model."""
    sizes: tuple[Size, ...] = ("100k",)
    """Sizes of the reward models (10k, 100k, 400k, 1M, 3M, 10M); the teacher is gold to smaller ones only."""
    trained_against: Size = "100k"
    """Size of the reward models that policies are trained against; best of n is for all sizes."""
    method: Method = Method("rloo", strength=0.0, iterations=80, batch_size=64)

    def _conditions(self, at: str):
        super()._conditions(at)
        if self.trained_against not in self.sizes:
            raise ValueError(
                f'{at}trained_against = "{self.trained_against}" is none of {at}sizes = {self.sizes}: '
                "add it"
            )
        if self.method.name not in ON_POLICY:
            raise ValueError(
                f'{at}method.name = "{self.method.name}" draws nothing to follow: use '
                f"{' or '.join(ON_POLICY)}"
            )

    def _unread(self) -> dict[str, str]:
        missing = {"method.epochs": f"{self.method.name} draws its own responses"}
        if "teacher" not in self.golds:
            missing |= dict.fromkeys(
                ("shared.teacher", "shared.teacher_pairs"), "golds lack teacher"
            )
        return missing


FULL = (100, 300, 1000, 3000, 10_000)
configs = {
    "overoptimization": Config(),
    "overoptimization_full": Config(seeds=10, pairs=FULL, sizes=("10k", "100k", "1M")),
    "overoptimization_gpu": Config(
        seeds=32, pairs=FULL, sizes=("1M", "3M", "10M"), trained_against="3M",
        shared=SharedConfig(policy="1M", teacher="10M", pool_prompts=64, pool_draws=256),
    ),
}  # fmt: skip


def cells_of(cfg: Config) -> list[Cell]:
    """The settings of the study: reward models of each size and number of pairs, then gold itself."""
    width = lambda size: contexts.SIZES[size].d_model
    cells = [
        Cell(gold, size, pairs)
        for gold, size, pairs in itertools.product(cfg.golds, cfg.sizes, cfg.pairs)
        if gold == "symbolic" or width(size) < width(cfg.shared.teacher)
    ]
    cells.sort(key=lambda cell: (cell.gold, width(cell.size), cell.pairs))
    return cells + [Cell(gold, "gold itself", None) for gold in cfg.golds]


def small_run(
    context: StudyContext, cell: Cell, method: Method | None, seeds: Sequence[Seed]
) -> list[dict]:
    """A reward model of each seed and its best of n, and with a method the policy trained against it."""
    found, reward = [{} for _ in seeds], None
    if cell.pairs is not None:
        rewards, scores = learn_rewards(context, cell.size, cell.gold, cell.pairs, seeds)
        found = best_of_n_curves(context, cell.gold, scores)
        reward = Reward(contexts.reward_fn(context.lms[cell.size]), rewards)
    if method is not None:
        trained = on_policy(context, method, seeds, kind=cell.gold, reward=reward)
        for s, own in enumerate(found):
            own["rl"] = {name: x[s] for name, x in trained.curves.items()}
    return found


def main(cfg: Config, name: str):
    """Computes the missing runs of the study, and writes tables and pictures of all."""
    study = begin(name, cfg, COLUMNS, cfg.sizes, teacher="teacher" in cfg.golds)
    if study is None:
        return
    shape = cfg.seeds, cfg.reward_seeds, cfg.policy_seeds
    seeds, cells = nested_seeds(*shape), cells_of(cfg)

    # 1. the most gold that a policy of each KL can have
    doubled = replace(cfg.method, batch_size=2 * cfg.method.batch_size)
    frontiers = find_frontiers(study, cfg.golds, doubled, seeds[0])

    # 2. the small runs, large ones first
    trained = lambda cell: cell.pairs is None or cell.size == cfg.trained_against
    jobs = [Job(x.name, small_run, (x, cfg.method if trained(x) else None)) for x in cells[::-1]]
    found = study.run(jobs, seeds)
    runs = {cell: found[cell.name] for cell in cells}

    # 3. the results
    rows = [row for x in cells for row in curves.table_rows(runs[x], frontiers[x.gold], shape, x)]
    start = {gold: float(contexts.pool_gold(study.context, gold).mean()) for gold in cfg.golds}
    disk.write_json(study.folder / "curves.json", found)
    panels = curves.panels(runs, cfg.trained_against)
    picture = "overoptimization.png"
    figures.overoptimization(study.folder / picture, panels, frontiers, grammar_frontier())
    if len(cfg.sizes) > 1:
        figures.by_size(study.folder / "sizes.png", rows)
    study.conclude({TABLE: rows, "gold of the reference": start}, picture)
