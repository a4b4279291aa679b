"""Proximal policy optimisation on sampled responses (Schulman et al., 2017; Ziegler et al., 2019)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp

from rlhf_jax import epochs, train_step
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.rollout import RolloutConfig, make_annotate_with_values, objective_metrics
from rlhf_jax.batches import PPOBatch, PPORollout
from rlhf_jax.bounds import Count, NonNegative, Positive, Settings, Unit
from rlhf_jax.ops import kl, losses
from rlhf_jax.ops.advantages import gae
from rlhf_jax.ops.logprobs import ratio_of
from rlhf_jax.ops.reduce import normalise, psum, whiten

METRICS = (
    *(
        "explained_variance",
        "advantage_std",
        "loss",
        "policy_loss",
        "value_loss",
        "entropy",
        "approx_kl",
    ),
    *("policy_clipfrac", "value_clipfrac", "ratio", "steps"),
)
"""The metrics of an update, as `ppo/NAME`."""


@dataclass(frozen=True)
class PPOConfig(Settings):
    """Proximal policy optimisation; each default is the published one."""

    _main = ("epochs",)

    epochs: Count = 4
    """Passes over one rollout, each in a fresh order (4: Ziegler et al., 2019)."""
    minibatches: Count = 1
    """Gradient steps per pass, on equal parts of the global batch (1: Ziegler et al., 2019)."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory; the result does not change."""
    gamma: Unit = 1.0
    """Discount factor (1: Ziegler et al., 2019)."""
    lam: Unit = 0.95
    """Lambda of generalised advantage estimation (Schulman et al., 2016; 0.95: Ziegler et al., 2019)."""
    policy_clip: Positive = 0.2
    """Clip range of the probability ratio (0.2: Schulman et al., 2017)."""
    value_clip: Positive = 0.2
    """Clip range of a value around the rollout's value (Ziegler et al., 2019, in code)."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss (Ziegler et al., 2019, in code)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus (0: Ziegler et al., 2019)."""
    kl_in_reward: Literal["k1", "k2", "k3", "none"] = "k1"
    """KL estimator of the penalty in the per-token reward; only k1 has the optimum pi_ref exp(r / beta)."""
    kl_in_loss: Literal["none", "k1", "k2", "k3"] = "none"
    """KL estimator of the per-token penalty in the loss (GRPO: k3); the optimum differs from k1 in the
    reward."""
    whiten_advantages: bool = True
    """Normalise advantages to mean 0 and biased variance 1 over the global batch (Ziegler et al., 2019)."""
    whiten_rewards: bool = False
    """Scale rewards to variance 1 and keep their mean (off: Huang et al., 2024); this moves the optimum."""
    kl_stop: NonNegative = 0.0
    """Skip the remaining steps of a rollout once a minibatch's approximate KL exceeds this, in nats per
    token; 0: never."""

    def _conditions(self, at: str):
        if "none" not in (self.kl_in_reward, self.kl_in_loss):
            raise ValueError(
                f'{at}kl_in_loss = "{self.kl_in_loss}" beside {at}kl_in_reward = '
                f'"{self.kl_in_reward}" would count the penalty twice: set one of them to "none"'
            )


def weights_of(batch: PPOBatch):
    """Equal weights of all policy tokens."""
    return batch.samples.mask


def penalised_rewards(rollout: PPORollout, kl_coef, cfg: PPOConfig):
    """Rewards to maximise [B, T]: r_t - kl_coef times the estimator `kl_in_reward`."""
    if cfg.kl_in_reward == "none":
        return rollout.rewards
    estimate = kl.ESTIMATORS[cfg.kl_in_reward](rollout.logprobs, rollout.ref_logprobs)
    return rollout.rewards - kl_coef * jnp.where(rollout.samples.mask, estimate, 0.0)


def prepare(rollout: PPORollout, kl_coef, cfg: PPOConfig, *, axis_name=None):
    """(PPOBatch, metrics): penalised rewards through GAE, whitened over the global batch."""
    samples, mask = rollout.samples, rollout.samples.mask
    tokens = normalise(mask, axis_name)
    penalised = penalised_rewards(rollout, kl_coef, cfg)
    rewards = penalised
    if cfg.whiten_rewards:
        rewards = whiten(rewards, tokens, shift_mean=False, axis_name=axis_name)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=cfg.gamma, lam=cfg.lam)

    mean_token = lambda x: psum(jnp.vdot(tokens, x), axis_name)
    variance = lambda x: mean_token(jnp.square(x - mean_token(x)))
    metrics = objective_metrics(rollout, penalised, kl_coef, axis_name=axis_name) | {
        "ppo/advantage_std": jnp.sqrt(variance(advantages)),
        "ppo/explained_variance": 1.0
        - variance(returns - rollout.values) / jnp.maximum(variance(returns), 1e-8),
    }
    if cfg.whiten_advantages:
        advantages = whiten(advantages, tokens, axis_name=axis_name)
    batch = PPOBatch(
        samples=samples,
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs,
        values=rollout.values,
        advantages=advantages,
        returns=returns,
    )
    return batch, metrics


def loss(params, frozen, batch: PPOBatch, weights, *, actor_critic_fn, cfg: PPOConfig):
    """Mean over response tokens of the clipped surrogate and value_coef times the clipped value loss.

    Only `kl_in_loss` reads `frozen["kl_coef"]`.
    """
    samples, mask = batch.samples, batch.samples.mask
    new_logprobs, entropy, new_values = actor_critic_fn(
        params, samples.tokens, samples.attention_mask, last=mask.shape[1]
    )
    new_logprobs = jnp.where(mask, new_logprobs, batch.logprobs)  # ratio 1 where nothing was said
    policy_loss, policy_clipped = losses.clipped_surrogate(
        new_logprobs, batch.logprobs, batch.advantages, clip=cfg.policy_clip
    )
    value_loss, value_clipped = losses.clipped_value_loss(
        new_values, batch.values, batch.returns, clip=cfg.value_clip
    )
    mean = lambda x: jnp.vdot(weights, x.astype(jnp.float32))
    total = mean(policy_loss) + cfg.value_coef * mean(value_loss)
    if cfg.entropy_coef:
        total -= cfg.entropy_coef * mean(entropy)
    if cfg.kl_in_loss != "none":
        penalty = kl.ESTIMATORS[cfg.kl_in_loss](new_logprobs, batch.ref_logprobs)
        total += frozen["kl_coef"] * mean(jnp.where(mask, penalty, 0.0))
    d = new_logprobs - batch.logprobs
    return total, {
        "ppo/loss": total,
        "ppo/policy_loss": mean(policy_loss),
        "ppo/value_loss": mean(value_loss),
        "ppo/entropy": mean(entropy),
        "ppo/approx_kl": mean(0.5 * jnp.square(d)),
        "ppo/policy_clipfrac": mean(policy_clipped),
        "ppo/value_clipfrac": mean(value_clipped),
        "ppo/ratio": mean(ratio_of(d)),
    }


def make_update(actor_critic_fn, tx, cfg: PPOConfig, *, axis_name=None):
    """`update(state, frozen, kl_coef, rollout, rng) -> (state, metrics)`: all epochs over one rollout.

    Metrics are means over the steps taken (`ppo/steps` of them); `train/skipped` is a count. Raises
    ValueError when the minibatches do not divide the rollout.
    """
    step = train_step.make_train_step(
        partial(loss, actor_critic_fn=actor_critic_fn, cfg=cfg),
        weights_of,
        tx,
        microbatches=cfg.microbatches,
        axis_name=axis_name,
    )
    return epochs.make_update(
        step,
        partial(prepare, cfg=cfg, axis_name=axis_name),
        area="ppo",
        epochs=cfg.epochs,
        minibatches=cfg.minibatches,
        kl_stop=cfg.kl_stop,
        axis_name=axis_name,
    )


def make_learner(
    policy_fn, actor_critic, tx, cfg: PPOConfig, rollout_cfg: RolloutConfig, *, axis_name=None
) -> Learner:
    """PPO as a Learner; `actor_critic` has a function `fn` and `init(policy_params, reward_params=None)`.

    `policy_fn` reads the reference, and `actor_critic.fn` the parameters {"policy", "value"}.
    """
    return Learner(
        area="ppo",
        init=actor_critic.init,
        policy_of=lambda params: params["policy"],
        annotate=make_annotate_with_values(policy_fn, actor_critic.fn, rollout_cfg),
        update=make_update(actor_critic.fn, tx, cfg, axis_name=axis_name),
        group=1,
    )
