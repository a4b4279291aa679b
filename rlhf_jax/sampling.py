"""Autoregressive sampling: one prefill, then a compiled loop over a cache until every row has ended.

With `SampleConfig.slots`, of a large batch so many rows are in the cache at once, and one that ends gives its
place to the next prompt: the samples are the same, and no row waits for the longest.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.bounds import Count, NonNegative, Settings, Share, Whole
from rlhf_jax.ops.padding import is_stop


@dataclass(frozen=True)
class SampleConfig(Settings):
    """How responses are drawn."""

    _main = ("length", "temperature")

    length: Whole = 24
    """Most tokens of a response, its end included (T). Experiments take 0: 24 in the generated world, and
    with files what holds 99 % of the answers of each."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 takes the likeliest token (and reports its log-probability at 1)."""
    top_k: Whole = 0
    """Draw among the k likeliest tokens, and all that tie with the k-th; 0 among all. Not for on-policy
    training."""
    top_p: Share = 1.0
    """Draw among the fewest tokens whose probability reaches p, and all that tie with the last of them; 1
    among all. Not for on-policy training."""
    min_length: Whole = 0
    """Tokens before a stop token may be drawn. Not for on-policy training."""
    stop: tuple[Whole, ...] = ()
    """Tokens that end a response; experiments add those of the tokenizer and of the model."""
    stop_after: Whole = 0
    """Columns in which a stop token does not yet end the response (Ziegler et al., 2019: 16 of 24)."""
    pad: Whole = 0
    """Token in the columns after the end, where it is masked; experiments take the tokenizer's."""
    slots: Whole = 0
    """Rows decoded at once, where a batch has more: a row that ends makes room for the next prompt. 0: all.
    Fewer steps where lengths differ, a cache of fewer rows, and the same samples."""
    buckets: Count = 1
    """Widths that prompts are cut to, all in one compiled program: theirs, its half, its quarter, ...
    A batch takes the least that holds its longest prompt, and samples the same; each is compiled apart."""

    def _conditions(self, at: str):
        for name in ("min_length", "stop_after"):
            if 0 < self.length < getattr(self, name):
                raise ValueError(
                    f"{at}{name} = {getattr(self, name)} is more than {at}length = {self.length}: "
                    "it must be that or less"
                )


def check_on_policy(cfg: SampleConfig, at: str = "sample."):
    """Raises ValueError, naming fields after `at`, where samples' log-probabilities are not the policy's."""
    for name, neutral in [("top_k", 0), ("top_p", 1.0), ("min_length", 0)]:
        if getattr(cfg, name) != neutral:
            raise ValueError(
                f"{at}{name} = {getattr(cfg, name)} truncates the policy, so its log-probabilities "
                f"would not be those it is trained with: set it to {neutral}"
            )
    if cfg.temperature == 0:
        raise ValueError(f"{at}temperature = 0 draws nothing: on-policy training needs it above 0")


def truncate(logits, cfg: SampleConfig):
    """Logits [B, V] with -inf outside the top k, then outside the top p of what is left; ties all stay."""
    if 0 < cfg.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if cfg.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(descending)
        kept = jnp.cumsum(probs, axis=-1) - probs < cfg.top_p  # the first is always kept
        least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(cfg: SampleConfig, keys, logits, t):
    """One token a row [B], the response's number `t` (one for all or [B]), and its log-probability."""
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
    """argmax along the last axis of [B, V], in two reductions: one of pairs XLA computes number by number."""
    last = x.shape[-1] - 1
    at = jnp.where(x == jnp.max(x, axis=-1, keepdims=True), jnp.arange(last + 1)[None], last)
    return jnp.min(at, axis=-1)


def make_sample(lm, cfg: SampleConfig):
    """`sample(params, prompts, rng) -> Samples` of T = cfg.length columns, from `lm`'s prefill and decode.

    The noise of a token depends on `rng`, its prompt's `index`, its `draw` and its place in the
    response alone: neither neighbours, nor batch size, padding or devices change what a row samples.
    `cfg.slots` wants an `lm` with `insert_fn`; others sample all rows at once. Raises ValueError where the
    length is 0.
    """
    if not cfg.length:
        raise ValueError("sample.length = 0: it must be 1 or more")

    def sample(params, prompts: Prompts, rng) -> Samples:
        B = len(prompts.tokens)
        fold = jax.vmap(jax.random.fold_in)
        keys = fold(fold(jnp.broadcast_to(rng, (B,)), prompts.index), prompts.draw)
        refilled = 0 < cfg.slots < B and getattr(lm, "insert_fn", None)
        respond = refill if refilled else together
        P, first = prompts.tokens.shape[1], jnp.min(jnp.argmax(prompts.attention_mask, axis=1))
        widths = sorted({-(-P // 2**i) for i in range(cfg.buckets)})
        least = jnp.searchsorted(jnp.array(widths), P - first)
        tokens, mask, logprobs = jax.lax.switch(
            least, [within(n, respond) for n in widths], params, prompts, keys
        )
        return Samples(
            tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
            attention_mask=jnp.concatenate([prompts.attention_mask, mask], axis=1),
            mask=mask,
            logprobs=logprobs,
        )

    def within(n, respond):
        """`respond` to the last `n` columns of prompts."""

        def narrow(params, prompts: Prompts, keys):
            tokens, mask = prompts.tokens[:, -n:], prompts.attention_mask[:, -n:]
            return respond(params, prompts._replace(tokens=tokens, attention_mask=mask), keys)

        return narrow

    def nothing(prompts):
        """What no row has said yet."""
        shape = len(prompts.tokens), cfg.length
        tokens = jnp.full(shape, cfg.pad, prompts.tokens.dtype)
        return tokens, jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)

    def together(params, prompts: Prompts, keys):
        """All rows side by side, column after column, until the last has ended."""

        def more(carry):
            t, alive, *_ = carry
            return (t < cfg.length) & jnp.any(alive)

        def say(carry):
            t, alive, logits, cache, tokens, mask, logprobs = carry
            token, logprob = choose(cfg, keys, logits, t)
            token = jnp.where(alive, token, cfg.pad)
            put = lambda x, column: jax.lax.dynamic_update_slice(x, column[:, None], (0, t))
            tokens, mask = put(tokens, token), put(mask, alive)
            logprobs = put(logprobs, jnp.where(alive, logprob, 0.0))
            ends = is_stop(token, cfg.stop) & (t >= cfg.stop_after)
            logits, cache = lm.decode_fn(ready, cache, token)
            return t + 1, alive & ~ends, logits, cache, tokens, mask, logprobs

        logits, cache = lm.prefill_fn(params, prompts.tokens, prompts.attention_mask, cfg.length)
        ready, alive = lm.ready_fn(params), jnp.ones(len(keys), bool)
        carry = jnp.int32(0), alive, logits, cache, *nothing(prompts)
        return jax.lax.while_loop(more, say, carry)[-3:]

    def refill(params, prompts: Prompts, keys):
        """`cfg.slots` rows side by side; a quarter of them that ended makes room for the next prompts.

        When none waits and a quarter is left, it goes on alone.
        """
        N, slots, new = len(keys), cfg.slots, -(-cfg.slots // 4)
        ready, columns = lm.ready_fn(params), prompts.tokens.shape[1] + cfg.length

        def enter(carry):
            first, row, t, logits, cache, said = carry
            rows = first + jnp.arange(new)
            free = jnp.argsort(row < N, stable=True)[:new]  # a slot of row N is one of nobody
            free = jnp.where(rows < N, free, slots)  # and beyond the last, where nothing is put
            prompt = jax.tree.map(lambda x: x[jnp.minimum(rows, N - 1)], prompts)
            fresh = lm.prefill_fn(ready, prompt.tokens, prompt.attention_mask, cfg.length)
            put = lambda x, value: x.at[free].set(value, mode="drop")
            cache, logits = lm.insert_fn(cache, fresh[1], free), put(logits, fresh[0])
            return first + new, put(row, rows), put(t, 0), logits, cache, said

        def more(carry):
            first, row, *_ = carry
            alive = jnp.sum(row < N)
            return alive > jnp.where(first < N, slots - new, new)

        def say(carry):
            first, row, t, logits, cache, said = carry
            token, logprob = choose(cfg, keys[jnp.minimum(row, N - 1)], logits, t)
            values = token.astype(prompts.tokens.dtype), True, logprob
            said = tuple(
                x.at[row, t].set(y, mode="drop") for x, y in zip(said, values, strict=True)
            )
            ends = is_stop(token, cfg.stop) & (t >= cfg.stop_after) | (t + 1 >= cfg.length)
            logits, cache = lm.decode_fn(ready, cache, token)
            cache = cache._replace(column=cache.column % columns)
            return first, jnp.where(ends, N, row), t + 1, logits, cache, said

        like: Any = jax.eval_shape(
            lambda p: lm.prefill_fn(params, p.tokens, p.attention_mask, cfg.length),
            jax.tree.map(lambda x: jnp.zeros((slots, *x.shape[1:]), x.dtype), prompts),
        )
        logits, cache = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        cache = cache._replace(column=jnp.int32(prompts.tokens.shape[1]))
        nobody = jnp.full(slots, N, jnp.int32)
        carry = jnp.int32(0), nobody, jnp.zeros_like(nobody), logits, cache, nothing(prompts)
        carry = jax.lax.while_loop(
            lambda carry: carry[0] < N,
            lambda carry: jax.lax.while_loop(more, say, enter(carry)),
            carry,
        )
        first, *rows, said = carry
        left = jnp.argsort(rows[0] == N, stable=True)[:new]
        rows = jax.tree.map(lambda x: x[left] if x.ndim else x, rows)
        anyone = lambda carry: jnp.any(carry[1] < N)
        *_, said = jax.lax.while_loop(anyone, say, (first, *rows, said))
        return said

    return sample
