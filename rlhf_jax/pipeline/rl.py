"""The host loop of on-policy methods: sample, score, annotate, update; PPO or a method without a critic."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer
from rlhf_jax.algorithms import policy_gradient, ppo, rollout
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.policy_gradient import PolicyGradientConfig
from rlhf_jax.bounds import Count, NonNegative, Positive, Seed, Whole, check_divides
from rlhf_jax.data.batching import rows_at
from rlhf_jax.devices import memory
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora, networks
from rlhf_jax.ops import kl
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import judge, outcome, stages
from rlhf_jax.pipeline.ground import Ground
from rlhf_jax.runs import loop


@dataclass(frozen=True)
class RLConfig(judge.PythonRewardConfig):
    """The loop round the algorithm."""

    _main = ("iterations", "batch_size", "kl_coef")

    iterations: Count = 100
    """Rollouts, each followed by an update."""
    seed: Seed | None = None
    """Decides what this loop draws, prompts and responses; None: the seed of all."""
    batch_size: Count = 128
    """Responses in a rollout."""
    value: Literal["separate", "shared"] = "separate"
    """PPO's critic: a network of its own, or "shared" with the policy's trunk."""
    value_from: Literal["policy", "reward"] = "policy"
    """What a separate critic starts from: policy (its head at zero), or reward (with its head)."""
    kl_coef: NonNegative = 0.1
    """Weight of the KL penalty; with a target, where it starts."""
    kl_target: NonNegative = 0.0
    """Nats a response that the coefficient adapts to (Ziegler et al., 2019: 6); 0 holds it fixed."""
    kl_horizon: Positive = 10_000.0
    """Samples over which it adapts."""
    refill: Whole = 0
    """Most further rounds of sampling in which groups whose draws all score alike are replaced by groups
    of the next prompts (DAPO's dynamic sampling, Yu et al., 2025)."""
    save_every: Count = 20
    """Iterations between checkpoints."""
    keep: Count = 2
    """Newest checkpoints that are kept."""
    best: str = "objective/reward"
    """Metric whose highest mean between two checkpoints picks one more that is kept, for `export --best`;
    empty: none."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))

    def _conditions(self, at: str):
        if self.kl_target and not self.kl_coef:
            raise ValueError(
                f"{at}kl_target = {self.kl_target} multiplies {at}kl_coef = 0, which stays there: "
                f"set {at}kl_coef above 0"
            )
        if self.kl_target and 0.2 * self.batch_size >= self.kl_horizon:
            raise ValueError(
                f"{at}kl_horizon = {self.kl_horizon} lets one rollout of {self.batch_size} take the "
                f"coefficient to 0 or below: it must be above {0.2 * self.batch_size:g}"
            )

    def _unread(self) -> dict[str, str]:
        missing = super()._unread()
        if not self.kl_target:
            missing["kl_horizon"] = "kl_target = 0 holds the coefficient fixed"
        if self.value == "shared":
            missing["value_from"] = "the critic shares the policy's trunk"
        return missing


NO_CRITIC = dict.fromkeys(("rl.value", "rl.value_from"), "there is no critic")
OBJECTIVE = (
    *(f"objective/{x}" for x in ("score", "reward", "kl", "k3", "surprisal", "length", "kl_coef")),
    *(f"objective/{x}" for x in ("held_out_score", "eos_rate", "gold", "sampler_gap")),
    *("train/grad_norm", "train/skipped"),
)
METRICS = {  # that an iteration gives beside these, by the area of the update's
    "ppo": "explained_variance advantage_std loss policy_loss value_loss entropy approx_kl policy_clipfrac "
    "value_clipfrac ratio steps",
    "pg": "advantage_std sampler_kl importance importance_capped flat_groups kl_loss loss policy_loss "
    "entropy approx_kl clipfrac ratio steps",
    "preference": "loss accuracy margin chosen_logprob rejected_logprob sft_loss",
    "sft": "loss",
}


def check_loop(cfg, at: str, area: str, draws: str, group: int):
    """Raises ValueError where settings of the loop do not fit each other, or those of the update.

    `area` is that of the update's metrics; `group` draws of a prompt stand together, set by `draws`.
    """
    check_divides(f"{at}{draws}", group, f"{at}rl.batch_size", cfg.rl.batch_size)
    if cfg.rl.refill and group == 1:
        raise ValueError(
            f"{at}rl.refill = {cfg.rl.refill} compares the draws of a prompt, and there is one: set it to 0"
        )
    known = [*OBJECTIVE, *(f"{area}/{name}" for name in METRICS[area].split())]
    of_reward = cfg.rl.reward and cfg.rl.best.startswith("score/")  # the names are in its file
    if cfg.rl.best and cfg.rl.best not in known and not of_reward:
        near = difflib.get_close_matches(cfg.rl.best, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'{at}rl.best = "{cfg.rl.best}" is no metric of {area}: did you mean {near}? (docs/metrics.md)'
        )


def check_update(cfg, at: str, area: str, algorithm):
    """The same for `algorithm`, the settings of PPO or of a policy gradient, which stand at `area`."""
    rows, name = cfg.rl.batch_size, f"{at}{area}"
    check_divides(f"{name}.minibatches", algorithm.minibatches, f"{at}rl.batch_size", rows)
    rows, whole = rows // algorithm.minibatches, f"{at}rl.batch_size / {name}.minibatches"
    check_divides(f"{name}.microbatches", algorithm.microbatches, whole, rows)
    check_loop(cfg, at, area, f"{area}.group", getattr(algorithm, "group", 1))


def no_kl(algorithm) -> dict[str, str]:
    """The settings of the KL penalty, where `algorithm` reads none."""
    if {algorithm.kl_in_reward, algorithm.kl_in_loss} != {"none"}:
        return {}
    return dict.fromkeys(("rl.kl_coef", "rl.kl_target"), "kl_in_reward and kl_in_loss are none")


class OnPolicy(NamedTuple):
    """A learner on the devices, and what it starts from."""

    stage: str
    learner: Learner  # whose `annotate` and `update` are compiled, the update over the base
    base: Any  # the parameters that are not trained, where adapters are,
    trained: Any  # and those that are
    tx: Any  # the optimizer


def batch_sizes(cfg, algorithm) -> dict[str, int]:
    """What must divide over the devices; `algorithm` are the settings of PPO or of a policy gradient."""
    rows, area = cfg.rl.batch_size, "ppo" if hasattr(algorithm, "lam") else "pg"
    part = f"rl.batch_size / {area}.minibatches"
    sizes = {"rl.batch_size": rows, part: rows // algorithm.minibatches}
    rows = sizes[part] // algorithm.microbatches
    return sizes | {f"{part} / {area}.microbatches": rows}


def make_tx(cfg, algorithm):
    """The optimizer of all updates of a run."""
    steps = cfg.rl.iterations * algorithm.epochs * algorithm.minibatches
    return optimizer.make(cfg.rl.optimizer, steps)


def split(ground: Ground, params):
    """(base, trained) of the parameters of a method."""
    return lora.split(jax.random.fold_in(ground.key, 4), params, ground.cfg.lora)


def compile_annotate(ground: Ground, learner: Learner) -> Callable:
    """The annotation of `learner` on the devices."""
    return ground.devices.compile(learner.annotate, (P(), P(), P(DATA)), P(DATA))


def on_devices(
    ground: Ground, stage: str, make: Callable, fn: Callable, tx, reward_params=None
) -> OnPolicy:
    """The learner `make(fn)`, compiled, for `fn` of the network whose parameters are trained.

    Updates see `fn` over the base. The critic starts from `reward_params` where they are given.
    """
    learner, adapters = make(fn), ground.cfg.lora
    base, trained = split(ground, learner.init(ground.reference, reward_params))
    update = lora.over_base(lambda fn: make(fn).update, fn, adapters)
    learner = learner._replace(
        annotate=compile_annotate(ground, learner),
        update=stages.compile_update(ground.devices, update),
    )
    return OnPolicy(stage=stage, learner=learner, base=base, trained=trained, tx=tx)


def with_ppo(ground: Ground) -> OnPolicy:
    """PPO, with the critic that `rl.value` names."""
    cfg, tx = ground.cfg, make_tx(ground.cfg, ground.cfg.ppo)
    lm = ground.lm.at(cfg.sample.temperature)
    critic = networks.actor_critic(lm, value=cfg.rl.value)
    make = lambda fn: ppo.make_learner(
        lm.policy_fn, critic._replace(fn=fn), tx, cfg.ppo, cfg.rollout,
        axis_name=ground.devices.axis_name,
    )  # fmt: skip
    start = lora.merge(ground.reward) if cfg.rl.value_from == "reward" else None
    return on_devices(ground, "ppo", make, critic.fn, tx, start)


def with_policy_gradient(ground: Ground, stage: str) -> OnPolicy:
    """REINFORCE, RLOO, GRPO and what descends from it: no critic."""
    cfg, tx = ground.cfg, make_tx(ground.cfg, ground.cfg.pg)
    make = lambda fn: policy_gradient.make_learner(
        fn, tx, cfg.pg, cfg.rollout, axis_name=ground.devices.axis_name
    )
    policy_fn = ground.lm.at(cfg.sample.temperature).policy_fn
    return on_devices(ground, stage, make, policy_fn, tx)


def train(ground: Ground, algorithm: OnPolicy):
    """(parameters, KL coefficient) after all iterations. Metrics and checkpoints go to the run directory."""
    cfg, rl, devices, world = ground.cfg, ground.cfg.rl, ground.devices, ground.world
    of_samples = lambda fn: fn and (lambda params, x: fn(params, x.tokens, x.attention_mask))
    judge_fn = of_samples(networks.reward_model(ground.lm).fn)
    held_out = devices.compile(judge_fn, (P(), P(DATA)), P(DATA))
    scorer = judge.Judge(ground, of_samples(ground.reward_fn))
    learner, seed = algorithm.learner, cfg.seed if rl.seed is None else rl.seed
    root, group = jax.random.key(seed), learner.group
    sample = memory.told("rollout", ground.answers.sample, "a smaller batch or --sample.slots 32")
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=cfg.rollout), (P(DATA), P(DATA)), P(DATA)
    )
    base, reference, reward_params, judge_params = devices.share(
        (algorithm.base, ground.reference, ground.reward, ground.judge)
    )

    def draw(policy, drawn, key):
        """The rows of prompts after the first `drawn` batches, `group` responses to each, their scores."""
        rows = np.repeat(rows_at(len(world.prompts), rl.batch_size // group, seed, drawn), group)
        batch = jax.tree.map(lambda x: x[rows], ground.prompts)
        batch = batch._replace(draw=np.arange(rl.batch_size, dtype=np.int32))  # a prompt may recur
        samples = sample(policy, devices.put_batch(batch), key)
        asked, columns = ([texts[r] for r in rows] for texts in (world.prompts, world.columns))
        return rows, samples, scorer.begin(reward_params, asked, columns, samples)

    def refilled(policy, drawn, key, first):
        """A batch whose groups without signal were replaced by later ones, in at most `rl.refill` rounds."""
        parts = [first]
        for extra in range(1, rl.refill + 1):
            scores = np.concatenate([found["score"] for _, _, found in parts])
            signal = np.ptp(scores.reshape(-1, group), axis=1) > 0
            if signal.sum() * group >= rl.batch_size:
                break
            rows, samples, end = draw(policy, drawn + extra, jax.random.fold_in(key, 1 + extra))
            parts.append((rows, devices.fetch(samples), end()))
        rows, samples, found = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        flat = np.ptp(found["score"].reshape(-1, group), axis=1) == 0
        groups = np.argsort(flat, kind="stable")[: rl.batch_size // group]
        kept = (groups[:, None] * group + np.arange(group)).ravel()
        batch = jax.tree.map(lambda x: x[kept], (rows, samples, found))
        return (*batch, drawn + len(parts))

    def iteration(carry, i):
        state, kl_coef, drawn = carry["state"], carry["kl_coef"], int(carry["drawn"])
        params, key = lora.join(base, state.params, cfg.lora), jax.random.fold_in(root, i)
        policy = learner.policy_of(params)
        rows, samples, end = draw(policy, drawn, key)
        if rl.refill:
            first = rows, devices.fetch(samples), end()
            rows, said, found, drawn = refilled(policy, drawn, key, first)
            samples = devices.put_batch(said)
            seen = learner.annotate(params, reference, samples)
        else:
            seen = learner.annotate(params, reference, samples)
            said, found, drawn = devices.fetch(samples), end(), drawn + 1
        scores = devices.put_batch(found.pop("score"))
        rolled = with_rewards(seen, scores)
        state, metrics = learner.update(
            state, {"base": base}, kl_coef, rolled, jax.random.fold_in(key, 1)
        )
        if cfg.rollout.recompute_logprobs:
            gap = np.abs(devices.fetch(rolled.logprobs) - said.logprobs).max()
            metrics |= {"objective/sampler_gap": gap}
        metrics |= {"objective/eos_rate": np.float32(said.ended.mean())}
        metrics |= {name: x.mean() for name, x in found.items()}
        if ground.judge is not None:
            judged = devices.fetch(held_out(judge_params, samples)).mean()
            metrics |= {"objective/held_out_score": judged, "objective/gold": judged}
        if world.gold:
            texts, prompts = ground.answers.texts(said), [world.prompts[row] for row in rows]
            metrics |= {"objective/gold": world.gold(prompts, texts).mean()}
        if rl.kl_target:
            kl_coef = kl.adapt(
                kl_coef, metrics["objective/kl"],
                samples=rl.batch_size, target=rl.kl_target, horizon=rl.kl_horizon,
            )  # fmt: skip
        return {"state": state, "kl_coef": kl_coef, "drawn": np.int32(drawn)}, metrics

    carry = {
        "state": stages.begun(devices, algorithm.trained, algorithm.tx),
        "kl_coef": devices.put(jnp.float32(rl.kl_coef)),
        "drawn": np.int32(0),  # batches of prompts that were sampled
    }
    carry = loop.iterate(
        ground.folder, algorithm.stage, carry, iteration,
        iterations=rl.iterations, save_every=rl.save_every, keep=rl.keep, best=rl.best, wandb=cfg.wandb,
    )  # fmt: skip
    trained, kl_coef = devices.host((carry["state"].params, carry["kl_coef"]))
    return lora.join(algorithm.base, trained, cfg.lora), kl_coef


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of a policy gradient without a critic."""

    pg: PolicyGradientConfig = policy_gradient.RLOO
    rl: RLConfig = RLConfig()

    def _conditions(self, at: str):
        super()._conditions(at)
        check_update(self, at, "pg", self.pg)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | NO_CRITIC | no_kl(self.pg)


def main(name: str, cfg: Config):
    """Runs the experiment `name`: what is not yet in the run directory."""
    ground = grounds.lay(name, cfg, batch_sizes(cfg, cfg.pg))
    if ground is None:
        return
    params, _ = train(ground, with_policy_gradient(ground, name))
    outcome.conclude(ground, name.upper(), outcome.after(ground, params))
