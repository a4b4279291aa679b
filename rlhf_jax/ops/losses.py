"""Per-token and per-pair losses, never reduced over the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.ops.logprobs import ratio_of


def clipped_surrogate(
    new_logprobs: Float[Array, "*n"],
    logprobs: Float[Array, "*n"],
    advantages: Float[Array, "*n"],
    *,
    clip: float,
    clip_high: float | None = None,
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), and a mask of where the clipped side is larger.

    rho = exp(new_logprobs - logprobs) (Schulman et al., 2017, equation 7, as a loss). The upper end is 1 +
    clip_high if given (Yu et al., 2025, "DAPO"). For log-ratios over 20, rho stays at e^20 without a
    gradient (`logprobs.ratio_of`), so nothing overflows where A >= 0.
    """
    ratio = ratio_of(new_logprobs - logprobs)
    unclipped = -advantages * ratio
    high = clip if clip_high is None else clip_high
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + high)
    return jnp.maximum(unclipped, clipped), clipped > unclipped


def clipped_value_loss(
    new_values: Float[Array, "*n"],
    values: Float[Array, "*n"],
    returns: Float[Array, "*n"],
    *,
    clip: float,
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), and a mask of where the clipped side
    is larger.

    `clip` is in units of reward (Ziegler et al., 2019, in code; not in the PPO paper).
    """
    bounded = jnp.clip(new_values, values - clip, values + clip)
    unclipped, clipped = jnp.square(new_values - returns), jnp.square(bounded - returns)
    return 0.5 * jnp.maximum(unclipped, clipped), clipped > unclipped


def pairwise_loss(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    *,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Array, "*n"]:
    """-log sigmoid(chosen - rejected - margin), in nats: Bradley and Terry (1952) on two scores.

    `label_smoothing` e gives (1 - e) f(d) + e f(-d) with d = chosen - rejected and f the unsmoothed loss:
    its expectation if a label is wrong with probability e (Mitchell, 2023, "cDPO").
    """
    difference = chosen - rejected
    right = -jax.nn.log_sigmoid(difference - margin)
    if not label_smoothing:
        return right
    wrong = -jax.nn.log_sigmoid(-difference - margin)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong
