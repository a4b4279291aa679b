"""Token log-probabilities and entropy in float32, whose gradient holds no logits but a chunk's; ratios."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.ops import softmax

BOUND = 20.0  # the log-ratio beyond which a ratio no longer rises; exp overflows float32 at 88.7
WHOLE = 2**24  # logits that may be held at once, however small the model: 64 MB


def ratio_of(log_ratio: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(log_ratio), capped at e^20 without a gradient where log_ratio exceeds 20, as in verl.

    Smaller log-ratios have the exponential's value and gradient up to rounding. NaN stays NaN.
    """
    return jnp.exp(jnp.where(log_ratio > BOUND, BOUND, log_ratio))


def of_logits(
    logits: Float[Array, "*n V"], tokens: Int[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Log-probability of each token y and entropy H of its distribution p = softmax(z), in nats.

    A token with logit -inf adds nothing. The gradient is computed from the logits z in one pass: that of
    log p_y is [j = y] - p_j, and that of H is -p_j (log p_j + H).
    """
    z = logits.astype(jnp.float32).reshape(-1, logits.shape[-1])
    return jax.tree.map(lambda x: x.reshape(tokens.shape), softmax.read(z, tokens.reshape(-1)))


def token_logprobs(
    project: Callable,
    weights: Any,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each token and entropy of its distribution, softmax(project(weights, hidden) /
    temperature).

    `project` maps `weights` and [n, D] to logits [n, V]. They are held for the gradient where they take no
    more memory than `WHOLE`, or than the table [D, V] and its gradient. Otherwise they are computed in
    chunks of columns, and again for the gradient, whose sum over chunks is float32: a third more compute,
    and no [B, T, V]. Chunks run along T, which is never sharded.
    """
    (B, T, D), V = hidden.shape, jax.eval_shape(project, weights, hidden[0]).shape[-1]
    held, chunk = (max(n * D, WHOLE // V) for n in (2, 1))  # rows
    columns = T if held >= B * T else -(-T // -(-T // max(1, chunk // B)))
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, "float32")), weights)

    def read(rows):
        hidden, tokens = rows
        return softmax.read(project(wide, hidden).astype(jnp.float32) / temperature, tokens)

    def cut(x):  # [chunks, B columns, ...], padded at the end
        x = jnp.pad(x, [(0, 0), (0, -T % columns)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(B, -1, columns, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(len(x), B * columns, *x.shape[3:])

    if columns == T:
        found = read((hidden.reshape(B * T, D), tokens.reshape(-1)))
    else:
        found = jax.lax.map(jax.checkpoint(read), (cut(hidden), cut(tokens)))
    whole = lambda x: x.reshape(-1, B, columns).swapaxes(0, 1).reshape(B, -1)[:, :T]
    return jax.tree.map(whole, found)
