"""Autoregressive sampling: one prefill, then a compiled loop over a cache until every row has ended.

With `SampleConfig.slots` a large batch goes through a cache of fewer rows (`slots.py`): the samples are
identical, and no row waits for the longest.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax import slots
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.bounds import Count, NonNegative, Settings, Share, Whole
from rlhf_jax.ops.padding import is_stop
from rlhf_jax.slots import Said


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Sampling of responses."""

    _main = ("length", "temperature")
    _hidden = ("top_k", "top_p", "min_length", "pad")
    _incidental = ("slots",)

    length: Whole = 24
    """Most tokens of a response, its end token included (T). 0, in experiments: 24 for a generated task, or
    for files the least length that holds 99 % of the answers of each."""
    temperature: NonNegative = 1.0
    """Divisor of the logits; 0: greedy decoding, with log-probabilities at temperature 1 (refused by
    experiments)."""
    top_k: Whole = 0
    """Sample among the k likeliest tokens and ties with the k-th; 0: all tokens. Refused by experiments,
    which need the policy's own log-probabilities."""
    top_p: Share = 1.0
    """Sample among the fewest tokens whose probability reaches p, and ties with the last; 1: all tokens.
    Refused by experiments, which need the policy's own log-probabilities."""
    min_length: Whole = 0
    """Tokens before a stop token can be sampled. Refused by experiments, which need the policy's own
    log-probabilities."""
    stop: tuple[Whole, ...] = ()
    """Extra token ids that end a response; an experiment adds those of the tokenizer and the model."""
    pad: Whole = 0
    """Token id of the masked columns after the end; an experiment takes it from the tokenizer."""
    slots: Whole = 0
    """Rows decoded at once; a row that ends makes room for the next prompt. Saves steps where lengths
    differ, and cache memory; the samples do not change. 0: all rows."""
    buckets: Count = 1
    """Number of prompt widths compiled: the full width, its half, its quarter, and so on. Each batch takes
    the narrowest that holds its longest prompt; the samples do not change."""

    def _conditions(self, at: str):
        if 0 < self.length < self.min_length:
            raise ValueError(
                f"{at}min_length = {self.min_length} is more than {at}length = {self.length}: "
                "it must be that or less"
            )


def check_on_policy(cfg: SampleConfig, at: str = "sample."):
    """Raises ValueError for settings whose samples do not have the policy's log-probabilities; `at`
    prefixes field names."""
    for name, neutral in [("top_k", 0), ("top_p", 1.0), ("min_length", 0)]:
        if getattr(cfg, name) != neutral:
            raise ValueError(
                f"{at}{name} = {getattr(cfg, name)} truncates the policy, so its log-probabilities "
                f"would not be those it is trained with: set it to {neutral}"
            )
    if cfg.temperature == 0:
        raise ValueError(f"{at}temperature = 0 draws nothing: on-policy training needs it above 0")


def truncate(logits, cfg: SampleConfig):
    """Logits [B, V] with -inf outside the top k, then outside the top p of the rest; ties are kept."""
    if 0 < cfg.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if cfg.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(descending)
        kept = jnp.cumsum(probs, axis=-1) - probs < cfg.top_p  # always keeps the first
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(cfg: SampleConfig, keys, logits, t):
    """One token per row [B] and its log-probability; `t` is its index in the response (one for all, or
    [B])."""
    logits = logits.astype(jnp.float32) / (cfg.temperature or 1.0)
    t = jnp.broadcast_to(t, len(keys))
    if cfg.min_length:
        ends = is_stop(jnp.arange(logits.shape[-1]), cfg.stop)
        logits = jnp.where(ends[None] & (t < cfg.min_length)[:, None], -jnp.inf, logits)
    logprobs = jax.nn.log_softmax(truncate(logits, cfg))
    if cfg.temperature == 0:
        token = likeliest(logprobs)
    else:  # jax.random.categorical, by another argmax
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logprobs.shape[1:]))
        token = likeliest(logprobs + noise(jax.vmap(jax.random.fold_in)(keys, t)))
    return token, jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]


def likeliest(x):
    """argmax along the last axis of [B, V], in two reductions; XLA computes a reduction of pairs element by
    element."""
    last = x.shape[-1] - 1
    at = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), jnp.arange(last + 1)[None], last)
    return jnp.min(at, axis=-1)


class Rows(NamedTuple):
    """Loop state of all rows side by side."""

    t: Int[Array, ""]  # number of tokens in each response so far
    alive: Bool[Array, " B"]  # rows that have not ended
    logits: Float[Array, "B V"]
    cache: Any
    said: Said


def make_sample(lm, cfg: SampleConfig):
    """`sample(params, prompts, rng) -> Samples` of T = cfg.length columns, from `lm`'s prefill and decode.

    The noise of a token depends only on `rng`, its prompt's `index`, its `draw` and its position in the
    response: neighbours, batch size, padding and devices do not change what a row samples. `cfg.slots`
    needs an `lm` with `insert_fn`; other models sample all rows at once. A prompt of several rows is read
    once, and with `cfg.slots` once for each. Raises ValueError where the length is 0.
    """
    if not cfg.length:
        raise ValueError("sample.length = 0: it must be 1 or more")

    def sample(params, prompts: Prompts, rng) -> Samples:
        B, (N, P) = len(prompts.index), prompts.tokens.shape
        fold = jax.vmap(jax.random.fold_in)
        keys = fold(fold(jnp.broadcast_to(rng, (B,)), prompts.index), prompts.draw)
        first = jnp.min(jnp.argmax(prompts.attention_mask, axis=1))
        widths = sorted({-(-P // 2**i) for i in range(cfg.buckets)})
        least = jnp.searchsorted(jnp.array(widths), P - first)
        within = [partial(_respond, lm, cfg, n) for n in widths]
        said = jax.lax.switch(least, within, params, prompts, keys)
        tokens, mask = repeated((prompts.tokens, prompts.attention_mask), B // N)
        return Samples(
            tokens=jnp.concatenate([tokens, said.tokens], axis=1),
            attention_mask=jnp.concatenate([mask, said.mask], axis=1),
            mask=said.mask,
            logprobs=said.logprobs,
            ended=said.ended,
        )

    return sample


def _respond(lm, cfg: SampleConfig, columns: int, params, prompts: Prompts, keys) -> Said:
    """Responses to the last `columns` columns of prompts."""
    tokens, mask = prompts.tokens[:, -columns:], prompts.attention_mask[:, -columns:]
    shape, draws = (len(keys), cfg.length), len(keys) // len(tokens)
    nothing = Said(
        tokens=jnp.full(shape, cfg.pad, tokens.dtype),
        mask=jnp.zeros(shape, bool),
        logprobs=jnp.zeros(shape, jnp.float32),
        ended=jnp.zeros(shape[:1], bool),
    )
    if 0 < cfg.slots < len(keys) and getattr(lm, "insert_fn", None):
        tokens, mask = repeated((tokens, mask), draws)
        prompts = Prompts(tokens, mask, prompts.index, prompts.draw)
        return slots.refill(lm, cfg, partial(choose, cfg), params, prompts, keys, nothing)
    read = lm.prefill_fn(params, tokens, mask, cfg.length)
    logits, cache = repeated(read, draws)
    return _together(lm, cfg, params, logits, cache, keys, nothing)


def repeated(tree, draws: int):
    """Every row of the arrays [N, ...] of a tree, `draws` times in adjacent rows; scalars as they are."""
    return jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0) if x.ndim and draws > 1 else x, tree)


def _together(lm, cfg: SampleConfig, params, logits, cache, keys, said: Said) -> Said:
    """Decodes all rows side by side, one column at a time, until the last row has ended."""
    ready = lm.ready_fn(params)
    start = Rows(jnp.int32(0), jnp.ones(len(keys), bool), logits, cache, said)
    rows = jax.lax.while_loop(
        lambda rows: (rows.t < cfg.length) & jnp.any(rows.alive),
        lambda rows: _advance(rows, lm, cfg, ready, keys),
        start,
    )
    return rows.said._replace(ended=~rows.alive)


def _advance(rows: Rows, lm, cfg: SampleConfig, ready, keys) -> Rows:
    """One more token of every row that has not ended."""
    t, alive, said = rows.t, rows.alive, rows.said
    token, logprob = choose(cfg, keys, rows.logits, t)
    token = jnp.where(alive, token, cfg.pad)
    put = lambda x, column: jax.lax.dynamic_update_slice(x, column[:, None], (0, t))
    said = said._replace(
        tokens=put(said.tokens, token),
        mask=put(said.mask, alive),
        logprobs=put(said.logprobs, jnp.where(alive, logprob, 0.0)),
    )
    logits, cache = lm.decode_fn(ready, rows.cache, token)
    return Rows(t + 1, alive & ~is_stop(token, cfg.stop), logits, cache, said)
