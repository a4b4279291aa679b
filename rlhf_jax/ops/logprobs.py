"""Token log-probabilities and entropy in float32, whole or in chunks that never hold [B, T, V]; ratios."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BOUND = 20.0  # the log-ratio beyond which a ratio no longer rises; exp overflows float32 at 88.7


def ratio_of(log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(log_ratio), capped at e^20 without a gradient where log_ratio exceeds 20, as in verl.

    Smaller log-ratios have the exponential's value and gradient up to rounding. NaN stays NaN.
    """
    return jnp.exp(jnp.where(log_ratio > BOUND, BOUND, log_ratio))


def logprobs_of(logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Log-probability of each token, in nats."""
    logits = logits.astype(jnp.float32)
    said = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)  # its gradient is no scatter
    return jnp.sum(jnp.where(said, logits, 0.0), axis=-1) - jax.nn.logsumexp(logits, axis=-1)


def entropy_of(logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """Entropy of each next-token distribution, in nats; a token with logit -inf adds nothing."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    probs = jnp.exp(logprobs)
    return -jnp.sum(probs * jnp.where(probs > 0, logprobs, 0.0), axis=-1)


def token_logprobs(
    project: Callable,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each token and entropy of its distribution, softmax(project(hidden) /
    temperature).

    `project` maps [B, n, D] to logits [B, n, V]. A nonzero `chunk` limits n to `chunk` columns at a time,
    forward and backward, so memory grows with B chunk V instead of B T V. Chunks run along T, which is
    never sharded.
    """

    def both(hidden, tokens):
        logits = project(hidden).astype(jnp.float32) / temperature  # [B, n, V]
        return logprobs_of(logits, tokens), entropy_of(logits)

    B, T = tokens.shape
    if not 0 < chunk < T:
        return both(hidden, tokens)
    cut = lambda x: jnp.moveaxis(
        jnp.pad(x, [(0, 0), (0, -T % chunk)] + [(0, 0)] * (x.ndim - 2)).reshape(
            B, -1, chunk, *x.shape[2:]
        ),
        1,
        0,
    )  # [T / chunk, B, chunk, ...]
    columns = jax.lax.map(jax.checkpoint(lambda xs: both(*xs)), (cut(hidden), cut(tokens)))
    logprobs, entropy = (jnp.moveaxis(x, 0, 1).reshape(B, -1)[:, :T] for x in columns)
    return logprobs, entropy
