"""Online DPO: the reward model chooses the better of two draws (Guo et al., 2024).

    python launch.py online_dpo

A minute beyond the shared stages; --start-from RUN takes those from a run. Gold rises from -0.39 to 1.39 at
a KL of 4.1 (seed 0).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import jax.numpy as jnp

from rlhf_jax import optimizer
from rlhf_jax.algorithms import preference, rollout
from rlhf_jax.algorithms.learner import Learner, policy_alone
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import PreferenceBatch, Rollout
from rlhf_jax.bounds import Bound, Count, Settings, check_divides
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import Prepared, prepare
from rlhf_jax.pipeline.rl_settings import GroupRLConfig, OnPolicyConfig, check_best, check_group


@dataclass(frozen=True)
class OnlineConfig(Settings):
    """Settings of the pairs."""

    _main = ("draws",)

    draws: Annotated[int, Bound(ge=2)] = 2
    """Draws of each prompt, the best and worst of which by reward are a pair (2: Guo et al., 2024)."""
    microbatches: Count = 1
    """Parts of a rollout's pairs, processed one after the other on each device to save memory."""


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of the online_dpo experiment."""

    preference: PreferenceConfig = PreferenceConfig()
    online: OnlineConfig = OnlineConfig()
    rl: GroupRLConfig = field(
        default_factory=lambda: GroupRLConfig(kl_coef=0.0, optimizer=OptimizerConfig(lr=1e-3))
    )

    def _conditions(self, at: str):
        super()._conditions(at)
        check_group(self, at, "online.draws", self.online.draws)
        check_best(self, at, "preference", preference.METRICS)
        pairs = self.rl.batch_size // self.online.draws
        whole = f"{at}rl.batch_size / {at}online.draws"
        check_divides(f"{at}online.microbatches", self.online.microbatches, whole, pairs)
        if self.rl.kl_coef or self.rl.kl_target:
            raise ValueError(
                f"{at}rl.kl_coef = {self.rl.kl_coef} and {at}rl.kl_target = {self.rl.kl_target} are not "
                f"read, for the loss of pairs has its own: leave them at 0 and set {at}preference.beta"
            )
        if self.sample.temperature != 1:
            raise ValueError(
                f"{at}sample.temperature = {self.sample.temperature}, and the loss of pairs is of the "
                "policy at 1: leave it there"
            )


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("online_dpo", cfg, batch_sizes(cfg))
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    method = with_pairs(run, reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)
    said = results.respond(run, params)
    judges = results.Judges(reward, held_out_reward)
    results.conclude(run, "online DPO", reference, said, judges, pairs=pairs, facts=facts)


def batch_sizes(cfg: Config) -> dict[str, int]:
    """Numbers of rows, by setting, that the devices must divide."""
    rows, name = cfg.rl.batch_size // cfg.online.draws, "rl.batch_size / online.draws"
    return {name: rows, f"{name} / online.microbatches": rows // cfg.online.microbatches}


def with_pairs(run: Prepared, reference) -> on_policy.OnPolicy:
    """Online DPO: each update is one gradient step on the best and the worst of every prompt's draws."""
    cfg, devices = run.cfg, run.devices
    tx, k = optimizer.make(cfg.rl.optimizer, cfg.rl.iterations), cfg.online.draws

    def make(policy_fn) -> Learner:
        step = preference.make_train_step(
            policy_fn, tx, cfg.preference,
            microbatches=cfg.online.microbatches, axis_name=devices.axis_name,
        )  # fmt: skip
        return Learner(
            area="preference",
            init=policy_alone,
            policy_of=lambda params: params,
            annotate=rollout.make_annotate(policy_fn, cfg.rollout),
            update=partial(update, step),
            group=k,
        )

    def update(step, state, frozen, kl_coef, rolled: Rollout, rng):
        samples, of_row = rolled.samples, lambda x: jnp.sum(x, axis=1)  # zero after the end
        scores, reference = of_row(rolled.rewards), of_row(rolled.ref_logprobs).reshape(-1, k)
        pairs = preference.pick_pairs(samples, scores, k)
        picked = lambda which: jnp.take_along_axis(
            reference, which(scores.reshape(-1, k), axis=1, keepdims=True), axis=1
        )[:, 0]
        batch = PreferenceBatch(pairs, picked(jnp.argmax), picked(jnp.argmin))
        state, metrics = step(state, frozen, batch)
        return state, metrics | rollout.objective_metrics(
            rolled, rolled.rewards, kl_coef, axis_name=devices.axis_name
        )

    return learners.on_devices(run, "online_dpo", make, run.lm.policy_fn, tx, reference)
