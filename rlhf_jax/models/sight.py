"""Who sees whom: masks [B, L, S] of short sequences, and for long ones a record that grows with L alone."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.padding import AttentionMask, visible_columns

LONG = 1024  # columns from which full passes attend by blocks


class Sight(NamedTuple):
    """A mask [B, L, S] that is never held: its blocks are computed where they are needed.

    A query sees its own column, and of the `window` columns that end there the real ones of its segment.
    """

    queries: Int[Array, "B L"]  # number of each query's segment
    keys: Int[Array, "B S"]  # number of each key's segment; 0: padding
    first: Int[Array, ""]  # column of the first query
    window: Int[Array, ""]


def local_layers(cfg: ModelConfig) -> Bool[Array, " layers"]:
    """True for each local layer."""
    return jnp.isin(jnp.arange(cfg.layers), jnp.array(cfg.local, int))


def of_pass(cfg: ModelConfig, attention_mask: AttentionMask):
    """Sight of the columns of a full pass: one mask or `Sight` for global layers and one for local layers,
    or one for all.

    What stands on padding before a row's first real token sees itself alone. Beside segments all padding
    does.
    """
    L = attention_mask.shape[1]
    columns = jnp.arange(L)
    if L >= LONG:
        return masks(
            cfg, of_columns(attention_mask, attention_mask, jnp.int32(0)), columns, columns
        )
    seen = visible_columns(attention_mask) | jnp.eye(L, dtype=bool)[None]
    return masks(cfg, jnp.tril(jnp.ones((L, L), bool))[None] & seen, columns, columns)


def of_columns(
    queries: AttentionMask, keys: Bool[Array, "B S"] | Int[Array, "B S"], first: Int[Array, ""]
) -> Sight:
    """Sight of columns from `first` on, with the attention mask `queries`, over columns with the mask
    `keys`."""
    every = jnp.int32(jnp.iinfo(jnp.int32).max)
    if queries.dtype == bool:  # where padding follows real tokens, it sees them
        queries = jnp.ones(queries.shape, jnp.int32)
    return Sight(queries, keys.astype(jnp.int32), first, every)


def masks(cfg: ModelConfig, mask, columns: Int[Array, " L"], of: Int[Array, " S"]):
    """`mask` (a mask or a `Sight`) of tokens in `columns` over columns `of`: one for global layers, one for
    local layers.

    A single one serves all layers where the two do not differ.
    """
    if not cfg.window:
        return (mask,)
    if isinstance(mask, Sight):
        near = mask._replace(window=jnp.int32(cfg.window))
    else:  # a cache is a ring
        near = mask & ((columns[:, None] - of[None]) % len(of) < cfg.window)[None]
    return (mask, near) if len(set(cfg.local)) < cfg.layers else (near,)


def chosen(masks, local: Bool[Array, ""]):
    """The one of `masks` that serves a layer."""
    if len(masks) == 1:
        return masks[0]
    return jax.tree.map(partial(jnp.where, local), masks[1], masks[0])
