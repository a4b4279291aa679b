"""Sampling of a large batch through a cache of fewer rows: a row that ends makes room for the next prompt.

A slot is a row of the cache. New prompts enter as soon as a quarter of the slots have ended. When no prompt
waits and a quarter of the slots remain active, decoding goes on with these alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.batches import Prompts
from rlhf_jax.ops.padding import is_stop


class Said(NamedTuple):
    """Responses to a batch, as far as they are sampled."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    ended: Bool[Array, " B"]


class Slots(NamedTuple):
    """Loop state. Free slots have the row B, the number of prompts."""

    first: Int[Array, ""]  # the next prompt to admit
    row: Int[Array, " S"]  # the prompt that each slot answers
    t: Int[Array, " S"]  # number of tokens in its response so far
    logits: Float[Array, "S V"]
    cache: Any
    said: Said


def refill(lm, cfg, choose, params, prompts: Prompts, keys, said: Said) -> Said:
    """Responses to all `prompts` through `cfg.slots` slots; `said` holds their initial values.

    `choose(keys, logits, t) -> (tokens, logprobs)` draws a token for each slot.
    """
    B, new = len(keys), -(-cfg.slots // 4)  # prompts that enter at once
    ready = lm.ready_fn(params)

    def advance(carry: Slots) -> Slots:
        return _advance(carry, lm, cfg, choose, ready, prompts, keys)

    def round_of(carry: Slots) -> Slots:
        carry = _enter(carry, lm, cfg, ready, prompts, new)
        return jax.lax.while_loop(lambda c: _is_full(c, B, cfg.slots, new), advance, carry)

    carry = jax.lax.while_loop(
        lambda c: c.first < B, round_of, _empty(lm, cfg, params, prompts, said)
    )
    carry = jax.lax.while_loop(lambda c: jnp.any(c.row < B), advance, _narrowed(carry, B, new))
    return carry.said


def _empty(lm, cfg, params, prompts: Prompts, said: Said) -> Slots:
    """Free slots only, before the first prompt."""
    like: Any = jax.eval_shape(
        lambda p: lm.prefill_fn(params, p.tokens, p.attention_mask, cfg.length),
        jax.tree.map(lambda x: jnp.zeros((cfg.slots, *x.shape[1:]), x.dtype), prompts),
    )
    logits, cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    B, columns = prompts.tokens.shape
    nobody = jnp.full(cfg.slots, B, jnp.int32)
    return Slots(
        first=jnp.int32(0),
        row=nobody,
        t=jnp.zeros_like(nobody),
        logits=logits,
        cache=cache._replace(column=jnp.int32(columns)),
        said=said,
    )


def _enter(carry: Slots, lm, cfg, ready, prompts: Prompts, new: int) -> Slots:
    """Fills free slots with the next `new` prompts; rows beyond the last prompt go nowhere."""
    B = len(prompts.tokens)
    rows = carry.first + jnp.arange(new)
    free = jnp.argsort(carry.row < B, stable=True)[:new]
    free = jnp.where(rows < B, free, cfg.slots)
    prompt = jax.tree.map(lambda x: x[jnp.minimum(rows, B - 1)], prompts)
    logits, cache = lm.prefill_fn(ready, prompt.tokens, prompt.attention_mask, cfg.length)
    put = lambda x, value: x.at[free].set(value, mode="drop")
    return carry._replace(
        first=carry.first + new,
        row=put(carry.row, rows),
        t=put(carry.t, 0),
        logits=put(carry.logits, logits),
        cache=lm.insert_fn(carry.cache, cache, free),
    )


def _is_full(carry: Slots, B: int, slots: int, new: int):
    """True while too few slots have ended to admit `new` prompts, or to continue with `new` slots."""
    return jnp.sum(carry.row < B) > jnp.where(carry.first < B, slots - new, new)


def _advance(carry: Slots, lm, cfg, choose, ready, prompts: Prompts, keys) -> Slots:
    """One more token in every slot."""
    B, columns = len(keys), prompts.tokens.shape[1] + cfg.length
    row, t = carry.row, carry.t
    token, logprob = choose(keys[jnp.minimum(row, B - 1)], carry.logits, t)
    stops = is_stop(token, cfg.stop)
    put = lambda x, where, value: x.at[where].set(value, mode="drop")
    said = Said(
        tokens=put(carry.said.tokens, (row, t), token.astype(prompts.tokens.dtype)),
        mask=put(carry.said.mask, (row, t), True),
        logprobs=put(carry.said.logprobs, (row, t), logprob),
        ended=put(carry.said.ended, row, stops),
    )
    logits, cache = lm.decode_fn(ready, carry.cache, token)
    return Slots(
        first=carry.first,
        row=jnp.where(stops | (t + 1 >= cfg.length), B, row),
        t=t + 1,
        logits=logits,
        cache=cache._replace(column=cache.column % columns),
        said=said,
    )


def _narrowed(carry: Slots, B: int, new: int) -> Slots:
    """State of the `new` slots that remain."""
    left = jnp.argsort(carry.row == B, stable=True)[:new]
    take = lambda tree: jax.tree.map(lambda x: x[left] if x.ndim else x, tree)
    row, t, logits, cache = take((carry.row, carry.t, carry.logits, carry.cache))
    return Slots(carry.first, row, t, logits, cache, carry.said)
