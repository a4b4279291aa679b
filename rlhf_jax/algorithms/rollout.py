"""Annotation of samples with log-probabilities, values and rewards, wherever the samples came from."""

from dataclasses import dataclass

import jax.numpy as jnp

from rlhf_jax.batches import PPORollout, Rollout, Samples
from rlhf_jax.bounds import NonNegative, Settings
from rlhf_jax.ops import kl
from rlhf_jax.ops.advantages import on_last_token, refuse_integers
from rlhf_jax.ops.reduce import normalise, psum


@dataclass(frozen=True)
class RolloutConfig(Settings):
    """Conversion of samples and scores into a rollout."""

    missing_eos_penalty: NonNegative = 1.0
    """Penalty subtracted from the score of a response that never ended, as in TRL (Huang et al., 2024, set
    that score to -1 instead)."""
    recompute_logprobs: bool | None = None
    """Replace the sampler's log-probabilities by those of the training forward pass. None: only in an
    experiment whose model has dtype bfloat16, where the two differ."""


def with_rewards(seen, scores, cfg: RolloutConfig):
    """The rollout `seen`, of either kind, with rewards from `scores`: floats, one per response [B] or per
    token [B, T].

    A score of a response goes to the policy's last token, less the penalty where the response never ended.
    Raises TypeError for integers.
    """
    samples, scores = seen.samples, jnp.asarray(scores)
    refuse_integers(scores)
    if scores.ndim == 1:
        scores = jnp.where(samples.ended, scores, scores - cfg.missing_eos_penalty)
        rewards = on_last_token(scores, samples.mask)
    else:
        rewards = jnp.where(samples.mask, scores.astype(jnp.float32), 0.0)
    return seen._replace(rewards=rewards)


def make_annotate(policy_fn, cfg: RolloutConfig):
    """`annotate(params, ref_params, samples) -> Rollout`, in float32, with rewards of zero.

    Annotation needs no scores, so a slow reward can run on host threads in the meantime; `with_rewards`
    adds its scores. `logprobs` are the learner's: those of the sampler, or, with `recompute_logprobs`,
    those of a forward pass, which bfloat16 and samples of another engine need. `samples.logprobs` are
    always the sampler's.
    """

    def annotate(params, ref_params, samples: Samples) -> Rollout:
        mask, inputs = samples.mask, (samples.tokens, samples.attention_mask)
        T = mask.shape[1]
        ref_logprobs, _ = policy_fn(ref_params, *inputs, last=T)
        logprobs = samples.logprobs
        if cfg.recompute_logprobs:
            logprobs, _ = policy_fn(params, *inputs, last=T)
        return Rollout(
            samples=samples,
            rewards=jnp.zeros(mask.shape),
            logprobs=jnp.where(mask, logprobs, 0.0),
            ref_logprobs=jnp.where(mask, ref_logprobs, 0.0),
        )

    return annotate


def make_annotate_with_values(policy_fn, actor_critic_fn, cfg: RolloutConfig):
    """`annotate(params, ref_params, samples) -> PPORollout`: as `make_annotate`, with the critic's values.

    `params` are the actor-critic's, `ref_params` the reference policy's.
    """

    def annotate(params, ref_params, samples: Samples) -> PPORollout:
        mask, inputs = samples.mask, (samples.tokens, samples.attention_mask)
        T = mask.shape[1]
        ref_logprobs, _ = policy_fn(ref_params, *inputs, last=T)
        logprobs, _, values = actor_critic_fn(params, *inputs, last=T)
        if not cfg.recompute_logprobs:
            logprobs = samples.logprobs
        return PPORollout(
            samples=samples,
            rewards=jnp.zeros(mask.shape),
            logprobs=jnp.where(mask, logprobs, 0.0),
            ref_logprobs=jnp.where(mask, ref_logprobs, 0.0),
            values=jnp.where(mask, values, 0.0),
        )

    return annotate


def objective_metrics(rollout: Rollout | PPORollout, penalised, kl_coef, *, axis_name=None):
    """Metrics `objective/*`: means over the rows of the global batch of sums over a row's tokens.

    `penalised` [B, T] are the rewards to maximise.
    """
    mask, logprobs, ref_logprobs = rollout.samples.mask, rollout.logprobs, rollout.ref_logprobs
    rows = normalise(jnp.ones(len(mask)), axis_name)
    mean_row = lambda x: psum(jnp.vdot(rows, jnp.sum(jnp.where(mask, x, 0.0), axis=1)), axis_name)
    return {
        "objective/score": mean_row(rollout.rewards),
        "objective/reward": mean_row(penalised),
        "objective/kl": mean_row(kl.k1(logprobs, ref_logprobs)),
        "objective/k3": mean_row(kl.k3(logprobs, ref_logprobs)),
        "objective/surprisal": mean_row(-rollout.samples.logprobs),
        "objective/length": mean_row(mask.astype(jnp.float32)),
        "objective/kl_coef": kl_coef,
    }
