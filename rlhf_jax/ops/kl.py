"""Estimators of KL(policy || reference) from samples of the policy, and the adaptive coefficient.

With d = logprobs - ref_logprobs per token (Schulman, "Approximating KL divergence", 2020):

    k1 = d                   unbiased; in the reward, the only per-token form whose optimum is
                             pi* ~ pi_ref exp(r / beta)
    k2 = d^2 / 2             biased, small variance
    k3 = exp(-d) - 1 + d     unbiased as an estimate, never negative; as a reward it has another optimum

For d < -20, where exp would overflow, k3 keeps its value at d = -20 and has no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.ops.logprobs import BOUND, ratio_of


def k1(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """d, in nats per token."""
    return logprobs - ref_logprobs


def k2(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """d^2 / 2, in nats per token."""
    return 0.5 * jnp.square(logprobs - ref_logprobs)


def k3(logprobs: Float[Array, "*n"], ref_logprobs: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(-d) - 1 + d, in nats per token; constant for d < -20."""
    d = logprobs - ref_logprobs
    d = jnp.where(d < -BOUND, -BOUND, d)
    return jnp.expm1(-d) + d


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def corrected(
    kind: str,
    logprobs: Float[Array, "*n"],
    ref_logprobs: Float[Array, "*n"],
    old_logprobs: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """Estimator `kind` times rho = exp(logprobs - old_logprobs), for samples of the old policy.

    The gradient of rho k3 is rho d, because exp(-d) cancels. The code takes it from a surrogate and then
    corrects the value; differentiating the product would subtract two numbers that grow as exp(-d).
    """
    rho = ratio_of(logprobs - old_logprobs)
    if kind != "k3":
        return rho * ESTIMATORS[kind](logprobs, ref_logprobs)
    d = logprobs - ref_logprobs
    a = -jnp.abs(d)  # rho exp(-d) = exp(ref_logprobs - old_logprobs), so no exp here is large
    from_below = ratio_of(ref_logprobs - old_logprobs) * (a * jnp.exp(a) - jnp.expm1(a))
    value = jnp.where(d < 0, from_below, rho * (jnp.expm1(a) - a))
    fixed = jax.lax.stop_gradient
    return fixed(value) + fixed(rho * d) * (logprobs - fixed(logprobs))


def adapt(
    kl_coef: Float[Array, ""],
    kl: Float[Array, ""],
    *,
    samples: int,
    target: float,
    horizon: float = 10_000.0,
) -> Float[Array, ""]:
    """The next coefficient: kl_coef (1 + clip(kl / target - 1, -0.2, 0.2) samples / horizon).

    `kl` and `target` are in nats per sequence, `horizon` in samples (Ziegler et al., 2019, section 2.2).
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * samples / horizon)
