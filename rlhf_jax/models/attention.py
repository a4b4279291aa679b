"""Rotary positions, and attention of new tokens over themselves or over a cache."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.config import RopeScaling

NO_SCALING = RopeScaling()


class LayerCache(NamedTuple):
    """One layer's keys and values for S columns, K key-value heads of width h.

    Both have the layout of decoding's products, so that no token transposes them.
    """

    keys: Float[Array, "B K h S"]
    values: Float[Array, "B K S h"]


def cached(k: Float[Array, "B L K h"], v: Float[Array, "B L K h"]) -> LayerCache:
    """Keys and values in the layout of a cache."""
    return LayerCache(keys=jnp.transpose(k, (0, 2, 3, 1)), values=jnp.swapaxes(v, 1, 2))


def rotary_speeds(
    width: int, theta: float, scaling: RopeScaling = NO_SCALING
) -> Float[Array, " half"]:
    """theta^(-2i/width), scaled: radians per position by which pair i of `width` coordinates rotates.

    "llama3" divides the speed of wavelengths longer than original_context / low by the factor, keeps that
    of wavelengths shorter than original_context / high, and interpolates linearly in original_context /
    wavelength (Llama 3.1). "yarn" interpolates linearly in i, from the pair that makes `high` turns in
    original_context to the one that makes `low` (Peng et al., 2023, as in transformers).
    """
    half = width // 2
    speed = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling.kind == "linear":
        return speed / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_context * speed / (2 * jnp.pi)
        kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        return kept * speed + (1 - kept) * speed / scaling.factor
    if scaling.kind == "yarn":
        # the pair (a fraction) that makes so many turns in original_context
        pair = lambda turns: (
            half * math.log(scaling.original_context / (2 * math.pi * turns)) / math.log(theta)
        )
        first, last = pair(scaling.high), pair(scaling.low)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        length = last - first or 0.001
        stretched = jnp.clip((jnp.arange(half, dtype=jnp.float32) - first) / length, 0.0, 1.0)
        return (1 - stretched) * speed + stretched * speed / scaling.factor
    return speed


def rotate(
    x: Float[Array, "B L N h"],
    positions: Int[Array, "B L"],
    speed: Float[Array, " half"],
    gain: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B L N h"]:
    """`x` with the pair (i, i + half) of each head rotated by positions speed_i and scaled by `gain`, in
    float32.

    Su et al. (2021), in the half-split order of Hugging Face's Llama. Coordinates from 2 half on are
    unchanged.
    """
    angles = positions[..., None, None] * speed[None, None, None]  # [B, L, 1, half]
    cos, sin = jnp.cos(angles) * gain, jnp.sin(angles) * gain
    half = len(speed)
    a, b, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)


def softcapped(logits, cap: float):
    """cap tanh(logits / cap), or the logits where the cap is 0."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def attend(
    q: Float[Array, "B L H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    mask: Bool[Array, "B _ S"],
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
    window: int = 0,
    implementation: Literal["xla", "cudnn"] = "xla",
) -> Float[Array, "B L H h"]:
    """softmax(q k / sqrt(h)) v over the columns that `mask` allows; softmax in float32.

    `scale` replaces 1 / sqrt(h); logits x become softcap tanh(x / softcap) where the cap is not 0. Every
    column must see at least one column.

    "cudnn" never holds [B, H, L, S]; it runs on NVIDIA GPUs in 16 bits. It needs rows whose real tokens
    come first, and reads only their number from the last line of the mask: attention is causal, with a
    `window` unless that is 0. Padding columns see themselves alone.
    """
    if implementation == "cudnn":
        real = mask[:, -1]  # the columns that the last one sees
        count = jnp.maximum(jnp.sum(real, axis=-1, dtype=jnp.int32), 1)  # no row of length 0
        attended = jax.nn.dot_product_attention(
            q, k, v, scale=scale or None, is_causal=True, query_seq_lengths=count,
            key_value_seq_lengths=count, implementation=implementation,
            local_window_size=(window - 1, 0) if window else None,
        )  # fmt: skip
        alone = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)
        return jnp.where(real[..., None, None], attended, alone)
    if not softcap:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=scale or None)
    (B, L, H, h), K = q.shape, k.shape[2]
    q = q.reshape(B, L, K, H // K, h)  # the query heads of each key head
    logits = jnp.einsum("blkgh,bskh->bkgls", q, k, preferred_element_type=jnp.float32)
    logits = softcapped(logits * (scale or h**-0.5), softcap)
    logits = jnp.where(mask[:, None, None], logits, -1e30)  # the cap lies far above
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgls,bskh->blkgh", weights, v).reshape(B, L, H, h)


def attend_cached(
    q: Float[Array, "B 1 H h"],
    cache: LayerCache,
    mask: Bool[Array, "B 1 S"],
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Float[Array, "B 1 H h"]:
    """Attention of one new token per row over a cache that already holds it."""
    (B, _, H, h), K = q.shape, cache.keys.shape[1]
    q = q.reshape(B, K, H // K, h)
    logits = jnp.matmul(q, cache.keys, preferred_element_type=jnp.float32)  # [B, K, H / K, S]
    logits = softcapped(logits * (scale or h**-0.5), softcap)
    logits = jnp.where(mask[:, None], logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(cache.values.dtype)
    return jnp.matmul(weights, cache.values).reshape(B, 1, H, h)
