"""Decoding one token at a time: a prompt fills a cache of keys and values, and each token adds a column.

Layers are unrolled, each with its own cache array, because a cache that passes through a scan is copied at
every token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.models import transformer
from rlhf_jax.models.attention import LayerCache
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.padding import refuse_segments


class Cache(NamedTuple):
    """State of decoding: keys and values of each layer, the real columns, and the column to write next."""

    layers: tuple[LayerCache, ...]
    attention_mask: Bool[Array, "B S"]
    positions: Int[Array, " B"]
    column: Int[Array, ""]


def prefill(cfg: ModelConfig, params, tokens, attention_mask, room: int, read=None):
    """Logits after the last column of left-padded prompts [B, P], and a cache with `room` more columns.

    A given `read` of the hidden states [B, D] replaces the logits. `params` may come from `ready`, with
    unrolled layers. Raises ValueError where the mask holds segment numbers.
    """
    transformer.check_context(cfg, tokens.shape[1] + room)
    refuse_segments(attention_mask, "a cache holds one prompt in each row")
    model, block = transformer.Transformer(cfg, keep=True), transformer.Block(cfg, keep=True)

    def unrolled(x, positions, seen, local):
        layers = []
        for i, weights in enumerate(params["blocks"]):
            x, kept = block.apply({"params": weights}, x, positions, seen, local[i])
            layers.append(kept)
        return x, layers

    apart = unrolled if isinstance(params["blocks"], tuple) else None
    found: Any = model.apply({"params": params}, tokens, attention_mask, apart, method="hidden")
    hidden, kept = found
    layer = lambda i: kept[i] if apart else jax.tree.map(lambda x: x[i], kept)
    logits = (read or transformer.unembedding(cfg, params))(hidden[:, -1])

    def grow(x, axis):
        return jnp.pad(x, [(0, room if i == axis else 0) for i in range(x.ndim)])

    cache = Cache(
        layers=tuple(
            LayerCache(keys=grow(x.keys, 3), values=grow(x.values, 2))
            for x in map(layer, range(cfg.layers))
        ),
        attention_mask=grow(attention_mask, 1),
        positions=jnp.sum(attention_mask, axis=1, dtype=jnp.int32),
        column=jnp.int32(tokens.shape[1]),
    )
    return logits, cache


def insert(cache: Cache, new: Cache, slots: Int[Array, " n"]) -> Cache:
    """`cache` with newly prefilled prompts in the rows `slots`; a prompt without such a row is dropped.

    The columns then form a ring, and the caller takes `column` modulo their number. Each prompt ends in the
    column before the next one to be written, so a row never meets its own beginning.
    """
    turn = cache.column - new.column
    put = lambda old, x, axis: old.at[slots].set(jnp.roll(x, turn, axis), mode="drop")
    layers = (
        LayerCache(put(old.keys, x.keys, 3), put(old.values, x.values, 2))
        for old, x in zip(cache.layers, new.layers, strict=True)
    )
    return Cache(
        layers=tuple(layers),
        attention_mask=put(cache.attention_mask, new.attention_mask, 1),
        positions=cache.positions.at[slots].set(new.positions, mode="drop"),
        column=cache.column,
    )


def ready(cfg: ModelConfig, params):
    """Parameters for repeated `decode`: layers unstacked, and factors of matrix products in `cfg.dtype`.

    `decode` also accepts stacked parameters, and then slices every layer out of its stack at each token.
    """
    multiplied = ("kernel", "embedding", "lora_a", "lora_b")

    def cast(path, x):
        return x.astype(cfg.dtype) if path[-1].key in multiplied else x

    params = jax.tree_util.tree_map_with_path(cast, params)
    layer = lambda i: jax.tree.map(lambda w: w[i], params["blocks"])
    return params | {"blocks": tuple(map(layer, range(cfg.layers)))}


def decode(cfg: ModelConfig, params, cache: Cache, tokens: Int[Array, " B"], read=None):
    """Logits [B, V] after one more token per row, and the cache that holds it; `read` as in `prefill`.

    `params` may come from `ready`.
    """
    model, block = transformer.Transformer(cfg), transformer.Block(cfg)
    S = cache.attention_mask.shape[1]
    attention_mask = cache.attention_mask | (jnp.arange(S) == cache.column)[None]
    positions = cache.positions[:, None]  # [B, 1]
    x = model.apply({"params": params}, tokens[:, None], positions, method="embed")
    layers, local = [], transformer.local_layers(cfg)
    seen = transformer.masks(cfg, attention_mask[:, None], cache.column[None], jnp.arange(S))
    params = params if isinstance(params["blocks"], tuple) else ready(cfg, params)
    for i, (layer, weights) in enumerate(zip(cache.layers, params["blocks"], strict=True)):
        x, layer = block.apply(
            {"params": weights}, x, positions, seen, local[i], layer, cache.column
        )
        layers.append(layer)
    hidden = model.apply({"params": params}, x, method="finish")
    logits = (read or transformer.unembedding(cfg, params))(hidden)
    return logits, Cache(tuple(layers), attention_mask, cache.positions + 1, cache.column + 1)
