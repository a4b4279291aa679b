"""Per-token and per-pair losses. Nothing here reduces over the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def clipped_surrogate(
    new_logprobs: Float[Array, "*n"],
    logprobs: Float[Array, "*n"],
    advantages: Float[Array, "*n"],
    *,
    clip: float,
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), and where the clipped side was taken.

    rho = exp(new_logprobs - logprobs) (Schulman et al., 2017, equation 7, as a loss).
    """
    ratio = jnp.exp(new_logprobs - logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return jnp.maximum(unclipped, clipped), clipped > unclipped


def clipped_value_loss(
    new_values: Float[Array, "*n"],
    values: Float[Array, "*n"],
    returns: Float[Array, "*n"],
    *,
    clip: float,
) -> tuple[Float[Array, "*n"], Bool[Array, "*n"]]:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), and where clipping was taken.

    `clip` in units of reward (Ziegler et al., 2019, in code; not in the PPO paper).
    """
    bounded = jnp.clip(new_values, values - clip, values + clip)
    unclipped, clipped = jnp.square(new_values - returns), jnp.square(bounded - returns)
    return 0.5 * jnp.maximum(unclipped, clipped), clipped > unclipped


def pairwise_loss(chosen: Float[Array, "*n"], rejected: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """-log sigmoid(chosen - rejected), in nats: Bradley and Terry (1952) on two scores."""
    return -jax.nn.log_sigmoid(chosen - rejected)
