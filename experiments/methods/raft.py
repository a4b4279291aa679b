"""RAFT: fine-tuning on the best of each prompt's draws, round by round (Dong et al., 2023).

    python launch.py raft

A minute beyond the shared stages; --start-from RUN takes those from a run. Gold rises from -0.39 to 1.03 at
a KL of 3.1 (seed 0).
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
from rlhf_jax.pipeline import keys, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import Prepared, prepare
from rlhf_jax.pipeline.rl_settings import GroupRLConfig, OnPolicyConfig, check_best, check_group


@dataclass(frozen=True)
class RAFTConfig(Settings):
    """Settings of a round: its draws, and the training on the best ones."""

    _main = ("draws", "epochs")

    draws: Count = 8
    """Draws of each prompt, the best of which is a winner to train on (8 to 32: Dong et al., 2023)."""
    epochs: Count = 1
    """Passes over the best draws."""
    batch_size: Count = 32
    """Winners in a gradient step."""
    microbatches: Count = 1
    """Parts of a batch, processed one after the other on each device to save memory."""

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of the raft experiment."""

    raft: RAFTConfig = RAFTConfig()
    rl: GroupRLConfig = field(
        default_factory=lambda: GroupRLConfig(
            iterations=12, batch_size=1024, kl_coef=0.0, save_every=4, optimizer=OptimizerConfig(lr=1e-3)
        )
    )  # fmt: skip

    def _conditions(self, at: str):
        super()._conditions(at)
        check_group(self, at, "raft.draws", self.raft.draws)
        check_best(self, at, "sft", ("loss",))


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("raft", cfg, batch_sizes(cfg))
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    method = with_winners(run, reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)
    said = results.respond(run, params)
    judges = results.Judges(reward, held_out_reward)
    results.conclude(run, "RAFT", reference, said, judges, pairs=pairs, facts=facts)


def batch_sizes(cfg: Config) -> dict[str, int]:
    """Numbers of rows, by setting, that the devices must divide."""
    return {"rl.batch_size": cfg.rl.batch_size} | stages.parts("raft", cfg.raft)


def steps_of(cfg: Config) -> int:
    """Gradient steps of a round; the last step of a pass may reach into the next pass."""
    winners = cfg.rl.batch_size // cfg.raft.draws
    return max(1, round(cfg.raft.epochs * winners / cfg.raft.batch_size))


def with_winners(run: Prepared, reference) -> on_policy.OnPolicy:
    """RAFT: each update is SFT on the winners of a rollout by reward less `rl.kl_coef` times the KL."""
    cfg, devices, steps = run.cfg, run.devices, steps_of(run.cfg)
    tx = optimizer.make(cfg.rl.optimizer, cfg.rl.iterations * steps)
    make = lambda policy_fn: sft.make_train_step(
        policy_fn, tx, microbatches=cfg.raft.microbatches, axis_name=devices.axis_name
    )
    step = devices.compile(
        lora.over_base(make, run.lm.policy_fn, cfg.lora), (P(), P(), P(DATA)), (P(), P()), donate=0
    )

    def rank(rolled: Rollout, kl_coef):
        """The numbers [B] that rank the draws, and metrics."""
        ratio = kl.k1(rolled.logprobs, rolled.ref_logprobs)
        penalised = rolled.rewards - kl_coef * ratio  # zero after the end of a response
        return penalised.sum(axis=1), rollout.objective_metrics(
            rolled, penalised, kl_coef, axis_name=devices.axis_name
        )

    rank = devices.compile(rank, (P(DATA), P()), (P(DATA), P()))

    def update(state, frozen, kl_coef, rolled: Rollout, rng):
        ranked_by, metrics = rank(rolled, kl_coef)
        samples, ranked_by = devices.fetch((rolled.samples, ranked_by))
        winners = best_of_n.select(samples, ranked_by, cfg.raft.draws)
        first = int(jax.device_get(state.step))
        for i in range(first, first + steps):  # a round continues the order of the round before
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
    base, trained = lora.split(keys.adapters(cfg.seed, "policy"), run.start(reference), cfg.lora)
    return on_policy.OnPolicy("raft", learner, base, trained, tx)
