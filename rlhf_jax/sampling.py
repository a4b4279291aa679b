"""Autoregressive sampling: one prefill, then a compiled loop over a cache until every row has ended."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.padding import is_stop


@dataclass(frozen=True)
class SampleConfig:
    """How responses are drawn."""

    length: int = 24
    """Most tokens of a response, EOS included (T)."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (and reports its log-probability at 1)."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0 among all. Not for on-policy training."""
    top_p: float = 1.0
    """Draw among the fewest tokens whose probability reaches p; 1 among all. Not for on-policy training."""
    min_length: int = 0
    """Tokens before a stop token may be drawn. Not for on-policy training."""
    stop: tuple[int, ...] = ()
    """Tokens that end a response; experiments put the tokenizer's EOS here."""
    stop_after: int = 0
    """Columns in which a stop token does not yet end the response (Ziegler et al., 2019: 16 of 24)."""
    pad: int = 0
    """Fills the columns after the end; masked wherever it stands."""

    def __post_init__(self):
        for name, ok, want in [
            ("length", self.length > 0, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_length", 0 <= self.min_length <= self.length, "between 0 and length"),
        ]:
            if not ok:
                raise ValueError(f"sample.{name} = {getattr(self, name)}: it must be {want}")


def check_on_policy(cfg: SampleConfig):
    """Raises ValueError where the log-probabilities of samples would not be the policy's own."""
    for name, neutral in [("top_k", 0), ("top_p", 1.0), ("min_length", 0)]:
        if getattr(cfg, name) != neutral:
            raise ValueError(
                f"sample.{name} = {getattr(cfg, name)} truncates the policy, so its log-probabilities "
                f"would not be those it is trained with: set it to {neutral}"
            )
    if cfg.temperature == 0:
        raise ValueError(
            "sample.temperature = 0 draws nothing: on-policy training needs it above 0"
        )


def truncate(logits, cfg: SampleConfig):
    """Logits [B, V] with -inf outside the top k, then outside the top p of what is left."""
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


def make_sample(lm, cfg: SampleConfig):
    """`sample(params, prompts, rng) -> Samples` of T = cfg.length columns, from `lm`'s prefill and decode.

    The noise of a token depends on `rng`, its prompt's `index`, its `draw` and its place in the
    response alone: neither neighbours, nor batch size, padding or devices change what a row samples.
    """

    def sample(params, prompts: Prompts, rng) -> Samples:
        B = len(prompts.tokens)
        fold = jax.vmap(jax.random.fold_in)
        rows = fold(jnp.broadcast_to(rng, (B,)), prompts.index)
        rows = fold(rows, prompts.draw)

        def choose(logits, t):
            """One token a row [B], and its log-probability under what was sampled from."""
            logits = logits.astype(jnp.float32) / (cfg.temperature or 1.0)
            if cfg.min_length:
                ends = is_stop(jnp.arange(logits.shape[-1]), cfg.stop)
                logits = jnp.where(ends[None] & (t < cfg.min_length), -jnp.inf, logits)
            logprobs = jax.nn.log_softmax(truncate(logits, cfg))
            if cfg.temperature == 0:
                token = jnp.argmax(logprobs, axis=-1)
            else:
                keys = jax.vmap(jax.random.fold_in, (0, None))(rows, t)
                token = jax.vmap(jax.random.categorical)(keys, logprobs)
            return token, jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]

        def more(carry):
            t, alive, *_ = carry
            return (t < cfg.length) & jnp.any(alive)

        def say(carry):
            t, alive, logits, cache, tokens, mask, logprobs = carry
            token, logprob = choose(logits, t)
            token = jnp.where(alive, token, cfg.pad)
            put = lambda x, column: jax.lax.dynamic_update_slice(x, column[:, None], (0, t))
            tokens, mask = put(tokens, token), put(mask, alive)
            logprobs = put(logprobs, jnp.where(alive, logprob, 0.0))
            ends = is_stop(token, cfg.stop) & (t >= cfg.stop_after)
            logits, cache = lm.decode_fn(ready, cache, token)
            return t + 1, alive & ~ends, logits, cache, tokens, mask, logprobs

        logits, cache = lm.prefill_fn(params, prompts.tokens, prompts.attention_mask, cfg.length)
        ready, shape = lm.ready_fn(params), (B, cfg.length)
        tokens = jnp.full(shape, cfg.pad, prompts.tokens.dtype)
        mask, logprobs = jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32)
        carry = jnp.int32(0), jnp.ones(B, bool), logits, cache, tokens, mask, logprobs
        *_, tokens, mask, logprobs = jax.lax.while_loop(more, say, carry)
        return Samples(
            tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
            attention_mask=jnp.concatenate([prompts.attention_mask, mask], axis=1),
            mask=mask,
            logprobs=logprobs,
        )

    return sample
