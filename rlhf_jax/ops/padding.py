"""Positions of the real tokens, always given by a mask and never by a token id."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def position_ids(attention_mask: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Number of real tokens before each column; a prompt starts at 0 wherever its padding ends."""
    mask = attention_mask.astype(jnp.int32)
    return jnp.cumsum(mask, axis=1) - mask


def left_pad(
    tokens: Int[Array, "B L"], attention_mask: Bool[Array, "B L"]
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Rows with their real tokens moved to the right end, in order."""
    order = jnp.argsort(attention_mask, axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    return take(tokens), take(attention_mask)


def right_pad(
    tokens: Int[Array, "B L"], attention_mask: Bool[Array, "B L"]
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Rows with their real tokens moved to the left end, in order."""
    order = jnp.argsort(~attention_mask, axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    return take(tokens), take(attention_mask)


def is_stop(tokens: Int[Array, "*shape"], stop: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """True where a token is one of `stop`."""
    found = jnp.zeros(tokens.shape, bool)
    for token in stop:
        found |= tokens == token
    return found


def until_stop(
    tokens: Int[Array, "B T"], stop: tuple[int, ...], after: int = 0
) -> Bool[Array, "B T"]:
    """Response mask: True up to and including the first stop token at or after column `after`.

    Responses without one are real to their end (the truncation of Ziegler et al., 2019).
    """
    ends = is_stop(tokens, stop) & (jnp.arange(tokens.shape[1])[None] >= after)
    return jnp.cumsum(ends, axis=1) - ends == 0


def last_real(mask: Bool[Array, "B L"]) -> Int[Array, " B"]:
    """Column of each row's last real token; the last column in a row without one."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
