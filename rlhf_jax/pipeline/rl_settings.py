"""Settings of on-policy methods, and the refusal of those that do not fit each other."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf_jax.algorithms import policy_gradient, ppo
from rlhf_jax.algorithms.policy_gradient import PolicyGradientConfig
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.bounds import Count, NonNegative, Positive, Seed, Whole, batch_parts, check_divides
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import scoring, settings, texts


@dataclass(frozen=True)
class RLConfig(scoring.PythonRewardConfig):
    """The loop of sampling, scoring and updating."""

    _main = ("iterations", "batch_size", "kl_coef")
    _incidental = ("keep", "best")
    _length = ("iterations",)
    refill: ClassVar[int] = 0  # a setting of methods that compare several responses

    iterations: Count = 100
    """Number of rollouts, each followed by an update."""
    seed: Seed | None = None
    """Seed of the prompts and responses drawn in this loop; None: the run's seed."""
    batch_size: Count = 128
    """Responses per rollout."""
    kl_coef: NonNegative = 0.1
    """Weight of the KL penalty; its initial value where `kl_target` is set."""
    kl_target: NonNegative = 0.0
    """Target KL of the adaptive coefficient, in nats per response (6: Ziegler et al., 2019); 0: fixed
    coefficient."""
    kl_horizon: Positive = 10_000.0
    """Horizon of the adaptive KL coefficient, in samples."""
    save_every: Count = 20
    """Iterations between checkpoints."""
    keep: Count = 2
    """Number of latest checkpoints to keep."""
    best: str = "objective/reward"
    """Metric whose highest mean between two checkpoints selects one more checkpoint to keep, for `export
    --best`; empty: none."""
    eval_every: Whole = 10
    """Iterations between evaluations on fixed held-out prompts, whose metrics are eval/NAME and whose first
    responses are in training_samples.jsonl; 0: none."""
    patience: Whole = 0
    """Evaluations without a new highest held-out reward before training stops, at the next checkpoint; the
    parameters with the highest are kept. The held-out reward is the score of the held-out reward model, or
    the maximised reward where there is none. 0: no early stop."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))

    def _conditions(self, at: str):
        super()._conditions(at)
        if self.patience and not self.eval_every:
            raise ValueError(
                f"{at}patience = {self.patience} counts evaluations, and {at}eval_every = 0 asks for none: "
                f"set {at}eval_every to 1 or more"
            )
        if self.kl_target and not self.kl_coef:
            raise ValueError(
                f"{at}kl_target = {self.kl_target} cannot adapt {at}kl_coef = 0, which it multiplies: "
                f"set {at}kl_coef above 0"
            )
        if self.kl_target and 0.2 * self.batch_size >= self.kl_horizon:
            raise ValueError(
                f"{at}kl_horizon = {self.kl_horizon} lets one rollout of {self.batch_size} responses bring "
                f"the KL coefficient to 0 or below: it must be above {0.2 * self.batch_size:g}"
            )

    def _unread(self) -> dict[str, str]:
        missing = super()._unread()
        if not self.kl_target:
            missing["kl_horizon"] = "kl_target = 0 holds the coefficient fixed"
        return missing


@dataclass(frozen=True)
class CriticRLConfig(RLConfig):
    """The loop of sampling, scoring and updating, with a critic."""

    value: Literal["separate", "shared"] = "separate"
    """PPO's critic: a separate network, or a head on the policy's trunk (shared)."""
    value_from: Literal["policy", "reward"] = "policy"
    """Initial weights of a separate critic: the policy's with a zero head, or the reward model's with its
    head."""

    def _unread(self) -> dict[str, str]:
        missing = super()._unread()
        if self.value == "shared":
            missing["value_from"] = "the critic shares the policy's trunk"
        return missing


@dataclass(frozen=True)
class GroupRLConfig(RLConfig):
    """The loop of sampling, scoring and updating, with several responses per prompt."""

    refill: Whole = 0
    """Most extra sampling rounds that replace groups of identical scores by groups of the next prompts
    (dynamic sampling of DAPO: Yu et al., 2025)."""


OBJECTIVE = (
    *(f"objective/{x}" for x in ("score", "reward", "kl", "k3", "surprisal", "length", "kl_coef")),
    *(f"objective/{x}" for x in ("held_out_score", "eos_rate", "gold", "sampler_gap")),
    *("train/grad_norm", "train/skipped", "train/learning_rate"),
)


def check_best(cfg, at: str, area: str, metrics: Sequence[str]):
    """Raises ValueError where `rl.best` is neither a metric of the loop nor one of the update's,
    `area/NAME` for each name of `metrics`."""
    known = [*OBJECTIVE, *(f"{area}/{name}" for name in metrics)]
    of_reward = cfg.rl.reward and cfg.rl.best.startswith("score/")  # the names are in its file
    if cfg.rl.best and cfg.rl.best not in known and not of_reward:
        near = difflib.get_close_matches(cfg.rl.best, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f'{at}rl.best = "{cfg.rl.best}" is no metric of {area}: did you mean {near}? (docs/metrics.md)'
        )


def check_group(cfg, at: str, draws: str, group: int):
    """Raises ValueError where `group` responses per prompt, set by `draws`, do not fit the loop."""
    check_divides(f"{at}{draws}", group, f"{at}rl.batch_size", cfg.rl.batch_size)
    if cfg.rl.refill and group == 1:
        raise ValueError(
            f"{at}rl.refill = {cfg.rl.refill} needs several draws per prompt, and there is one: set it to 0"
        )


def no_kl(algorithm) -> dict[str, str]:
    """The unread settings of the KL penalty where `algorithm` has none, with the reason."""
    if {algorithm.kl_in_reward, algorithm.kl_in_loss} != {"none"}:
        return {}
    return dict.fromkeys(("rl.kl_coef", "rl.kl_target"), "kl_in_reward and kl_in_loss are none")


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
    rl: GroupRLConfig = GroupRLConfig()

    def _conditions(self, at: str):
        super()._conditions(at)
        batch_parts(f"{at}pg", self.pg, f"{at}rl.batch_size", self.rl.batch_size)
        check_group(self, at, "pg.group", self.pg.group)
        check_best(self, at, "pg", policy_gradient.METRICS)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | no_kl(self.pg)


@dataclass(frozen=True)
class PPORun(OnPolicyConfig):
    """Settings of PPO."""

    ppo: PPOConfig = PPOConfig(kl_stop=0.02)
    """A rollout ends once its update has moved far. Where a fault has just become likely, one step unlearns
    it; later steps would follow Adam's momentum although the ratio clip has removed the gradient. The
    largest `ppo/approx_kl` of a run was 0.02 over ten seeds; without a stop, at 1e-3, 0.66 was seen."""
    rl: CriticRLConfig = field(
        default_factory=lambda: CriticRLConfig(optimizer=OptimizerConfig(lr=5e-4))
    )
    """Half the learning rate of methods with one step per rollout, because PPO takes four."""

    def _conditions(self, at: str):
        super()._conditions(at)
        batch_parts(f"{at}ppo", self.ppo, f"{at}rl.batch_size", self.rl.batch_size)
        check_best(self, at, "ppo", ppo.METRICS)
        alone = self.rl.value_from == "reward" and not self.rl.model_weight
        if alone:
            raise ValueError(
                f'{at}rl.value_from = "reward" needs a reward model, and only a Python reward is maximised: '
                'use "policy"'
            )

    def _unread(self) -> dict[str, str]:
        return super()._unread() | no_kl(self.ppo)
