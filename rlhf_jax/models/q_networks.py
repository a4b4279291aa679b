"""Values of every next token, read by heads on a language model's trunk, and the policy that they guide.

q_fn(params, target, tokens, attention_mask, *, last)
    -> q, target_q, logprobs [K, B, last], values [B, last]
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.models.networks import LanguageModel, Policy, headless, scalar_head
from rlhf_jax.ops.logprobs import of_logits


class QNetwork(NamedTuple):
    """Q of every next token and V of every prefix, and functions that decode with their difference as
    logits.

    `logits_fn`, `prefill_fn` and `decode_fn` are those of a Policy, and return min_k Q_k - V, float32 [...,
    V].
    """

    init: Callable  # init(key, trunk) -> params
    q_fn: Callable
    logits_fn: Callable
    prefill_fn: Callable
    decode_fn: Callable
    ready_fn: Callable


def q_network(lm: LanguageModel, heads: int = 2) -> QNetwork:
    """`heads` Q heads and a value head on one trunk, all linear; params are {"trunk", "q", "value"}.

    `q_fn(params, target, ...)` evaluates Q at the tokens of the right end with the heads of `params["q"]`
    and of `target`, in one pass of the trunk, and their log-probabilities under softmax(Q). Linear heads
    suffice because the trunk is trained with them (Snell et al., 2023, have one hidden layer).

    `init(key, trunk)` takes a language model's parameters. V starts at zero and the Q heads near it, with
    standard deviation 0.1 / sqrt(D + 1), so that they differ and a token absent from every log is worth
    about nothing.
    """
    linear = lambda head, hidden: scalar_head(hidden, head["head"]) + head["bias"]

    def init(key, trunk):
        vocabulary = trunk["embedding"]["embedding"].shape[0]
        start = jax.random.normal(key, (heads, lm.d_model, vocabulary))
        return {
            "trunk": headless(trunk),
            "q": {"head": 0.1 * (lm.d_model + 1) ** -0.5 * start, "bias": jnp.zeros((heads,))},
            "value": {"head": jnp.zeros((lm.d_model,)), "bias": jnp.float32(0.0)},
        }

    def hidden_of(params, tokens, attention_mask, last):
        return lm.hidden_fn(params["trunk"], tokens, attention_mask)[:, -last - 1 : -1]

    def q_fn(params, target, tokens, attention_mask, *, last):
        hidden, said = hidden_of(params, tokens, attention_mask, last), tokens[:, -last:]

        def of_tokens(head):
            q = linear(head, hidden)  # [B, last, V]
            return jnp.take_along_axis(q, said[..., None], axis=-1)[..., 0], of_logits(q, said)[0]

        q, logprobs = jax.vmap(of_tokens)(params["q"])
        target_q, _ = jax.vmap(of_tokens)(target)
        return q, target_q, logprobs, linear(params["value"], hidden)

    def advantages(params, hidden):
        q = jax.vmap(linear, in_axes=(0, None))(params["q"], hidden)  # [K, ..., V]
        return jnp.min(q, axis=0) - linear(params["value"], hidden)[..., None]

    def logits_fn(params, tokens, attention_mask, *, last):
        return advantages(params, hidden_of(params, tokens, attention_mask, last))

    def prefill_fn(params, tokens, attention_mask, room):
        read = partial(advantages, params)
        return lm.prefill_fn(params["trunk"], tokens, attention_mask, room, read=read)

    def decode_fn(params, cache, tokens):
        return lm.decode_fn(params["trunk"], cache, tokens, read=partial(advantages, params))

    def ready_fn(params):
        return params | {"trunk": lm.ready_fn(params["trunk"])}

    return QNetwork(init, q_fn, logits_fn, prefill_fn, decode_fn, ready_fn)


def guided(lm: Policy | LanguageModel, q: Policy | QNetwork) -> Policy:
    """log pi_behaviour(a | s) + beta (min_k Q_k(s, a) - V(s)), as a Policy (Snell et al., 2023).

    Params are {"policy": of `lm`, "q": of `q`, "beta": a scalar}, as `ilql.guided_params` makes them; `q`
    is anything whose logits are advantages. Each has its own cache.
    """

    def add(params, logits, advantages):
        return jax.nn.log_softmax(logits.astype(jnp.float32)) + params["beta"] * advantages

    def logits_fn(params, tokens, attention_mask, *, last):
        return add(
            params,
            lm.logits_fn(params["policy"], tokens, attention_mask, last=last),
            q.logits_fn(params["q"], tokens, attention_mask, last=last),
        )

    def policy_fn(params, tokens, attention_mask, *, last, temperature=1.0):
        logits = logits_fn(params, tokens, attention_mask, last=last)
        return of_logits(logits / temperature, tokens[:, -last:])

    def prefill_fn(params, tokens, attention_mask, room):
        logits, cache = lm.prefill_fn(params["policy"], tokens, attention_mask, room)
        advantages, q_cache = q.prefill_fn(params["q"], tokens, attention_mask, room)
        return add(params, logits, advantages), (cache, q_cache)

    def decode_fn(params, cache, tokens):
        logits, cache_of_policy = lm.decode_fn(params["policy"], cache[0], tokens)
        advantages, cache_of_q = q.decode_fn(params["q"], cache[1], tokens)
        return add(params, logits, advantages), (cache_of_policy, cache_of_q)

    def ready_fn(params):
        return params | {"policy": lm.ready_fn(params["policy"]), "q": q.ready_fn(params["q"])}

    return Policy(policy_fn, prefill_fn, decode_fn, logits_fn, ready_fn)
