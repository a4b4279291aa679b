"""The pure functions that algorithms receive; these ask for log-probabilities, not for logits.

    policy_fn(params, tokens, attention_mask, *, last)       -> logprobs, entropy           [B, last]
    actor_critic_fn(params, tokens, attention_mask, *, last) -> logprobs, entropy, values   [B, last]
    reward_fn(params, tokens, attention_mask)            -> scores                          [B]
    prefill_fn(params, tokens, attention_mask, room)     -> logits [B, V], cache
    ready_fn(params)         -> parameters in the layout that decode_fn reads fastest, for many tokens
    decode_fn(params, cache, tokens [B])                 -> logits [B, V], cache
    logits_fn(params, tokens, attention_mask, *, last)   -> logits                          [B, last, V]

`attention_mask` is True for real tokens, or holds segment numbers where rows are packed (`ops/padding.py`):
`prefill_fn` refuses those, and `reward_fn` reads one score per row. In a packed row the log-probability of a
segment's first token is meaningless, because no token precedes it.

`last` is the number of columns at the right end to evaluate. The policies made here also take a
`temperature` that divides their logits, 1 by default; `LanguageModel.at` and `at_temperature` bind it, and
no algorithm passes one.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.models import decoding, transformer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.logprobs import of_logits, token_logprobs
from rlhf_jax.ops.padding import last_real, refuse_segments


class Policy(NamedTuple):
    """Functions of a language model that algorithms and `sampling.make_sample` need."""

    policy_fn: Callable
    prefill_fn: Callable
    decode_fn: Callable
    # logits of all tokens; losses use policy_fn, which needs less memory
    logits_fn: Callable
    ready_fn: Callable = lambda params: params


class LanguageModel(NamedTuple):
    """A Policy with initial parameters and hidden states that heads can read."""

    init: Callable  # init(key) -> params
    policy_fn: Callable
    prefill_fn: Callable
    decode_fn: Callable
    hidden_fn: Callable  # hidden_fn(params, tokens, attention_mask) -> [B, L, D]
    read_fn: Callable  # read_fn(params, hidden, tokens, *, last) -> results of policy_fn
    d_model: int
    logits_fn: Callable
    ready_fn: Callable = lambda params: params
    insert_fn: Callable | None = (
        None  # insert_fn(cache, prefilled cache, rows) -> cache; see SampleConfig
    )

    def at(self, temperature: float) -> "LanguageModel":
        """The model with policy logits divided by `temperature`; the sampler has its own setting for it."""
        bound = {
            name: at_temperature(getattr(self, name), temperature)
            for name in ("policy_fn", "read_fn")
        }
        return self._replace(**bound)


def at_temperature(fn: Callable, temperature: float) -> Callable:
    """A policy_fn or an actor_critic_fn of this file with logits divided by `temperature`."""
    return partial(fn, temperature=temperature)


class Network(NamedTuple):
    """A pure function and its initial parameters."""

    fn: Callable
    init: Callable


def check_backend(cfg: ModelConfig):
    """Raises ValueError for cuDNN attention without a GPU."""
    if cfg.attention == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(
            f'model.attention = "cudnn" needs an NVIDIA GPU, and this is a {jax.default_backend()}: '
            'use "xla"'
        )


@lru_cache(16)
def language_model(cfg: ModelConfig) -> LanguageModel:
    """The functions of one transformer, whose parameters are a nested dict. Raises as `check_backend`.

    Equal settings give the same functions, which are traced once.
    """
    check_backend(cfg)
    model = transformer.Transformer(cfg)

    def init(key):
        example = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        return model.init(key, *example)["params"]

    @jax.jit  # traced once for all programs that read such a trunk
    def trunk(params, tokens, attention_mask):
        return model.apply({"params": params}, tokens, attention_mask, method="hidden")[0]

    def hidden_fn(params, tokens, attention_mask):
        return trunk(headless(params), tokens, attention_mask)

    def logits_fn(params, tokens, attention_mask, *, last):
        hidden = hidden_fn(params, tokens, attention_mask)[:, -last - 1 : -1]
        return transformer.unembedding(cfg, params)(hidden)

    def read_fn(params, hidden, tokens, *, last, temperature=1.0):
        return token_logprobs(
            lambda table, hidden: transformer.unembedding(cfg, table)(hidden),
            transformer.table_of(cfg, params),
            hidden[:, -last - 1 : -1],  # the positions that predict the last tokens
            tokens[:, -last:],
            temperature=temperature,
        )

    def policy_fn(params, tokens, attention_mask, *, last, temperature=1.0):
        hidden = hidden_fn(params, tokens, attention_mask)
        return read_fn(params, hidden, tokens, last=last, temperature=temperature)

    return LanguageModel(
        init=init,
        policy_fn=policy_fn,
        prefill_fn=partial(decoding.prefill, cfg),
        decode_fn=partial(decoding.decode, cfg),
        hidden_fn=hidden_fn,
        read_fn=read_fn,
        d_model=cfg.d_model,
        logits_fn=logits_fn,
        ready_fn=partial(decoding.ready, cfg),
        insert_fn=decoding.insert,
    )


class UncachedPrefix(NamedTuple):
    """The `cache` of a model without one: all tokens so far, in room for all that follow."""

    tokens: Int[Array, "B S"]
    attention_mask: Bool[Array, "B S"]
    column: Int[Array, ""]


def from_logits(apply: Callable) -> Policy:
    """A Policy from any `apply(params, tokens, attention_mask) -> logits [B, L, V]`; slow, because it has
    no cache."""

    def logits_fn(params, tokens, attention_mask, *, last):
        return apply(params, tokens, attention_mask)[:, -last - 1 : -1]

    def policy_fn(params, tokens, attention_mask, *, last, temperature=1.0):
        logits = logits_fn(params, tokens, attention_mask, last=last)
        return of_logits(logits / temperature, tokens[:, -last:])

    def prefill_fn(params, tokens, attention_mask, room):
        refuse_segments(attention_mask, "responses follow one prompt in each row")
        grow = lambda x: jnp.pad(x, ((0, 0), (0, room)))
        logits = apply(params, tokens, attention_mask)[:, -1]
        return logits, UncachedPrefix(
            grow(tokens), grow(attention_mask), jnp.int32(tokens.shape[1])
        )

    def decode_fn(params, cache, tokens):
        here = (jnp.arange(cache.tokens.shape[1]) == cache.column)[None]
        cache = UncachedPrefix(
            jnp.where(here, tokens[:, None], cache.tokens),
            cache.attention_mask | here,
            cache.column + 1,
        )
        logits = apply(params, cache.tokens, cache.attention_mask)
        return jax.lax.dynamic_index_in_dim(logits, cache.column - 1, 1, keepdims=False), cache

    return Policy(policy_fn, prefill_fn, decode_fn, logits_fn)


def with_values(policy_fn: Callable, values_fn: Callable) -> Callable:
    """An actor_critic_fn of two trees, params {"policy", "value"}.

    `values_fn(params["value"], tokens, attention_mask) -> [B, L]`: column t holds the value before the
    token in column t + 1.
    """

    def actor_critic_fn(params, tokens, attention_mask, *, last, **kinds):
        logprobs, entropy = policy_fn(params["policy"], tokens, attention_mask, last=last, **kinds)
        values = values_fn(params["value"], tokens, attention_mask)
        return logprobs, entropy, values[:, -last - 1 : -1].astype(jnp.float32)

    return actor_critic_fn


def headless(params):
    """A language model's parameters without the unembedding, which other heads do not read."""
    return {name: x for name, x in params.items() if name != "unembedding"}


def scalar_head(hidden, head):
    """hidden [..., D] times head [D], in float32."""
    return hidden.astype(jnp.float32) @ head.astype(jnp.float32)


def actor_critic(lm: LanguageModel, value: str = "separate") -> Network:
    """Policy and critic; params are {"policy", "value"} for both kinds of critic, so samplers need not know
    the kind.

    "separate": a trunk of its own; `init(policy_params, reward_params=None)` copies it from the policy, or
    from a reward model with its head. "shared": a head on the policy's trunk, with one pass for both. A
    head without given parameters starts at zero (Ziegler et al., 2019). No array is copied: copy before you
    donate. The policy has the temperature of `lm.at`.
    """
    zero = lambda: jnp.zeros((lm.d_model,), jnp.float32)

    def separate_values(params, tokens, attention_mask):
        hidden = lm.hidden_fn(params["trunk"], tokens, attention_mask)
        return scalar_head(hidden, params["head"]) + params["bias"]

    def separate_init(policy_params, reward_params=None):
        start = reward_params or {
            "trunk": headless(policy_params),
            "head": zero(),
            "bias": jnp.float32(0.0),
        }
        return {"policy": policy_params, "value": start}

    def shared_fn(params, tokens, attention_mask, *, last, **kinds):
        hidden = lm.hidden_fn(params["policy"], tokens, attention_mask)
        logprobs, entropy = lm.read_fn(params["policy"], hidden, tokens, last=last, **kinds)
        values = (
            scalar_head(hidden[:, -last - 1 : -1], params["value"]["head"])
            + params["value"]["bias"]
        )
        return logprobs, entropy, values

    def shared_init(policy_params, reward_params=None):
        if reward_params is not None:
            raise ValueError(
                'value = "shared" has no trunk of its own to start from the reward model: '
                'use value = "separate"'
            )
        return {"policy": policy_params, "value": {"head": zero(), "bias": jnp.float32(0.0)}}

    if value == "separate":
        return Network(fn=with_values(lm.policy_fn, separate_values), init=separate_init)
    if value == "shared":
        return Network(fn=shared_fn, init=shared_init)
    raise ValueError(f'value = "{value}" is no kind of critic: use "separate" or "shared"')


def reward_model(lm: LanguageModel) -> Network:
    """A scalar read at the last real token; params are {"trunk", "head" [D], "bias"}.

    `init(key, trunk)` takes a language model's parameters; the head is normal with standard deviation 1 /
    sqrt(D + 1) (Ziegler et al., 2019, in code; the text of Stiennon et al., 2020, lacks the root). `bias`
    shifts all scores and has no gradient; `reward_model.centre` sets it. No array of the trunk is copied:
    copy before you donate.
    """

    def init(key, trunk):
        return {
            "trunk": headless(trunk),
            "head": jax.random.normal(key, (lm.d_model,)) * (lm.d_model + 1) ** -0.5,
            "bias": jnp.float32(0.0),
        }

    def reward_fn(params, tokens, attention_mask):
        hidden = lm.hidden_fn(params["trunk"], tokens, attention_mask)
        last = hidden[jnp.arange(len(tokens)), last_real(attention_mask)]  # [B, D]
        return scalar_head(last, params["head"]) + jax.lax.stop_gradient(params["bias"])

    return Network(fn=reward_fn, init=init)
