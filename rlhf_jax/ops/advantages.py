"""Scores to per-token rewards, and rewards to advantages. Time runs over the policy's own tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from rlhf_jax.ops.padding import last_real


def refuse_integers(scores: Num[Array, "*n"]):
    """Raises TypeError for scores that are not floating-point: an integer array has lost its fractions."""
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(
            f"scores are {scores.dtype}, which cannot hold fractions: make them float32 at their source"
        )


def on_last_token(scores: Num[Array, " B"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Each score, in float32, on the policy's last token; zero everywhere in a row without tokens.

    Raises TypeError for scores that are not floating-point.
    """
    refuse_integers(scores)
    rows = jnp.arange(len(scores))
    rewards = jnp.zeros(mask.shape, jnp.float32).at[rows, last_real(mask)].set(scores)
    return jnp.where(mask, rewards, 0.0)


def gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates and the returns they imply (Schulman et al., 2016):

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    R_t = A_t + V_t

    V and A are zero after the last token. Steps go from one token of `mask` to the next; columns in between
    (the environment's tokens, padding) are skipped and return zero. Rewards where `mask` is False are
    ignored.
    """

    def backward(carry, x):
        next_value, next_advantage = carry
        reward, value, real = x
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        carry = jnp.where(real, value, next_value), jnp.where(real, advantage, next_advantage)
        return carry, jnp.where(real, advantage, 0.0)

    end = jnp.zeros_like(values[:, 0])
    _, advantages = jax.lax.scan(backward, (end, end), (rewards.T, values.T, mask.T), reverse=True)
    return advantages.T, jnp.where(mask, advantages.T + values, 0.0)
