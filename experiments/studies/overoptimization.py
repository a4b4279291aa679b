"""Over-optimization: what a policy gains in the eyes of its reward model, and what of it is true.

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

from rlhf_jax.bounds import Bound, Count, Settings
from rlhf_jax.devices import parallel
from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.pipeline.results import show, stands, write
from rlhf_jax.runs import run
from rlhf_jax.studies import curves, figures
from rlhf_jax.studies import lab as labs
from rlhf_jax.studies.frontier import LAMBDAS, frontier_of, frontier_run
from rlhf_jax.studies.lab import Gold, Lab, LabConfig, Seed, Size
from rlhf_jax.studies.learners import ON_POLICY, Method, on_policy
from rlhf_jax.studies.population import Job, Population, nested, opened, resolve, run_jobs
from rlhf_jax.studies.proxies import judge, learn_rewards
from rlhf_jax.tasks import reviews

TABLE = "over-optimization"
SHOWN = {  # of its columns, on the screen; the report has them all
    TABLE: ("gold", "reward model", "pairs", "policy", "gold turns at KL", "fall after it",
            "gold at the end", "regret at KL 2")
}  # fmt: skip


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the study."""

    _main = (
        "run",
        "seeds",
        "reward_seeds",
        "policy_seeds",
        "population",
        "devices",
        "golds",
        "pairs",
        "sizes",
        "trained_against",
    )

    run: str = ""
    """Run directory; empty: runs/EXPERIMENT/HASH-OF-CONFIG."""
    seeds: Annotated[int, Bound(ge=2)] = 3
    """Seeds of the preference data."""
    reward_seeds: Count = 1
    """Seeds of the reward model, for each seed of the preference data."""
    policy_seeds: Count = 1
    """Seeds of the policy, for each seed of the reward model."""
    population: Population = "auto"
    """Execution of the seeds: "vmap" (one program), "processes" (one per seed and core), or auto by the
    hardware."""
    devices: str = "auto"
    """Devices over which a program's seeds are divided: auto, device (the first one), pmap, or mesh
    (mesh:data=-1)."""
    golds: tuple[Gold, ...] = ("symbolic", "teacher")
    """Golds that label the comparisons: the grammar's own sentiment (symbolic), a frozen reward model
    (teacher), or both."""
    pairs: tuple[Annotated[int, Bound(ge=2)], ...] = (100, 1000, 4000)
    """Numbers of comparisons to train reward models on."""
    sizes: tuple[Size, ...] = ("100k",)
    """Sizes of the reward models, in parameters; with the teacher as gold, only sizes smaller than its own
    are trained."""
    trained_against: Size = "100k"
    """Size of the reward model that policies are trained against; best of n is reported for all sizes."""
    method: Method = Method("rloo", strength=0.0, iterations=80, batch_size=64)
    lab: LabConfig = LabConfig()

    def _conditions(self, at: str):
        for name in ("golds", "pairs", "sizes"):
            if not getattr(self, name):
                raise ValueError(f"{at}{name} = (): give one or more")
        parallel.check_name(self.devices, f"{at}devices")
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
        """A method on policy makes no passes; without its gold there is no teacher."""
        why = "golds lack teacher"
        teacher = {} if "teacher" in self.golds else {"lab.teacher": why, "lab.teacher_pairs": why}
        return teacher | {"method.epochs": f"{self.method.name} draws its own responses"}


configs = {
    "overoptimization": Config(),
    "overoptimization_full": Config(
        seeds=10, pairs=(100, 300, 1000, 3000, 10_000), sizes=("10k", "100k", "1M")
    ),
    "overoptimization_gpu": Config(
        seeds=32,
        pairs=(100, 300, 1000, 3000, 10_000),
        sizes=("1M", "3M", "10M"),
        trained_against="3M",
        lab=LabConfig(policy="1M", teacher="10M", pool_prompts=64, pool_draws=256),
    ),
}


# --- the small runs


def proxy_run(
    lab: Lab, kind: str, size: str, pairs: int, method: Method | None, seeds: Sequence[Seed]
) -> list[dict]:
    """A reward model of each seed, its best of n, and with a method the policy trained against it."""
    rewards, scores = learn_rewards(lab, size, kind, pairs, seeds)
    rows = judge(lab, kind, scores)
    if method is not None:
        trained = on_policy(lab, method, seeds, kind=kind, size=size, rewards=rewards)
        rows = [row | more for row, more in zip(rows, rl_of(trained), strict=True)]
    return rows


def gold_run(lab: Lab, kind: str, method: Method, seeds: Sequence[Seed]) -> list[dict]:
    """The control, trained on gold itself."""
    return rl_of(on_policy(lab, method, seeds, kind=kind))


def rl_of(trained) -> list[dict]:
    """The curves of each seed."""
    seeds = len(trained.curves["kl"])
    return [{"rl": {name: x[s] for name, x in trained.curves.items()}} for s in range(seeds)]


# --- the study


def main(cfg: Config, name: str):
    """Runs what is not yet in the run directory, and writes tables and pictures of it."""
    how, layout = resolve(cfg.population, cfg.devices, cfg.lab)
    folder = run.open_run(name, cfg, cfg.run, ignore=(*run.UNTELLING, "population"))
    again = f"python launch.py {name} --seeds {cfg.seeds + 2} (or any other setting)"
    if stands(folder):
        print("this run is finished")
        return show(folder, again, SHOWN)
    seeds = nested(cfg.seeds, cfg.reward_seeds, cfg.policy_seeds)
    width = lambda size: labs.SIZES[size].d_model
    cells = [
        (kind, size, pairs)
        for kind, size, pairs in itertools.product(cfg.golds, cfg.sizes, sorted(cfg.pairs)[::-1])
        if kind == "symbolic" or width(size) < width(cfg.lab.teacher)
    ]
    jobs = [
        Job(
            f"{kind}-{size}-{pairs}",
            proxy_run,
            (kind, size, pairs, cfg.method if size == cfg.trained_against else None),
        )
        for kind, size, pairs in sorted(cells, key=lambda cell: -width(cell[1]))
    ] + [Job(f"{kind}-gold", gold_run, (kind, cfg.method)) for kind in cfg.golds]
    opening = folder, cfg.lab, cfg.sizes, "teacher" in cfg.golds, layout
    lab = opened(opening)
    free = replace(cfg.method, batch_size=2 * cfg.method.batch_size)
    tops = [Job(f"{kind}-frontier", frontier_run, (kind, free)) for kind in cfg.golds]
    tops = run_jobs(opening, tops, seeds[:1], how)
    found = run_jobs(opening, jobs, seeds, how)

    shape = cfg.seeds, cfg.reward_seeds, cfg.policy_seeds
    frontiers = {kind: frontier_of(tops[f"{kind}-frontier"]) for kind in cfg.golds}
    of_law = [maths.frontier_of_law(*reviews.gold_law(a), LAMBDAS) for a in reviews.ASPECTS]
    grammar = maths.average(of_law)
    cells = sorted(cells, key=lambda cell: (cell[0], width(cell[1]), cell[2]))
    table = [
        row
        for kind, size, pairs in cells
        for row in curves.rows_of(
            found[f"{kind}-{size}-{pairs}"], frontiers[kind], shape, (kind, size, pairs)
        )
    ] + [
        row
        for kind in cfg.golds
        for row in curves.rows_of(
            found[f"{kind}-gold"], frontiers[kind], shape, (kind, "gold itself", None)
        )
    ]
    results = {
        TABLE: table,
        "gold of the reference": {
            kind: float(labs.pool_gold(lab, kind).mean()) for kind in cfg.golds
        },
    }
    run.write_json(folder / "curves.json", {job.name: found[job.name] for job in jobs})
    panels = {
        kind: {way: curves.panel(found, cfg, kind, way) for way in curves.WAYS}
        for kind in cfg.golds
    }
    figures.overoptimization(folder / "overoptimization.png", panels, frontiers, grammar)
    if len(cfg.sizes) > 1:
        figures.by_size(folder / "sizes.png", table)
    write(folder, results)
    show(folder, again, SHOWN)
    print(f"pictures: {folder / 'overoptimization.png'}")
