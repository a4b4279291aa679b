"""What the reference, the critic and the reward thought of samples, wherever those came from."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from rlhf_jax.batches import PolicyRollout, Rollout, Samples
from rlhf_jax.bounds import NonNegative, Positive, Settings, Whole
from rlhf_jax.ops import kl
from rlhf_jax.ops.advantages import on_last_token, refuse_integers
from rlhf_jax.ops.padding import is_stop
from rlhf_jax.ops.reduce import normalise, psum


@dataclass(frozen=True)
class RolloutConfig(Settings):
    """How samples and scores become a rollout."""

    temperature: Positive = 1.0
    """What the samples were drawn at; divides the logits of policy, old policy and reference alike."""
    stop: tuple[Whole, ...] = ()
    """Tokens that end a response; experiments take them from `sample.stop`."""
    missing_eos_penalty: NonNegative = 1.0
    """Taken off the score of a response that never ended, as TRL does (Huang et al., 2024, make that score
    -1 instead)."""
    recompute_logprobs: bool | None = None
    """Replace the sampler's log-probabilities by the training forward pass's. None: not here, and in an
    experiment where the model multiplies in bfloat16, in which the two differ."""


def has_ended(samples: Samples, stop: tuple[int, ...]):
    """True [B] where the policy said a stop token."""
    T = samples.mask.shape[1]
    return jnp.any(is_stop(samples.tokens[:, -T:], stop) & samples.mask, axis=1)


def with_missing_eos(scores, samples: Samples, cfg: RolloutConfig):
    """`scores` [B] less the penalty where no stop token was said (all unchanged without stop tokens)."""
    if not cfg.stop:
        return scores
    return jnp.where(has_ended(samples, cfg.stop), scores, scores - cfg.missing_eos_penalty)


def as_rewards(scores, samples: Samples, cfg: RolloutConfig):
    """Rewards [B, T] in float32 from `scores`, which may be [B] or rewards [B, T] already.

    A score falls on the last token that the policy said, less the penalty where the response never
    ended. Raises TypeError for integers.
    """
    refuse_integers(scores)
    if scores.ndim == 1:
        return on_last_token(with_missing_eos(scores, samples, cfg), samples.mask)
    return jnp.where(samples.mask, scores.astype(jnp.float32), 0.0)


def inputs_of(samples: Samples, cfg: RolloutConfig) -> tuple[tuple, dict[str, Any]]:
    """What a policy_fn or an actor_critic_fn is asked, after its parameters."""
    kinds = dict(last=samples.mask.shape[1], temperature=cfg.temperature)
    return (samples.tokens, samples.attention_mask), kinds


def make_annotate(policy_fn, actor_critic_fn, cfg: RolloutConfig):
    """`annotate(params, ref_params, samples, scores) -> Rollout`, all in float32.

    `scores` [B] floats fall on the last token that the policy said; [B, T] floats are rewards already.
    `params` are the actor-critic's, `ref_params` the reference policy's. Integer scores are refused.
    """

    def annotate(params, ref_params, samples: Samples, scores) -> Rollout:
        mask, (inputs, kinds) = samples.mask, inputs_of(samples, cfg)
        ref_logprobs, _ = policy_fn(ref_params, *inputs, **kinds)
        logprobs, _, values = actor_critic_fn(params, *inputs, **kinds)
        if cfg.recompute_logprobs:
            samples = samples._replace(logprobs=jnp.where(mask, logprobs, 0.0))
        return Rollout(
            samples=samples,
            rewards=as_rewards(scores, samples, cfg),
            ref_logprobs=jnp.where(mask, ref_logprobs, 0.0),
            values=jnp.where(mask, values, 0.0),
        )

    return annotate


def make_logprobs(policy_fn, cfg: RolloutConfig):
    """`logprobs_of(params, ref_params, samples) -> (logprobs, ref_logprobs)`, float32 [B, T] each.

    All of the device's work on a rollout without a critic, and it needs no scores: a slow reward may
    run on threads of the host meanwhile, and `policy_rollout` joins the two. `logprobs` are the
    learner's: the sampler's as they are, or with `recompute_logprobs` those of a forward pass, as
    bfloat16 and the samples of another engine need; `samples.logprobs` stays what was sampled with.
    """

    def logprobs_of(params, ref_params, samples: Samples):
        mask, (inputs, kinds) = samples.mask, inputs_of(samples, cfg)
        ref_logprobs, _ = policy_fn(ref_params, *inputs, **kinds)
        logprobs = samples.logprobs
        if cfg.recompute_logprobs:
            logprobs, _ = policy_fn(params, *inputs, **kinds)
        return jnp.where(mask, logprobs, 0.0), jnp.where(mask, ref_logprobs, 0.0)

    return logprobs_of


def policy_rollout(
    samples: Samples, logprobs, ref_logprobs, scores, cfg: RolloutConfig
) -> PolicyRollout:
    """Joins what `make_logprobs` made with `scores`: [B] or rewards [B, T], floats, as in `make_annotate`."""
    return PolicyRollout(
        samples=samples,
        rewards=as_rewards(scores, samples, cfg),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
    )


def objective_metrics(
    samples: Samples, rewards, penalised, logprobs, ref_logprobs, kl_coef, *, axis_name=None
):
    """`objective/*`: means over the rows of the global batch of sums over a row's tokens.

    `rewards` [B, T] as they were given and `penalised` as they are maximised; `logprobs` are the
    learner's.
    """
    mask = samples.mask
    rows = normalise(jnp.ones(len(mask)), axis_name)
    mean_row = lambda x: psum(jnp.vdot(rows, jnp.sum(jnp.where(mask, x, 0.0), axis=1)), axis_name)
    return {
        "objective/score": mean_row(rewards),
        "objective/reward": mean_row(penalised),
        "objective/kl": mean_row(kl.k1(logprobs, ref_logprobs)),
        "objective/k3": mean_row(kl.k3(logprobs, ref_logprobs)),
        "objective/surprisal": mean_row(-samples.logprobs),
        "objective/length": mean_row(mask.astype(jnp.float32)),
        "objective/kl_coef": kl_coef,
    }
