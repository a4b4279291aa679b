"""Bare JAX: Llama's forms written out. Generation is one prefill and a while loop over a cache.

No library but JAX (and optax's Adam): what a loop of this kind can do on a machine, and no more. It stops
once all rows ended. The training step keeps its stream [B, L, D], and its layers apart and unrolled.
"""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

from bench import works
from bench.sides import protocol


def norm(x, scale, eps):
    """x / rms(x) times `scale`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rotate(x, positions, theta):
    """Rotary positions [L] of x [B, L, H, h]."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * theta ** (-jnp.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def forward(weights, tokens, cache, column, *, config):
    """(logits after the last of `tokens` [B, n], which stand from `column` on, and the cache with them)."""
    (B, n), heads, eps = tokens.shape, config["num_attention_heads"], config["rms_norm_eps"]
    at = column + jnp.arange(n)
    x, kept = weights["model.embed_tokens.weight"][tokens].reshape(B * n, -1), []
    split = lambda y: y.reshape(B, n, heads, -1)
    for i, (keys, values) in enumerate(cache):
        w = lambda name: weights[f"model.layers.{i}.{name}.weight"]  # noqa: B023
        y = norm(x, w("input_layernorm"), eps)
        q, k, v = (split(y @ w(f"self_attn.{name}_proj")) for name in "qkv")
        q, k = (rotate(z, at, config["rope_theta"]) for z in (q, k))
        keys = jax.lax.dynamic_update_slice(keys, k, (0, column, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v, (0, column, 0, 0))
        products = jnp.einsum("bnhd,bshd->bhns", q, keys) * q.shape[-1] ** -0.5
        seen = jnp.arange(keys.shape[1])[None] <= at[:, None]
        shares = jax.nn.softmax(jnp.where(seen, products, -jnp.inf), axis=-1)
        y = jnp.einsum("bhns,bshd->bnhd", shares, values).reshape(B * n, -1)
        x = x + y @ w("self_attn.o_proj")
        y = norm(x, w("post_attention_layernorm"), eps)
        y = jax.nn.silu(y @ w("mlp.gate_proj")) * (y @ w("mlp.up_proj"))
        x = x + y @ w("mlp.down_proj")
        kept.append((keys, values))
    last = x.reshape(B, n, -1)[:, -1]
    return norm(last, weights["model.norm.weight"], eps) @ weights["lm_head.weight"], kept


def loss_of(weights, tokens, *, config):
    """Mean cross entropy of all tokens [B, L] but the first, every product on [B, L, D]."""
    (B, n), heads, eps = tokens.shape, config["num_attention_heads"], config["rms_norm_eps"]
    x, at = weights["model.embed_tokens.weight"][tokens], jnp.arange(n)
    for i in range(config["num_hidden_layers"]):
        w = lambda name: weights[f"model.layers.{i}.{name}.weight"]  # noqa: B023
        y = norm(x, w("input_layernorm"), eps)
        q, k, v = ((y @ w(f"self_attn.{name}_proj")).reshape(B, n, heads, -1) for name in "qkv")
        q, k = (rotate(z, at, config["rope_theta"]) for z in (q, k))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, n, -1)
        x = x + y @ w("self_attn.o_proj")
        y = norm(x, w("post_attention_layernorm"), eps)
        y = jax.nn.silu(y @ w("mlp.gate_proj")) * (y @ w("mlp.up_proj"))
        x = x + y @ w("mlp.down_proj")
    logits = norm(x[:, :-1], weights["model.norm.weight"], eps) @ weights["lm_head.weight"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def learning(weights, config, tokens):
    """The work that is one gradient step on all `tokens`; what it says is the loss."""
    tx = optax.chain(optax.clip_by_global_norm(works.CLIP), optax.adam(works.LR, eps=1e-5))

    @partial(jax.jit, donate_argnums=0)
    def step(state):
        loss, grads = jax.value_and_grad(loss_of)(state[0], tokens, config=config)
        updates, moments = tx.update(grads, state[1])
        return (optax.apply_updates(state[0], updates), moments), loss

    state = weights, tx.init(weights)

    def once():
        nonlocal state
        state, loss = jax.block_until_ready(step(state))
        return float(loss), {}

    return once


def generate(weights, prompts, rng, *, length, stops, greedy, config):
    """Tokens [B, length]."""
    B, P = prompts.shape
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    room = jnp.zeros((B, P + length, heads, config["hidden_size"] // heads))
    logits, cache = forward(weights, prompts, [(room, room)] * layers, 0, config=config)

    def say(carry):
        t, alive, logits, cache, said = carry
        draw = lambda: jax.random.categorical(jax.random.fold_in(rng, t), logits)
        token = jnp.argmax(logits, axis=-1) if greedy else draw()
        said = jax.lax.dynamic_update_slice(said, token[:, None].astype(said.dtype), (0, t))
        alive &= ~jnp.isin(token, stops)
        logits, cache = forward(weights, token[:, None], cache, P + t, config=config)
        return t + 1, alive, logits, cache, said

    start = 0, jnp.ones(B, bool), logits, cache, jnp.zeros((B, length), prompts.dtype)
    more = lambda carry: (carry[0] < length) & jnp.any(carry[1])
    return jax.lax.while_loop(more, say, start)[-1]


def read(folder: pathlib.Path) -> tuple[dict, dict]:
    """(the weights, matrices as they are multiplied from the right, and config.json)."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    found = load_file(folder / "model.safetensors")
    if config["tie_word_embeddings"]:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    turn = lambda name, x: x.T.copy() if name.endswith(("proj.weight", "lm_head.weight")) else x
    return {name: jnp.asarray(turn(name, x)) for name, x in found.items()}, config


def main():
    """Serves what the parent asks for."""
    asked = protocol.settings()
    work = works.Work(**asked.work)
    weights, config = read(pathlib.Path(asked.folder) / "policy")
    prompts = works.tokens(asked.name, work, config["vocab_size"])
    if asked.name == "sft":
        protocol.serve(learning(weights, config, jnp.asarray(prompts)))
    stops = works.stops(asked.name, work, config["vocab_size"])
    run = jax.jit(
        partial(
            generate,
            length=work.response,
            stops=jnp.array(stops or [-1]),
            greedy=asked.name == "generate",
            config=config,
        )
    )
    batches = [jnp.asarray(prompts[i : i + work.rows]) for i in range(0, len(prompts), work.rows)]
    key, step = jax.random.key(0), iter(range(10**9))

    def once():
        rng = jax.random.fold_in(key, next(step))
        parts = [run(weights, x, jax.random.fold_in(rng, i)) for i, x in enumerate(batches)]
        said = np.concatenate(jax.device_get(parts))
        return said.tolist(), {"units": int(works.lengths(said, stops).sum())}

    protocol.serve(once)


if __name__ == "__main__":
    main()
