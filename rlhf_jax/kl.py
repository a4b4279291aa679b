"""Estimates of KL(policy || reference) from samples of the policy, and the adaptive coefficient.

With d = logprobs - ref_logprobs per token (Schulman, "Approximating KL divergence", 2020):

    k1 = d                   unbiased; in the reward, the only per-token form whose optimum is
                             pi* ~ pi_ref exp(r / beta)
    k2 = d^2 / 2             biased, small variance
    k3 = exp(-d) - 1 + d     unbiased as an estimate, never negative; as a reward its optimum is another
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """d, in nats per token."""
    return logprobs - ref_logprobs


def k2(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """d^2 / 2, in nats per token."""
    return 0.5 * jnp.square(logprobs - ref_logprobs)


def k3(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(-d) - 1 + d, in nats per token."""
    d = logprobs - ref_logprobs
    return jnp.expm1(-d) + d


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adapt(
    kl_coef: Float[Array, ""],
    kl: Float[Array, ""],
    *,
    samples: int,
    target: float,
    horizon: float = 10_000.0,
) -> Float[Array, ""]:
    """The next coefficient: kl_coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon).

    `kl` and `target` in nats per sequence, `horizon` in samples (Ziegler et al., 2019, section 2.2).
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * samples / horizon)
