"""Decoding one token at a time: a prompt fills a cache of keys and values, and each token adds a column.

Layers are unrolled, each with its own cache array, because a scan copies the weights and the cache of
every layer at every token. `ModelConfig.scan_decode` accepts that for a compile time that does not grow
with depth, and one cache array of all layers. On a mesh the weights of `ready` stay where they are, cut by
all axes that hold parts of the parameters: moved once before the first token, where gathering them would
hold the whole model or take more time than the token.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.models import sight, transformer
from rlhf_jax.models.attention import LayerCache
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops import few_rows
from rlhf_jax.ops.layout import divided, gathered, spread
from rlhf_jax.ops.padding import position_ids, refuse_segments

CHUNK = 1024  # most columns that pass the layers at once while a prompt fills the cache
CUT = {"attention_out": 1, "down": 1}
"""The dimension of a matrix of `ready` that is cut; that of all others is 0."""


class Cache(NamedTuple):
    """State of decoding: keys and values of each layer, the real columns, and the column to write next.

    With `scan_decode` one LayerCache holds those of all layers, as [B, layers, K, h, S] and [B, layers, K, S,
    h].
    """

    layers: tuple[LayerCache, ...]
    attention_mask: Bool[Array, "B S"]
    positions: Int[Array, " B"]
    column: Int[Array, ""]


def prefill(cfg: ModelConfig, params, tokens, attention_mask, room: int, read=None):
    """Logits after the last column of left-padded prompts [B, P], and a cache with `room` more columns.

    A given `read` of the hidden states [B, D] replaces the logits. `params` may come from `ready`, with
    unrolled layers. Prompts of more than CHUNK columns pass in chunks of equal width. Raises ValueError
    where the mask holds segment numbers.
    """
    transformer.check_context(cfg, tokens.shape[1] + room)
    refuse_segments(attention_mask, "a cache holds one prompt in each row")
    read = read or transformer.unembedding(cfg, params, stationary=True)
    if tokens.shape[1] > CHUNK:
        hidden, cache = _in_chunks(cfg, params, tokens, attention_mask, room)
        return spread(read(gathered(hidden))), cache
    apart = isinstance(params["blocks"], tuple)
    model = transformer.Transformer(cfg, keep=True, stationary=True)  # but not the layers' scan
    block = transformer.Block(cfg, keep=True, stationary=apart)

    def unrolled(x, positions, seen, local):
        layers = []
        for i, weights in enumerate(params["blocks"]):
            x, kept = block.apply({"params": weights}, x, positions, seen, local[i])
            layers.append(kept)
        return x, layers

    blocks = unrolled if apart else None
    found: Any = model.apply({"params": params}, tokens, attention_mask, blocks, method="hidden")
    hidden, kept = found
    layer = lambda i: kept[i] if apart else jax.tree.map(lambda x: x[i], kept)
    rows_first = lambda: [jax.tree.map(lambda x: x.swapaxes(0, 1), kept)]
    layers = rows_first() if cfg.scan_decode else map(layer, range(cfg.layers))
    logits = spread(read(gathered(hidden[:, -1])))

    def grow(x, axis):
        return jnp.pad(x, [(0, room if i == x.ndim + axis else 0) for i in range(x.ndim)])

    cache = Cache(
        layers=tuple(LayerCache(keys=grow(x.keys, -1), values=grow(x.values, -2)) for x in layers),
        attention_mask=grow(attention_mask, -1),
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
        LayerCache(put(old.keys, x.keys, -1), put(old.values, x.values, -2))
        for old, x in zip(cache.layers, new.layers, strict=True)
    )
    return Cache(
        layers=tuple(layers),
        attention_mask=put(cache.attention_mask, new.attention_mask, 1),
        positions=cache.positions.at[slots].set(new.positions, mode="drop"),
        column=cache.column,
    )


def ready(cfg: ModelConfig, params):
    """Parameters for repeated `decode`: layers unstacked, unless `scan_decode`, and factors of matrix
    products in `cfg.dtype`, with each kernel [n, m] as `transposed` [m, n].

    `decode` also accepts other parameters, and then slices every layer out of its stack at each token.
    """
    multiplied = ("kernel", "embedding", "lora_a", "lora_b")

    def cast(path, x):
        return x.astype(cfg.dtype) if path[-1].key in multiplied else x

    def lay(path, x):
        if path[-1].key == "transposed" or path[0].key == "embedding":
            stacked = cfg.scan_decode and path[0].key == "blocks"
            return divided(x, CUT.get(path[-2].key, 0) + stacked)
        return x

    params = jax.tree_util.tree_map_with_path(cast, params)
    if not cfg.scan_decode:
        layer = lambda i: jax.tree.map(lambda w: w[i], params["blocks"])
        params = params | {"blocks": tuple(map(layer, range(cfg.layers)))}
    return jax.tree_util.tree_map_with_path(lay, few_rows.transposed(params))


def decode(cfg: ModelConfig, params, cache: Cache, tokens: Int[Array, " B"], read=None):
    """Logits [B, V] after one more token per row, and the cache that holds it; `read` as in `prefill`.

    `params` may come from `ready`.
    """
    S = cache.attention_mask.shape[1]
    attention_mask = cache.attention_mask | (jnp.arange(S) == cache.column)[None]
    seen = sight.masks(cfg, attention_mask[:, None], cache.column[None], jnp.arange(S))
    params = params if isinstance(params["blocks"], tuple) else ready(cfg, params)
    hidden, layers = _through(
        cfg, params, cache.layers, tokens[:, None], cache.positions[:, None], seen, cache.column
    )
    read = read or transformer.unembedding(cfg, params, stationary=True)
    logits = spread(read(gathered(hidden)))
    return logits, Cache(layers, attention_mask, cache.positions + 1, cache.column + 1)


def _through(cfg: ModelConfig, params, layers, tokens, positions, seen, column):
    """Hidden states [B n, D] of tokens [B, n] in the columns from `column` on, and the layers' cache that
    holds them."""
    model = transformer.Transformer(cfg, stationary=True)
    block = transformer.Block(cfg, stationary=True)
    x = model.apply({"params": params}, tokens, positions, method="embed")
    written, local = [], sight.local_layers(cfg)

    def scanned(carry, layer):
        (x, all_layers), (i, weights, near) = carry, layer
        own = jax.tree.map(lambda x: x[:, i], all_layers)
        x, own = block.apply({"params": weights}, x, positions, seen, near, own, column)
        new = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, column, tokens.shape[1], axis)
        put = lambda x, y, at: jax.lax.dynamic_update_slice(x, y[:, None], at)  # in place
        keys = put(all_layers.keys, new(own.keys, 3), (0, i, 0, 0, column))
        values = put(all_layers.values, new(own.values, 2), (0, i, 0, column, 0))
        return (x, LayerCache(keys, values)), None

    if cfg.scan_decode:
        over = jnp.arange(cfg.layers), params["blocks"], local
        (x, all_layers), _ = jax.lax.scan(scanned, (x, layers[0]), over)
        written = [all_layers]
    else:
        for i, (layer, weights) in enumerate(zip(layers, params["blocks"], strict=True)):
            x, layer = block.apply({"params": weights}, x, positions, seen, local[i], layer, column)
            written.append(layer)
    hidden: Any = model.apply({"params": params}, x, method="finish")
    return hidden, tuple(written)


def _in_chunks(cfg: ModelConfig, params, tokens, attention_mask, room: int):
    """Hidden states [B, D] of the last column of prompts [B, P], and the cache, a chunk of columns at a
    time.

    The last chunk may overlap the one before, and then computes the same keys and values again.
    """
    B, P = tokens.shape
    count = -(-P // CHUNK)
    width = -(-P // count)
    tokens, positions = jnp.where(attention_mask, tokens, 0), position_ids(attention_mask)
    real = jnp.pad(attention_mask, ((0, 0), (0, room)))
    params = params if isinstance(params["blocks"], tuple) else ready(cfg, params)
    heads, head = cfg.kv_heads or cfg.heads, cfg.head_dim or cfg.d_model // cfg.heads
    rows, arrays = ((B, cfg.layers), 1) if cfg.scan_decode else ((B,), cfg.layers)
    empty = LayerCache(
        keys=jnp.zeros((*rows, heads, head, P + room), cfg.dtype),
        values=jnp.zeros((*rows, heads, P + room, head), cfg.dtype),
    )

    def chunk(i, carry):
        layers, _ = carry
        at = jnp.minimum(i * width, P - width)
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, at, width, axis=1)
        columns = at + jnp.arange(width)
        seen = sight.of_columns(cut(attention_mask), real, at)
        seen = sight.masks(cfg, seen, columns, jnp.arange(P + room))
        hidden, layers = _through(cfg, params, layers, cut(tokens), cut(positions), seen, at)
        return layers, hidden.reshape(B, width, -1)[:, -1]

    start = (empty,) * arrays, jnp.zeros((B, cfg.d_model), cfg.dtype)
    layers, hidden = jax.lax.fori_loop(0, count, chunk, start)
    column, real_tokens = jnp.int32(P), jnp.sum(attention_mask, axis=1, dtype=jnp.int32)
    return hidden, Cache(layers, real, real_tokens, column)
