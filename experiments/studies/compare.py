"""PPO, RLOO, GRPO, DPO, best of n and SFT on the same data: gold at equal KL.

    python launch.py compare

Every method gets the comparisons of a data seed; those that need a reward model get the one that learned from
them, and on-policy methods the same number of samples. Each method has the same small grid to tune, two
learning rates times three strengths of what holds it to the reference; the learning rate is chosen by gold at
the matched KL on seeds of its own, which the result does not use. It prints gold at matched KL with
intervals that bootstrap over nested seeds, and the regret to the frontier, and draws gold against KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import jax
import numpy as np

from rlhf_jax.bounds import Bound, Count, NonNegative, Positive, Settings
from rlhf_jax.devices import parallel
from rlhf_jax.evaluation import overoptimization as maths
from rlhf_jax.evaluation.nested_seeds import nested_bootstrap
from rlhf_jax.models import networks
from rlhf_jax.pipeline.results import show, stands, write
from rlhf_jax.runs import checkpoint, run
from rlhf_jax.studies import figures
from rlhf_jax.studies import lab as labs
from rlhf_jax.studies.frontier import frontier_of, frontier_run
from rlhf_jax.studies.lab import Lab, LabConfig, Seed
from rlhf_jax.studies.learners import (
    GROUP,
    METHODS,
    ON_POLICY,
    Method,
    MethodName,
    examine,
    from_comparisons,
    on_policy,
)
from rlhf_jax.studies.population import Job, Population, nested, opened, resolve, run_jobs
from rlhf_jax.studies.proxies import judge, learn_rewards

TABLE = "at matched KL"


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the study."""

    _main = (
        "run",
        "seeds",
        "tuning_seeds",
        "population",
        "devices",
        "methods",
        "pairs",
        "lrs",
        "kl_coefs",
        "betas",
        "passes",
        "iterations",
        "batch_size",
        "matched",
    )

    run: str = ""
    """Run directory; empty: runs/compare/HASH-OF-CONFIG."""
    seeds: Annotated[int, Bound(ge=2)] = 3
    """Seeds of the result; each has its own preference data, reward model and policies."""
    tuning_seeds: Count = 1
    """Extra seeds on which the learning rates are chosen."""
    population: Population = "auto"
    """Execution of the seeds: "vmap" (one program), "processes" (one per seed and core), or auto by the
    hardware."""
    devices: str = "auto"
    """Devices over which a program's seeds are divided: auto, device (the first one), pmap, or mesh
    (mesh:data=-1)."""
    methods: tuple[MethodName, ...] = METHODS
    """Methods to compare; best of n is always included, since it needs no training."""
    pairs: Annotated[int, Bound(ge=2)] = 4000
    """Comparisons of each data seed."""
    lrs: tuple[Positive, ...] = (3e-4, 1e-3)
    """Learning rates to choose from."""
    kl_coefs: tuple[NonNegative, ...] = (0.3, 0.1, 0.03)
    """KL coefficients of PPO, RLOO and GRPO; scores of reward models are scaled to standard deviation 1."""
    betas: tuple[Positive, ...] = (0.3, 0.1, 0.03)
    """Betas of DPO."""
    passes: tuple[Positive, ...] = (1.0, 3.0, 9.0)
    """Passes of SFT over the chosen responses."""
    iterations: Count = 60
    """Rollouts of each on-policy method."""
    batch_size: Count = 64
    """Responses per rollout."""
    matched: tuple[Positive, ...] = (1.0, 2.0, 3.0)
    """KLs at which methods are compared, in nats per response; the middle one selects the learning rate."""
    lab: LabConfig = LabConfig()

    def _conditions(self, at: str):
        for name in ("methods", "lrs", "kl_coefs", "betas", "passes", "matched"):
            if not getattr(self, name):
                raise ValueError(f"{at}{name} = (): give one or more")
        parallel.check_name(self.devices, f"{at}devices")
        drawn = [
            *(GROUP.get(name, 1) for name in self.methods),
            2,
        ]  # 2: of twice as many, the frontier's
        if self.batch_size % max(drawn):
            raise ValueError(
                f"{at}batch_size = {self.batch_size}: draws of one prompt stand together, so it must be a "
                f"multiple of {max(drawn)}"
            )

    def _unread(self) -> dict[str, str]:
        """Neither a teacher is trained, nor the strengths of methods that are left out."""
        names = {"dpo": "betas", "sft": "passes"}
        missing = {
            x: f"methods lack {name}" for name, x in names.items() if name not in self.methods
        }
        if not set(ON_POLICY) & set(self.methods):
            missing["kl_coefs"] = f"methods lack {', '.join(ON_POLICY)}"
        why = "people judge by the grammar here"
        return missing | {"lab.teacher": why, "lab.teacher_pairs": why}


config = Config()


# --- the small runs


def reward_run(lab: Lab, pairs: int, seeds: Sequence[Seed]) -> list[dict]:
    """The reward model of each seed, kept in the run directory, and its best of n."""
    size = lab.cfg.policy
    params, scores = learn_rewards(lab, size, "symbolic", pairs, seeds)
    for s, seed in enumerate(seeds):
        checkpoint.save(reward_place(lab, seed), 1, labs.nth(params, s))
    return judge(lab, "symbolic", scores)


def reward_place(lab: Lab, seed: Seed):
    """Where a seed's reward model stands."""
    return lab.folder / "rewards" / "-".join(map(str, seed))


def method_run(lab: Lab, method: Method, pairs: int, seeds: Sequence[Seed]) -> list[dict]:
    """KL and gold on held-out prompts of each seed's policy."""
    size = lab.cfg.policy
    if method.name in ON_POLICY:
        like = networks.reward_model(lab.lms[size]).init(jax.random.key(0), lab.trunks[size])
        rewards = labs.stack(
            [checkpoint.restore(reward_place(lab, seed), 1, jax.device_get(like)) for seed in seeds]
        )
        trained = on_policy(lab, method, seeds, kind="symbolic", size=size, rewards=rewards)
    else:
        trained = from_comparisons(lab, method, seeds, kind="symbolic", pairs=pairs)
    _, golds, ratio = examine(lab, trained.params, seeds, kind="symbolic")
    return [
        {"kl": float(r.mean()), "gold": float(g.mean())} for r, g in zip(ratio, golds, strict=True)
    ]


# --- the study


def grid(cfg: Config, name: MethodName, lr: float) -> list[Method]:
    """One method at each of its strengths."""
    strengths = {"dpo": cfg.betas, "sft": tuple(1 / x for x in cfg.passes)}.get(name, cfg.kl_coefs)
    batch_size = cfg.batch_size if name in ON_POLICY else cfg.lab.reward_batch
    method = Method(name, lr=lr, iterations=cfg.iterations, batch_size=batch_size)
    return [replace(method, strength=strength) for strength in strengths]


def jobs_of(cfg: Config, methods) -> list[Job]:
    """A job for each setting."""
    return [Job(f"{m.name}-{m.lr:g}-{m.strength:.3g}", method_run, (m, cfg.pairs)) for m in methods]


def gold_at(points: Sequence[dict], start: float, kl: float) -> float:
    """Gold at a KL, between the runs of one method and seed; the reference stands at 0; NaN beyond them."""
    x, y = np.array([(0.0, start), *[(p["kl"], p["gold"]) for p in points]]).T
    order = np.argsort(x)
    return float(np.interp(np.sqrt(kl), np.sqrt(np.maximum(x[order], 0)), y[order], right=np.nan))


def main(cfg: Config):
    """Runs what is not yet in the run directory, and writes tables and a picture of it."""
    how, layout = resolve(cfg.population, cfg.devices, cfg.lab)
    folder = run.open_run("compare", cfg, cfg.run, ignore=(*run.UNTELLING, "population"))
    again = f"python launch.py compare --seeds {cfg.seeds + 3} (or any other setting)"
    middle = sorted(cfg.matched)[len(cfg.matched) // 2]
    columns = [f"gold at KL {kl:g}" for kl in cfg.matched]
    shown = {TABLE: ("method", *columns, f"regret at KL {middle:g}", "gold at largest KL")}
    if stands(folder):
        print("this run is finished")
        return show(folder, again, shown)
    opening = folder, cfg.lab, (), False, layout  # neither other sizes nor a teacher
    lab = opened(opening)
    seeds, tuning = nested(cfg.seeds), nested(cfg.tuning_seeds, first=cfg.seeds)
    start = float(labs.pool_gold(lab, "symbolic").mean())
    judged = run_jobs(opening, [Job("reward", reward_run, (cfg.pairs,))], seeds + tuning, how)
    judged = judged["reward"][: len(seeds)]
    free = Method("rloo", lr=1e-3, iterations=80, batch_size=2 * cfg.batch_size)
    control = [Job("frontier", frontier_run, ("symbolic", free))]
    frontier = frontier_of(run_jobs(opening, control, tuning[:1], how)["frontier"])

    # learning rates, on the tuning seeds
    trials = {
        (name, lr): jobs_of(cfg, grid(cfg, name, lr)) for name in cfg.methods for lr in cfg.lrs
    }
    tuned = run_jobs(opening, [job for jobs in trials.values() for job in jobs], tuning, how)

    def worth(trial):
        """Gold at the middle KL; a setting that never gets there is worth its largest KL's."""
        points = [[tuned[job.name][s] for job in trials[trial]] for s in range(len(tuning))]
        reach = [min(middle, max(p["kl"] for p in own)) for own in points]
        return np.mean([gold_at(p, start, r) for p, r in zip(points, reach, strict=True)])

    best = {name: max(cfg.lrs, key=lambda lr, n=name: worth((n, lr))) for name in cfg.methods}

    # the result, on seeds of its own
    chosen = {name: jobs_of(cfg, grid(cfg, name, best[name])) for name in cfg.methods}
    found = run_jobs(opening, [job for jobs in chosen.values() for job in jobs], seeds, how)
    runs = {  # name -> the runs of each seed
        name.upper(): [[found[job.name][s] for job in jobs] for s in range(len(seeds))]
        for name, jobs in chosen.items()
    }
    runs["best of n"] = [
        [{"kl": kl, "gold": gold} for kl, gold in zip(own["kl"][1:], own["gold"][1:], strict=True)]
        for own in judged
    ]
    samples = {name.upper(): cfg.iterations * cfg.batch_size for name in ON_POLICY}
    samples |= {"best of n": f"1 to {cfg.lab.pool_draws} an answer"}
    rows = []
    for name, points in runs.items():
        row = {
            "method": name,
            "learning rate": best.get(name.lower()),
            "samples": samples.get(name, 0),
        }
        for kl in cfg.matched:
            golds = np.array([gold_at(p, start, kl) for p in points])
            known = bool(np.isfinite(golds).all())
            shape = (-1, 1, 1)  # data, reward model, policy: one of each in the one above
            interval = lambda x: nested_bootstrap(np.reshape(x, shape))._asdict()  # noqa: B023
            row[f"gold at KL {kl:g}"] = interval(golds) if known else None
            lost = maths.regret(frontier, kl, golds)
            row[f"regret at KL {kl:g}"] = interval(lost) if np.isfinite(lost).all() else None
        row["largest KL"] = end = min(max(p["kl"] for p in own) for own in points)
        row["gold at largest KL"] = interval(np.array([gold_at(p, start, end) for p in points]))
        rows.append(row)
    accuracy = nested_bootstrap(np.array([own["accuracy"] for own in judged]))._asdict()
    results = {
        TABLE: rows,
        "gold of the reference": start,
        "reward accuracy, by gold": accuracy,
    }
    x = np.linspace(0, max(p["kl"] for own in runs.values() for q in own for p in q), 120)
    curves = {
        name: (x, np.array([[gold_at(p, start, kl) for kl in x] for p in own]))
        for name, own in runs.items()
    }
    dots = {
        name: np.array([(p["kl"], p["gold"]) for q in own for p in q]).T
        for name, own in runs.items()
    }
    figures.comparison(folder / "compare.png", curves, dots, frontier, cfg.matched)
    write(folder, results)
    show(folder, again, shown)
    print(f"picture: {folder / 'compare.png'}")
