"""RAFT: fine-tuning on the best of each prompt's draws, round by round (Dong et al., 2023).

    python launch.py raft

Takes a minute after the shared stages; --start-from RUN copies these from a run. Gold goes from -0.11 to
1.30 at a KL of 3.1 (seed 0).
"""

from dataclasses import dataclass, field

import jax
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer
from rlhf_jax.algorithms import best_of_n, rollout, sft
from rlhf_jax.algorithms.learner import Learner, policy_alone
from rlhf_jax.batches import Rollout
from rlhf_jax.bounds import Count, Settings, check_divides
from rlhf_jax.data.batching import batch_at
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora
from rlhf_jax.ops import kl
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import on_policy, people, results, stages
from rlhf_jax.pipeline.on_policy import OnPolicyConfig, RLConfig
from rlhf_jax.pipeline.prepare import Prepared, prepare


@dataclass(frozen=True)
class RAFTConfig(Settings):
    """Draws of a round, and the fine-tuning on the best of them."""

    _main = ("draws", "epochs")

    draws: Count = 8
    """Draws of each prompt; the policy is fine-tuned on the best one (8 to 32: Dong et al., 2023)."""
    epochs: Count = 1
    """Passes over the best draws."""
    batch_size: Count = 32
    """Best draws per gradient step."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory."""

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of the raft experiment."""

    raft: RAFTConfig = RAFTConfig()
    rl: RLConfig = field(
        default_factory=lambda: RLConfig(
            iterations=12, batch_size=1024, kl_coef=0.0, save_every=4, optimizer=OptimizerConfig(lr=1e-3)
        )
    )  # fmt: skip

    def _conditions(self, at: str):
        super()._conditions(at)
        on_policy.check_loop(self, at, "sft", "raft.draws", self.raft.draws)

    def _unread(self) -> dict[str, str]:
        return super()._unread() | on_policy.NO_CRITIC


config = Config()


def main(cfg: Config):
    """Runs whatever the run directory lacks, and prints the results."""
    run = prepare("raft", cfg, batch_sizes(cfg))
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    method = with_winners(run, reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)
    said = results.respond(run, params)
    facts = results.about_rewards(run, reward, pairs) | facts
    judges = results.Judges(reward, held_out_reward)
    results.conclude(run, "RAFT", reference, said, judges, facts=facts)


def batch_sizes(cfg: Config) -> dict[str, int]:
    """Numbers of rows that must divide over the devices."""
    return {"rl.batch_size": cfg.rl.batch_size} | stages.parts("raft", cfg.raft)


def steps_of(cfg: Config) -> int:
    """Gradient steps of a round; the last one of a pass may extend into the next."""
    winners = cfg.rl.batch_size // cfg.raft.draws
    return max(1, round(cfg.raft.epochs * winners / cfg.raft.batch_size))


def with_winners(run: Prepared, reference) -> on_policy.OnPolicy:
    """The learner: each rollout is fine-tuning on its best draws by the reward, less `rl.kl_coef` times the
    KL."""
    cfg, devices, steps = run.cfg, run.devices, steps_of(run.cfg)
    tx = optimizer.make(cfg.rl.optimizer, cfg.rl.iterations * steps)
    make = lambda policy_fn: sft.make_train_step(
        policy_fn, tx, microbatches=cfg.raft.microbatches, axis_name=devices.axis_name
    )
    step = devices.compile(
        lora.over_base(make, run.lm.policy_fn, cfg.lora),
        (P(), P(), P(DATA)),
        (P(), P()),
        donate=0,
    )

    def look(rolled: Rollout, kl_coef):
        """Values that rank the draws [B], and metrics."""
        ratio = kl.k1(rolled.logprobs, rolled.ref_logprobs)
        penalised = rolled.rewards - kl_coef * ratio  # zero where nothing was said
        return penalised.sum(axis=1), rollout.objective_metrics(
            rolled.samples, rolled.rewards, penalised, rolled.logprobs, rolled.ref_logprobs, kl_coef,
            axis_name=devices.axis_name,
        )  # fmt: skip

    look = devices.compile(look, (P(DATA), P()), (P(DATA), P()))

    def update(state, frozen, kl_coef, rolled: Rollout, rng):
        ranked_by, metrics = look(rolled, kl_coef)
        samples, ranked_by = devices.fetch((rolled.samples, ranked_by))
        winners = best_of_n.select(samples, ranked_by, cfg.raft.draws)
        first = int(jax.device_get(state.step))
        for i in range(first, first + steps):  # the order of a round goes on from the one before
            batch = batch_at(winners, cfg.raft.batch_size, cfg.seed, i, devices.take)
            state, learned = step(state, frozen, batch)
        return state, metrics | learned

    learner = Learner(
        area="sft",
        init=policy_alone,
        policy_of=lambda params: params,
        annotate=rollout.make_annotate(run.lm.at(cfg.sample.temperature).policy_fn, cfg.rollout),
        update=update,
        group=cfg.raft.draws,
    )
    annotate = devices.compile(learner.annotate, (P(), P(), P(DATA)), P(DATA))
    learner = learner._replace(annotate=annotate)
    base, trained = lora.split(jax.random.fold_in(run.key, 4), reference, cfg.lora)
    return on_policy.OnPolicy("raft", learner, base, trained, tx)
