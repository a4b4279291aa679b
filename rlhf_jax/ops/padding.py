"""Positions of the real tokens, always given by a mask and never by a token id.

An attention mask is True for a real token and False for padding. Where several sequences are packed into
one row it holds integers: 0 for padding, and the number of its segment for a real token. Tokens of one
segment see each other and no others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

AttentionMask = Bool[Array, "B L"] | Int[Array, "B L"]


def position_ids(attention_mask: AttentionMask) -> Int[Array, "B L"]:
    """Number of real tokens before each column; a prompt starts at 0 wherever its padding ends.

    In a mask of segment numbers, only tokens of the column's own segment count, and padding is at 0.
    """
    if attention_mask.dtype != bool:
        order = jnp.argsort(attention_mask, axis=1, stable=True)  # its tokens beside each other
        numbers = jnp.take_along_axis(attention_mask, order, axis=1)
        begins = jnp.diff(numbers, axis=1, prepend=numbers[:, :1] - 1) != 0
        place = jnp.broadcast_to(jnp.arange(numbers.shape[1], dtype=jnp.int32), numbers.shape)
        place -= jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
        place = jnp.take_along_axis(place, jnp.argsort(order, axis=1), axis=1)
        return jnp.where(attention_mask != 0, place, 0)
    mask = attention_mask.astype(jnp.int32)
    return jnp.cumsum(mask, axis=1) - mask


def visible_columns(attention_mask: AttentionMask) -> Bool[Array, "B 1 L"] | Bool[Array, "B L L"]:
    """The columns (last axis) that each column may see, before causality: real ones, of its own segment."""
    seen = attention_mask[:, None]
    if attention_mask.dtype == bool:
        return seen
    return (seen == attention_mask[:, :, None]) & (seen != 0)


def refuse_segments(attention_mask, because: str):
    """Raises ValueError, with the reason, for a mask that holds integers."""
    if attention_mask.dtype != bool:
        raise ValueError(
            f"attention_mask holds segment numbers ({attention_mask.dtype}), and {because}: "
            "unpack the rows, and give a mask of True and False"
        )


def right_pad(
    tokens: Int[Array, "B L"], attention_mask: AttentionMask
) -> tuple[Int[Array, "B L"], AttentionMask]:
    """Rows with their real tokens moved to the left end, in order."""
    order = jnp.argsort(~attention_mask.astype(bool), axis=1, stable=True)
    take = lambda x: jnp.take_along_axis(x, order, axis=1)
    return take(tokens), take(attention_mask)


def is_stop(tokens: Int[Array, "*shape"], stop: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """True where a token is one of `stop`."""
    found = jnp.zeros(tokens.shape, bool)
    for token in stop:
        found |= tokens == token
    return found


def last_real(mask: AttentionMask) -> Int[Array, " B"]:
    """Column of each row's last real token, of any segment; the last column in a row without one."""
    return mask.shape[1] - 1 - jnp.argmax(mask.astype(bool)[:, ::-1], axis=1)
