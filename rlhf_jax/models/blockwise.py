"""Attention by blocks of queries and keys, which holds no [L, S], forward or backward (Dao et al., 2022).

A block's logits are computed and forgotten; the backward pass computes them again from the queries' softmax
denominators. Blocks that no query of theirs can see are passed over.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.models.attention import LayerCache, softcapped
from rlhf_jax.models.sight import Sight

QUERIES, KEYS = 256, 512  # most columns in a block
UNSEEN = -1e30
_product = partial(jnp.matmul, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend_by_blocks(
    q: Float[Array, "B L H h"],
    kept: LayerCache,
    sight: Sight,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> Float[Array, "B L H h"]:
    """`attention.attend` over keys and values in the layout of a cache, in memory that does not grow with
    L S."""
    return _forward(q, kept, sight, scale, softcap)[0]


class Queries(NamedTuple):
    """A block of queries, or n blocks on a first axis; r = c H / K rows share a key-value head."""

    q: Float[Array, "*n B K r h"]
    segments: Int[Array, "*n B c"]
    columns: Int[Array, "*n c"]


def _forward(q, kept: LayerCache, sight: Sight, scale, softcap):
    """(result, what the backward pass reads)."""
    K = kept.keys.shape[1]

    def of_block(block: Queries):
        def more(j, carry):
            top, total, sums = carry
            logits, _, values, _ = _logits(block, kept, sight, j, scale, softcap)
            higher = jnp.maximum(top, jnp.max(logits, axis=-1))
            weights, shrink = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
            new = _product(weights.astype(values.dtype), values)
            return higher, total * shrink + jnp.sum(weights, -1), sums * shrink[..., None] + new

        zeros = jnp.zeros(block.q.shape, jnp.float32)
        start = zeros[..., 0] + UNSEEN, zeros[..., 0], zeros
        top, total, sums = jax.lax.fori_loop(*_seen_blocks(block, kept, sight), more, start)
        return (sums / total[..., None]).astype(q.dtype), top + jnp.log(total)

    result, log_total = jax.lax.map(of_block, _blocks(q, K, sight))
    return _joined(result, q.shape), (q, kept, sight, result, log_total)


def _backward(scale, softcap, saved, d_result):
    q, kept, sight, result, log_total = saved
    K, factor = kept.keys.shape[1], scale or q.shape[-1] ** -0.5
    d_result = _rows(_cut(d_result), K)
    inner = jnp.sum(d_result.astype(jnp.float32) * result.astype(jnp.float32), axis=-1)

    def of_block(d_kept, xs):
        block, d_result, log_total, inner = xs

        def more(j, carry):
            d_q, d_keys, d_values = carry
            logits, keys, values, at = _logits(block, kept, sight, j, scale, softcap)
            weights = jnp.exp(logits - log_total[..., None])
            d_logits = weights * (_product(d_result, _turned(values)) - inner[..., None])
            if softcap:  # unseen logits lie far below the cap, where tanh is flat
                d_logits *= 1 - jnp.square(jnp.maximum(logits, -softcap) / softcap)
            d_logits = (d_logits * factor).astype(q.dtype)
            d_q += _product(d_logits, _turned(keys))
            d_keys = _added(d_keys, _product(_turned(block.q), d_logits), at, axis=3)
            new = _product(_turned(weights.astype(values.dtype)), d_result)
            return d_q, d_keys, _added(d_values, new, at, axis=2)

        start = jnp.zeros(block.q.shape, jnp.float32), *d_kept
        d_q, *d_kept = jax.lax.fori_loop(*_seen_blocks(block, kept, sight), more, start)
        return tuple(d_kept), d_q.astype(q.dtype)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in kept)
    d_kept, d_q = jax.lax.scan(of_block, zeros, (_blocks(q, K, sight), d_result, log_total, inner))
    d_kept = LayerCache(*(d.astype(x.dtype) for d, x in zip(d_kept, kept, strict=True)))
    return _joined(d_q, q.shape), d_kept, None


attend_by_blocks.defvjp(_forward, _backward)


def _logits(block: Queries, kept: LayerCache, sight: Sight, j, scale, softcap):
    """(logits [B, K, r, n] over block j of keys, UNSEEN where unseen, these keys, their values, the first's
    column)."""
    S, (r, h) = kept.keys.shape[3], block.q.shape[2:]
    n = min(KEYS, S)
    at = jnp.minimum(j * n, S - n)  # the last block may overlap the one before
    keys = jax.lax.dynamic_slice_in_dim(kept.keys, at, n, 3)
    values = jax.lax.dynamic_slice_in_dim(kept.values, at, n, 2)
    segments = jax.lax.dynamic_slice_in_dim(sight.keys, at, n, 1)[:, None]  # [B, 1, n]
    columns = at + jnp.arange(n)
    distance = (block.columns[:, None] - columns[None])[None]  # [1, c, n]
    seen = (segments == block.segments[:, :, None]) & (segments != 0)
    seen &= (distance > 0) & (distance < sight.window)
    seen = (seen | (distance == 0)) & (columns >= j * n)[None, None]  # [B, c, n]
    logits = _product(block.q, keys) * (scale or h**-0.5)
    by_column = softcapped(logits, softcap).reshape(
        *logits.shape[:2], -1, r // len(block.columns), n
    )
    return (
        jnp.where(seen[:, None, :, None], by_column, UNSEEN).reshape(logits.shape),
        keys,
        values,
        at,
    )


def _seen_blocks(block: Queries, kept: LayerCache, sight: Sight):
    """The first block of keys that a block of queries can see, and the one after the last."""
    S = kept.keys.shape[3]
    n = min(KEYS, S)
    first = jnp.maximum(block.columns[0] - sight.window + 1, 0) // n
    return first, jnp.minimum(block.columns[-1] // n + 1, -(-S // n))


def _blocks(q, K: int, sight: Sight) -> Queries:
    """The queries in blocks; the last one's are filled up with queries whose results are dropped."""
    x, segments = _cut(q), _cut(sight.queries)
    n, _, c = segments.shape
    columns = sight.first + jnp.arange(n * c).reshape(n, c)
    return Queries(_rows(x, K), segments, columns)


def _cut(x):
    """[B, L, ...] as [n, B, c, ...]: n blocks of c columns."""
    B, L = x.shape[:2]
    n = -(-L // QUERIES)
    c = -(-L // n)
    x = jnp.pad(x, [(0, 0), (0, n * c - L)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, n, c, *x.shape[2:]), 1, 0)


def _rows(x, K: int):
    """[n, B, c, H, h] as [n, B, K, c H / K, h]."""
    n, B, c, H, h = x.shape
    x = jnp.moveaxis(x.reshape(n, B, c, K, H // K, h), 3, 2)
    return x.reshape(n, B, K, c * (H // K), h)


def _joined(rows, shape):
    """Queries' results [n, B, K, c H / K, h] as [B, L, H, h], the `shape` of the queries."""
    (B, L, H, h), (n, _, K, _, _) = shape, rows.shape
    x = jnp.moveaxis(rows.reshape(n, B, K, -1, H // K, h), 2, 3)
    return jnp.moveaxis(x, 0, 1).reshape(B, -1, H, h)[:, :L]


def _turned(x):
    return jnp.swapaxes(x, -1, -2)


def _added(x, part, at, axis: int):
    """`x` with `part` added from `at` on."""
    old = jax.lax.dynamic_slice_in_dim(x, at, part.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(x, old + part, at, axis)
