"""One decoder-only transformer in Flax Linen.

The residual stream is flat, [B L, D], because XLA is fastest at matrix products over two axes. Training
scans the layers, so compile time does not grow with depth; `decoding` unrolls them.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.models import sight
from rlhf_jax.models.attention import (
    LayerCache,
    attend,
    attend_cached,
    cached,
    rotary_speeds,
    rotate,
    softcapped,
)
from rlhf_jax.models.blockwise import attend_by_blocks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops import few_rows
from rlhf_jax.ops.layout import apart, gathered, spread, whole
from rlhf_jax.ops.padding import AttentionMask, position_ids, refuse_segments, right_pad

ACTIVATIONS = {
    "gelu": nn.gelu,
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "swiglu": nn.silu,
    "geglu": nn.gelu,
}


def check_context(cfg: ModelConfig, length: int):
    """Raises ValueError for sequences longer than the model's positions."""
    if length > cfg.context:
        raise ValueError(
            f"a sequence of {length} tokens (prompt and response) does not fit model.context = "
            f"{cfg.context}: shorten it or raise model.context"
        )


class OffsetRMSNorm(nn.Module):
    """x / rms(x) times (offset + scale), in float32; the scale starts at 1 - offset."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x):  # noqa: D102
        cfg, y = self.cfg, x.astype(jnp.float32)
        start = nn.initializers.constant(1 - cfg.norm_offset)
        scale = self.param("scale", start, x.shape[-1:], cfg.param_dtype)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + cfg.norm_eps)
        scale = cfg.norm_offset + scale.astype(jnp.float32)
        return (y * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(cfg.dtype)


def norm(cfg: ModelConfig, name: str | None = None):
    """The family's normalisation, with float32 statistics."""
    if cfg.norm_offset:
        return OffsetRMSNorm(cfg, name=name)
    kinds: dict[str, Any] = dict(
        epsilon=cfg.norm_eps, dtype=cfg.dtype, param_dtype=cfg.param_dtype, name=name
    )
    return (
        nn.RMSNorm(**kinds) if cfg.norm == "rmsnorm" else nn.LayerNorm(use_bias=cfg.bias, **kinds)
    )


def turns(cfg: ModelConfig, width: int, local) -> tuple[Array, Any]:
    """Rotary speeds and gain of a head of `width`, in a local or a global layer."""
    turned = int(width * cfg.rotary_share)
    whole = rotary_speeds(turned, cfg.rope_theta, cfg.rope_scaling), cfg.rope_scaling.gain
    if not cfg.rope_theta_local:
        return whole
    near = rotary_speeds(turned, cfg.rope_theta_local), 1.0
    return jnp.where(local, near[0], whole[0]), jnp.where(local, near[1], whole[1])


class Dense(nn.Module):
    """A projection, plus the low-rank one of `models.lora` where the parameters hold it.

    Initial weights are normal with standard deviation `scale` / sqrt(input width).
    """

    cfg: ModelConfig
    width: int
    scale: float = 1.0
    bias: bool = False  # adds a bias even where `cfg.bias` is False
    stationary: bool = False  # rows move to the weights of `decoding.ready`

    @nn.compact
    def __call__(self, x):  # noqa: D102
        cfg, move = self.cfg, gathered if self.stationary else spread
        x = move(x.astype(cfg.dtype))
        if self.has_variable("params", "transposed"):  # by `decoding.ready`
            y = few_rows.product(x, self.get_variable("params", "transposed").astype(cfg.dtype))
        else:
            init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "normal")
            kernel = self.param("kernel", init, (x.shape[-1], self.width), cfg.param_dtype)
            y = x @ kernel.astype(cfg.dtype)
        y = move(y)
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            y += x @ a.astype(cfg.dtype) @ b.astype(cfg.dtype)
        if cfg.bias or self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.width,), cfg.param_dtype)
            y += jnp.broadcast_to(bias.astype(cfg.dtype), y.shape)
        return y


class Block(nn.Module):
    """Attention and MLP around a flat residual stream."""

    cfg: ModelConfig
    keep: bool = False  # return this pass's keys and values, for a cache
    stationary: bool = False

    @nn.compact
    def __call__(self, x, positions, masks, local, cache=None, column=0):
        """(x [B L, D], this layer's keys and values, or the cache with those of L tokens from `column` on).

        `masks` are those of global and of local layers, or one for all; `local` is True for a local layer.
        """
        cfg, (B, L) = self.cfg, positions.shape
        kv_heads, width = cfg.kv_heads or cfg.heads, cfg.head_dim or cfg.d_model // cfg.heads
        to_residual = (2 * cfg.layers) ** -0.5

        dense = partial(Dense, cfg, stationary=self.stationary)
        before = lambda name, x: norm(cfg, name)(x) if cfg.norm_place != "after" else x
        after = lambda name, y: norm(cfg, name)(y) if cfg.norm_place != "before" else y

        x = whole(x) if self.stationary else x
        y = before("attention_norm", x)

        def heads(name, n, normed):
            z = dense(n * width, bias=cfg.qkv_bias, name=name)(y)
            if normed and cfg.qk_norm == "all":
                z = norm(cfg, f"{name}_norm")(z)
            z = apart(z.reshape(B, L, -1)) if self.stationary else z  # as the cache lies
            z = z.reshape(B, L, n, width)
            return norm(cfg, f"{name}_norm")(z) if normed and cfg.qk_norm == "head" else z

        q, k = heads("query", cfg.heads, True), heads("key", kv_heads, True)
        v = heads("value", kv_heads, False)
        if cfg.positions == "rotary":
            q, k = (rotate(z, positions, *turns(cfg, width, local)) for z in (q, k))
        mask = sight.chosen(masks, local)
        how: dict[str, Any] = dict(scale=cfg.attention_scale, softcap=cfg.attention_softcap)
        keep, by_blocks = self.keep or cache is not None, isinstance(mask, sight.Sight)
        kept: Any = cached(k, v) if keep or by_blocks else None
        if cache is not None:
            put = jax.lax.dynamic_update_slice
            keys = put(cache.keys, kept.keys, (0, 0, 0, column))
            kept = LayerCache(keys, put(cache.values, kept.values, (0, 0, column, 0)))
        attended: Array
        if by_blocks:
            attended = attend_by_blocks(q, kept, mask, cfg.attention_scale, cfg.attention_softcap)
        elif cache is None:
            how |= {} if keep else dict(window=cfg.window, implementation=cfg.attention)
            attended = attend(q, k, v, mask, **how)
        else:
            attended = attend_cached(q, kept, mask, **how)
        attended = attended.reshape(B * L, -1)
        attended = dense(cfg.d_model, to_residual, name="attention_out")(attended)
        attended = after("attention_after_norm", attended)

        if not cfg.parallel_residual:
            x = x + attended
        y = before("mlp_norm", x)
        d_mlp = cfg.d_mlp or 4 * cfg.d_model
        act = ACTIVATIONS[cfg.activation]
        if cfg.activation in ("swiglu", "geglu"):
            y = act(dense(d_mlp, name="gate")(y)) * dense(d_mlp, name="up")(y)
        else:
            y = act(dense(d_mlp, name="up")(y))
        y = dense(cfg.d_model, to_residual, name="down")(y)
        y = after("mlp_after_norm", y)
        x = x + y if not cfg.parallel_residual else x + attended + y
        return x, kept if keep else None


class Transformer(nn.Module):
    """tokens -> hidden states -> logits. With `keep`, `hidden` also returns all layers' keys and values."""

    cfg: ModelConfig
    keep: bool = False
    stationary: bool = False

    def setup(self):  # noqa: D102
        cfg = self.cfg
        kinds: dict[str, Any] = dict(
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            embedding_init=nn.initializers.normal(cfg.d_model**-0.5),
        )
        self.embedding = nn.Embed(cfg.vocab_size, cfg.d_model, **kinds)
        if cfg.positions == "learned":
            self.position_embedding = nn.Embed(cfg.context, cfg.d_model, **kinds)
        # the backward pass keeps the results of projections, or nothing, and recomputes the rest
        kept = None if cfg.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        self.blocks = nn.scan(
            nn.remat(Block, prevent_cse=False, policy=kept),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=cfg.layers,
            check_constancy_invariants=False,  # which would trace the block twice
        )(cfg, self.keep)
        self.final_norm = norm(cfg)
        if not cfg.tied:
            self.unembedding = nn.Dense(
                cfg.vocab_size,
                use_bias=False,
                dtype=cfg.dtype,
                param_dtype=cfg.param_dtype,
                kernel_init=nn.initializers.lecun_normal(),
                dot_general=partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
            )

    def embed(self, tokens, positions):
        """Flat stream [B L, D] of token (and learned position) embeddings."""

        def look_up(table, at):
            if self.stationary:
                return gathered(table.embedding.astype(self.cfg.dtype)[gathered(at)])
            return spread(whole(table.embedding).astype(self.cfg.dtype)[at])

        x = look_up(self.embedding, tokens)
        if self.cfg.embedding_scale != 1:
            x = x * jnp.asarray(self.cfg.embedding_scale, x.dtype)
        if self.cfg.positions == "learned":
            x = x + look_up(self.position_embedding, positions)
        move = gathered if self.stationary else spread
        return move(x.reshape(-1, self.cfg.d_model))

    def hidden(
        self, tokens: Int[Array, "B L"], attention_mask: AttentionMask, blocks=None
    ) -> tuple[Float[Array, "B L D"], Any]:
        """Final hidden states, and with `keep` all layers' keys and values, stacked [layers, ...].

        `blocks` replaces the scan over layers, and its second result is returned. Raises ValueError where the
        mask holds segment numbers and cuDNN is to attend.
        """
        B, L = tokens.shape
        check_context(self.cfg, L)
        tokens = jnp.where(attention_mask, tokens, 0)  # token ids of padding are never looked up
        moved = self.cfg.attention == "cudnn" and not self.keep
        # What stands on padding before a row's first real token sees itself alone, at position 0: where a
        # prompt is empty, that is what predicts the response's first token, in `prefill` as here
        if moved:  # it wants real tokens first: each goes to the column of its position, and back
            refuse_segments(
                attention_mask, 'model.attention = "cudnn" does not take them ("xla" does)'
            )
            count = jnp.sum(attention_mask, axis=1, keepdims=True)
            places = jnp.where(attention_mask, position_ids(attention_mask), count)[..., None]
            tokens, attention_mask = right_pad(tokens, attention_mask)
            positions = jnp.where(attention_mask, position_ids(attention_mask), 0)
            seen = (attention_mask[:, None],)
        else:
            positions = position_ids(attention_mask)
            seen = sight.of_pass(self.cfg, attention_mask)
        x, kept = (blocks or self.blocks)(
            self.embed(tokens, positions), positions, seen, sight.local_layers(self.cfg)
        )
        hidden = self.finish(x).reshape(B, L, -1)
        if moved:
            hidden = jnp.take_along_axis(hidden, places, axis=1)
        return hidden, kept

    def unembed(self, hidden: Float[Array, "*n D"]) -> Float[Array, "*n V"]:
        """Logits, summed in float32 whatever the dtype of the factors, and not rounded to `dtype`."""
        move = gathered if self.stationary else spread
        flat = move(hidden.reshape(-1, hidden.shape[-1]))
        if self.cfg.tied:
            table = self.embedding.embedding
        else:  # None but in parameters of `decoding.ready`
            table = self.unembedding.get_variable("params", "transposed")
        if table is None:
            logits = self.unembedding(flat)
        else:
            flat, table = (x.astype(self.cfg.dtype) for x in (flat, table))
            logits = few_rows.product(flat, table, jnp.float32)
        logits = softcapped(move(logits), self.cfg.logit_softcap)
        return logits.reshape(*hidden.shape[:-1], -1)

    def finish(self, x):
        """Hidden states from a flat stream that has passed the blocks."""
        return self.final_norm(x)

    def __call__(self, tokens, attention_mask):
        """Logits [B, L, V]."""
        return self.unembed(self.hidden(tokens, attention_mask)[0])


def table_of(cfg: ModelConfig, params):
    """The parameters that `unembedding` reads."""
    name = "embedding" if cfg.tied else "unembedding"
    return {name: params[name]}


def unembedding(cfg: ModelConfig, params, stationary: bool = False):
    """`read(hidden) -> logits`; the `stationary` one is the default `read` of prefill and decode."""
    model = Transformer(cfg, stationary=stationary)
    return lambda hidden: model.apply({"params": params}, hidden, method="unembed")
