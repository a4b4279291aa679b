"""The loop of on-policy methods: sample, score, annotate, update."""

import difflib
from collections.abc import Callable, Sequence
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
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.batches import Samples
from rlhf_jax.bounds import Count, NonNegative, Positive, Seed, Whole, batch_parts, check_divides
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.devices import memory
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora, networks
from rlhf_jax.ops import kl
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import scoring, settings, stages, texts
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.runs import loop


@dataclass(frozen=True)
class RLConfig(scoring.PythonRewardConfig):
    """The loop round the algorithm."""

    _main = ("iterations", "batch_size", "kl_coef")

    iterations: Count = 100
    """Rollouts, each followed by an update."""
    seed: Seed | None = None
    """Seed of the prompts and responses that this loop draws; None: the run's seed."""
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
    """Horizon of the adaptive KL coefficient, in samples."""
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
        super()._conditions(at)
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
    if area not in METRICS:  # a method of a user's own, whose metrics the loop checks
        return
    known = [*OBJECTIVE, *(f"{area}/{name}" for name in METRICS[area].split())]
    of_reward = cfg.rl.reward and cfg.rl.best.startswith("score/")  # the names are in its file
    if cfg.rl.best and cfg.rl.best not in known and not of_reward:
        near = difflib.get_close_matches(cfg.rl.best, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'{at}rl.best = "{cfg.rl.best}" is no metric of {area}: did you mean {near}? (docs/metrics.md)'
        )


def check_update(cfg, at: str, area: str, algorithm):
    """`check_loop`, for `algorithm`, the settings of PPO or of a policy gradient, which stand at `area`."""
    batch_parts(f"{at}{area}", algorithm, f"{at}rl.batch_size", cfg.rl.batch_size)
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
    area = "ppo" if hasattr(algorithm, "lam") else "pg"
    return batch_parts(area, algorithm, "rl.batch_size", cfg.rl.batch_size)


def make_tx(cfg, algorithm):
    """The optimizer of all updates of a run."""
    steps = cfg.rl.iterations * algorithm.epochs * algorithm.minibatches
    return optimizer.make(cfg.rl.optimizer, steps)


def on_devices(
    run: Prepared, stage: str, make: Callable, fn: Callable, tx, params, reward_params=None
) -> OnPolicy:
    """The learner `make(fn)`, compiled, for `fn` of the network whose parameters are trained.

    Updates see `fn` over the base. The policy starts from `params`, and the critic from `reward_params` where
    they are given.
    """
    learner, adapters = make(fn), run.cfg.lora
    start = learner.init(params, reward_params)
    base, trained = lora.split(jax.random.fold_in(run.key, 4), start, adapters)
    update = lora.over_base(lambda fn: make(fn).update, fn, adapters)
    learner = learner._replace(
        annotate=run.devices.compile(learner.annotate, (P(), P(), P(DATA)), P(DATA)),
        update=stages.compile_update(run.devices, update),
    )
    return OnPolicy(stage=stage, learner=learner, base=base, trained=trained, tx=tx)


def with_ppo(run: Prepared, reference, reward: Reward | None) -> OnPolicy:
    """PPO, with the critic that `rl.value` names."""
    cfg, tx = run.cfg, make_tx(run.cfg, run.cfg.ppo)
    lm = run.lm.at(cfg.sample.temperature)
    critic = networks.actor_critic(lm, value=cfg.rl.value)
    make = lambda fn: ppo.make_learner(
        lm.policy_fn, critic._replace(fn=fn), tx, cfg.ppo, cfg.rollout,
        axis_name=run.devices.axis_name,
    )  # fmt: skip
    start = lora.merge(reward.params) if reward and cfg.rl.value_from == "reward" else None
    return on_devices(run, "ppo", make, critic.fn, tx, reference, start)


def with_policy_gradient(run: Prepared, reference) -> OnPolicy:
    """A policy gradient without a critic, under the name of the experiment."""
    cfg, tx = run.cfg, make_tx(run.cfg, run.cfg.pg)
    make = lambda fn: policy_gradient.make_learner(
        fn, tx, cfg.pg, cfg.rollout, axis_name=run.devices.axis_name
    )
    stage = "rloo" if run.name == "ensemble" else run.name
    return on_devices(run, stage, make, run.lm.at(cfg.sample.temperature).policy_fn, tx, reference)


class Drawn(NamedTuple):
    """Responses to a batch of prompts, `group` adjacent rows each."""

    rows: list[texts.Row]
    samples: Samples  # on the devices
    scores: Callable[[], dict[str, np.ndarray]]  # waits for the scores


def make_draw(run: Prepared, group: int, scorer: scoring.RewardScorer) -> Callable:
    """`draw(policy, drawn, key) -> Drawn`: responses to the prompts after the first `drawn` batches."""
    rl, devices, rows = run.cfg.rl, run.devices, run.texts.rows
    sample = memory.announce_memory(
        "rollout", run.generator.sample, "a smaller batch or --sample.slots 32"
    )
    prompts = encode_prompts(run.tokenizer, [row.prompt for row in rows], run.lengths[0])

    def draw(policy, drawn: int, key) -> Drawn:
        n = rl.batch_size // group
        which = np.repeat(rows_at(len(rows), n, seed_of(run.cfg), drawn), group)
        batch = jax.tree.map(lambda x: x[which], prompts)
        batch = batch._replace(draw=np.arange(rl.batch_size, dtype=np.int32))  # a prompt may recur
        samples = sample(policy, devices.put_batch(batch), key)
        asked = [rows[i] for i in which]
        return Drawn(asked, samples, scorer.submit(asked, samples))

    return draw


def dynamic_sampling(
    run: Prepared, draw: Callable, policy, drawn: int, key, group: int
) -> tuple[Drawn, int]:
    """A batch whose groups without signal are replaced by groups of later prompts, and batches drawn.

    A group has no signal where all its scores are alike. At most `rl.refill` further batches are drawn
    (DAPO's dynamic sampling, Yu et al., 2025).
    """
    rl, fetch, parts = run.cfg.rl, run.devices.fetch, []
    for extra in range(rl.refill + 1):
        own = key if extra == 0 else jax.random.fold_in(key, 1 + extra)
        part = draw(policy, drawn + extra, own)
        parts.append(
            (np.array(range(len(part.rows))), fetch(part.samples), part.scores(), part.rows)
        )
        scores = np.concatenate([scores["score"] for _, _, scores, _ in parts])
        flat = np.ptp(scores.reshape(-1, group), axis=1) == 0
        if (~flat).sum() * group >= rl.batch_size:
            break
    rows = [row for *_, rows in parts for row in rows]
    groups = np.argsort(flat, kind="stable")[: rl.batch_size // group]
    kept = (groups[:, None] * group + np.arange(group)).ravel()
    join = lambda *x: np.concatenate(x)[kept]
    samples = jax.tree.map(join, *(samples for _, samples, _, _ in parts))
    scores = jax.tree.map(join, *(scores for _, _, scores, _ in parts))
    batch = Drawn([rows[i] for i in kept], run.devices.put_batch(samples), lambda: scores)
    return batch, drawn + len(parts)


def seed_of(cfg) -> int:
    """The seed of the loop's draws."""
    return cfg.seed if cfg.rl.seed is None else cfg.rl.seed


def train(run: Prepared, method: OnPolicy, reference, reward, held_out_reward=None):
    """(parameters, KL coefficient) after all iterations; metrics and checkpoints go to the run directory.

    `reference` are the parameters of the SFT policy, `reward` the reward model that is maximised, or None
    beside a Python reward, and `held_out_reward` one that is only reported.
    """
    cfg, rl, devices, learner = run.cfg, run.cfg.rl, run.devices, method.learner
    draw = make_draw(run, learner.group, scoring.RewardScorer(run, reward))
    watch = make_watch(run, held_out_reward)
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=cfg.rollout), (P(DATA), P(DATA)), P(DATA)
    )
    root = jax.random.key(seed_of(cfg))
    base, reference = devices.share((method.base, reference))

    def iteration(carry, i):
        state, kl_coef, drawn = carry["state"], carry["kl_coef"], int(carry["drawn"])
        params, key = lora.join(base, state.params, cfg.lora), jax.random.fold_in(root, i)
        policy = learner.policy_of(params)
        if rl.refill:
            batch, drawn = dynamic_sampling(run, draw, policy, drawn, key, learner.group)
        else:
            batch, drawn = draw(policy, drawn, key), drawn + 1
        seen = learner.annotate(params, reference, batch.samples)  # while a Python reward is called
        scores = batch.scores()
        rolled = with_rewards(seen, devices.put_batch(scores.pop("score")))
        state, metrics = learner.update(
            state, {"base": base}, kl_coef, rolled, jax.random.fold_in(key, 1)
        )
        metrics |= {name: x.mean() for name, x in scores.items()}
        metrics |= watch(batch.rows, batch.samples, rolled)
        if rl.kl_target:
            kl_coef = kl.adapt(
                kl_coef, metrics["objective/kl"],
                samples=rl.batch_size, target=rl.kl_target, horizon=rl.kl_horizon,
            )  # fmt: skip
        return {"state": state, "kl_coef": kl_coef, "drawn": np.int32(drawn)}, metrics

    carry = {
        "state": stages.init_state_on(devices, method.trained, method.tx),
        "kl_coef": devices.put(jnp.float32(rl.kl_coef)),
        "drawn": np.int32(0),  # batches of prompts that were sampled
    }
    carry = loop.iterate(
        run.folder, method.stage, carry, iteration,
        iterations=rl.iterations, save_every=rl.save_every, keep=rl.keep, best=rl.best, wandb=cfg.wandb,
    )  # fmt: skip
    trained, kl_coef = devices.host((carry["state"].params, carry["kl_coef"]))
    return lora.join(method.base, trained, cfg.lora), kl_coef


def make_watch(run: Prepared, held_out_reward: Reward | None) -> Callable:
    """`watch(rows, samples, rolled) -> metrics` that are reported and never trained on."""
    devices, task = run.devices, run.texts.task
    if held_out_reward is not None:
        fn, held_out = held_out_reward.fn, devices.share(held_out_reward.params)
        score = lambda params, x: fn(params, x.tokens, x.attention_mask)
        score = devices.compile(score, (P(), P(DATA)), P(DATA))

    def watch(rows: Sequence[texts.Row], samples, rolled) -> dict[str, Any]:
        said = devices.fetch(samples)
        metrics = {"objective/eos_rate": np.float32(said.ended.mean())}
        if run.cfg.rollout.recompute_logprobs:
            gap = np.abs(devices.fetch(rolled.logprobs) - said.logprobs).max()
            metrics["objective/sampler_gap"] = gap
        if held_out_reward is not None:
            metrics["objective/held_out_score"] = devices.fetch(score(held_out, samples)).mean()
        if task is not None:
            plain = [texts.plain_row(row) for row in rows]
            metrics["objective/gold"] = task.gold(plain, run.generator.texts(said)).mean()
        return metrics

    return watch


@dataclass(frozen=True)
class OnPolicyConfig(settings.RunConfig):
    """Settings of a method that samples from the policy it trains."""

    rl: RLConfig = RLConfig()

    def needs(self) -> texts.Needs:
        """The files that the method learns from."""
        return scoring.needs(self)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | scoring.unread(self)


@dataclass(frozen=True)
class PolicyGradientRun(OnPolicyConfig):
    """Settings of a policy gradient without a critic."""

    pg: PolicyGradientConfig = policy_gradient.RLOO

    def _conditions(self, at: str):
        super()._conditions(at)
        check_update(self, at, "pg", self.pg)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | NO_CRITIC | no_kl(self.pg)


@dataclass(frozen=True)
class PPORun(OnPolicyConfig):
    """Settings of PPO."""

    ppo: PPOConfig = PPOConfig(kl_stop=0.02)
    """A rollout whose update has gone far ends there: where a fault has just become likely, one step unlearns
    it, and Adam's momentum would go on after the ratio's clip has taken the gradient away. The largest
    `ppo/approx_kl` of a run was 0.02 in two seeds; without a stop, at 1e-3, it was 0.17 and 0.66."""
    rl: RLConfig = field(default_factory=lambda: RLConfig(optimizer=OptimizerConfig(lr=5e-4)))
    """Half the rate of the methods that take one step a rollout, as PPO takes four."""

    def _conditions(self, at: str):
        super()._conditions(at)
        check_update(self, at, "ppo", self.ppo)
        alone = self.rl.value_from == "reward" and not self.rl.model_weight
        if alone:
            raise ValueError(
                f'{at}rl.value_from = "reward" needs a reward model, and a Python reward alone is maximised: '
                "use policy"
            )

    def _unread(self) -> dict[str, str]:
        return super()._unread() | no_kl(self.ppo)
