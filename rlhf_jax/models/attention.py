"""Rotary positions, and attention of new tokens over themselves or over a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LayerCache(NamedTuple):
    """One layer's keys and values for S columns, K key-value heads of width h."""

    keys: Float[Array, "B S K h"]
    values: Float[Array, "B S K h"]


def rotate(
    x: Float[Array, "B L N h"], positions: Int[Array, "B L"], theta: float
) -> Float[Array, "B L N h"]:
    """`x` with the pair (i, i + h/2) of each head turned by positions theta^(-2i/h), in float32.

    Su et al. (2021), in the half-split order that Hugging Face's Llama uses.
    """
    half = x.shape[-1] // 2
    speed = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None] * speed[None, None, None]  # [B, L, 1, h/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "B L H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: Bool[Array, "B L S"],
) -> Float[Array, "B L H h"]:
    """softmax(q k / sqrt(h)) v over the columns that `mask` allows; softmax in float32.

    A row that may see nothing (padding) comes back finite and unread.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
