"""What the reference, the critic and the reward thought of samples, wherever those came from."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from rlhf_jax.advantages import on_last_token, refuse_integers
from rlhf_jax.batches import Rollout, Samples
from rlhf_jax.padding import is_stop


@dataclass(frozen=True)
class RolloutConfig:
    """How samples and scores become a rollout."""

    temperature: float = 1.0
    """What the samples were drawn at; divides the logits of policy, old policy and reference alike."""
    stop: tuple[int, ...] = ()
    """Tokens that end a response."""
    missing_eos_penalty: float = 1.0
    """Taken off the score of a response that never ended (TRL; Huang et al., 2024, set it to -1)."""
    recompute_logprobs: bool = False
    """Replace the sampler's log-probabilities by the training forward pass's: needed in bfloat16."""


def with_missing_eos(scores, samples: Samples, cfg: RolloutConfig):
    """`scores` [B] less the penalty where no stop token was said (all unchanged without stop tokens)."""
    if not cfg.stop:
        return scores
    T = samples.mask.shape[1]
    ended = jnp.any(is_stop(samples.tokens[:, -T:], cfg.stop) & samples.mask, axis=1)
    return jnp.where(ended, scores, scores - cfg.missing_eos_penalty)


def make_annotate(policy_fn, actor_critic_fn, cfg: RolloutConfig):
    """`annotate(params, ref_params, samples, scores) -> Rollout`, all in float32.

    `scores` [B] floats fall on the last token that the policy said; [B, T] floats are rewards already.
    `params` are the actor-critic's, `ref_params` the reference policy's. Integer scores are refused.
    """

    def annotate(params, ref_params, samples: Samples, scores) -> Rollout:
        refuse_integers(scores)
        mask, T = samples.mask, samples.mask.shape[1]
        inputs = samples.tokens, samples.attention_mask
        kinds: dict[str, Any] = dict(last=T, temperature=cfg.temperature)
        ref_logprobs, _ = policy_fn(ref_params, *inputs, **kinds)
        logprobs, _, values = actor_critic_fn(params, *inputs, **kinds)
        if cfg.recompute_logprobs:
            samples = samples._replace(logprobs=jnp.where(mask, logprobs, 0.0))
        if scores.ndim == 1:
            rewards = on_last_token(with_missing_eos(scores, samples, cfg), mask)
        else:
            rewards = jnp.where(mask, scores.astype(jnp.float32), 0.0)
        return Rollout(
            samples=samples,
            rewards=rewards,
            ref_logprobs=jnp.where(mask, ref_logprobs, 0.0),
            values=jnp.where(mask, values, 0.0),
        )

    return annotate
