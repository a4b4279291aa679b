"""Attention by blocks is attention over a whole mask, and its memory does not grow with the mask."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import blockwise, networks, sight
from rlhf_jax.models.attention import attend, cached
from rlhf_jax.models.config import ModelConfig

B, L, H, K, WIDTH = 3, 23, 4, 2, 8
ROWS = np.arange(B)[:, None]
MASKS = {
    "left padding, and a row without any": np.arange(L) >= 9 * ROWS,
    "padding after and within": np.random.default_rng(0).random((B, L)) < 0.6,
    "no real token": np.zeros((B, L), bool),
    "segments that alternate": np.random.default_rng(1).integers(0, 4, (B, L), np.int32),
}


@pytest.fixture
def small(monkeypatch):
    """Blocks of 4 queries and 6 keys; the last of both overlap the ones before or are filled up."""
    monkeypatch.setattr(blockwise, "QUERIES", 4)
    monkeypatch.setattr(blockwise, "KEYS", 6)


def result_and_gradients(attention, monkeypatch, long, cfg, mask):
    monkeypatch.setattr(sight, "LONG", long)
    seen = sight.chosen(sight.of_pass(cfg, jnp.array(mask)), jnp.bool(cfg.window > 0))
    q, k, v, given = (
        jax.random.normal(jax.random.key(i), (B, L, heads, WIDTH))
        for i, heads in enumerate((H, K, K, H))
    )
    how = dict(scale=cfg.attention_scale, softcap=cfg.attention_softcap)
    result, pull = jax.vjp(jax.jit(lambda q, k, v: attention(q, k, v, seen, **how)), q, k, v)
    return result, pull(given)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "settings",
    [{}, dict(attention_softcap=0.5, attention_scale=0.9), dict(window=7, local_layers=(1,))],
    ids=["plain", "capped", "window"],
)
def test_values_and_gradients_are_those_of_the_whole_mask(small, monkeypatch, settings, mask):
    cfg = ModelConfig(layers=2, **settings)
    by_blocks = lambda q, k, v, seen, **how: blockwise.attend_by_blocks(
        q, cached(k, v), seen, *how.values()
    )
    want = result_and_gradients(attend, monkeypatch, L + 1, cfg, MASKS[mask])
    got = result_and_gradients(by_blocks, monkeypatch, L, cfg, MASKS[mask])
    assert np.max(np.abs(want[1][0])) > 0 or mask == "no real token"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-5), got, want)


def test_bfloat16_factors_give_bfloat16_results_and_gradients(small):
    q, k = (jnp.ones((B, L, heads, WIDTH), jnp.bfloat16) for heads in (H, K))
    seen = sight.of_columns(*[jnp.ones((B, L), bool)] * 2, jnp.int32(0))
    result, pull = jax.vjp(lambda q, k: blockwise.attend_by_blocks(q, cached(k, k), seen), q, k)
    np.testing.assert_allclose(result.astype(jnp.float32), 1, rtol=1e-2)  # a mean of ones
    assert {x.dtype for x in (result, *pull(result))} == {jnp.dtype("bfloat16")}


SHAPE = ModelConfig(vocab_size=16, context=9000, layers=2, d_model=16, heads=2, window=1500)


def compiled(fn, *args):
    """(bytes that a program takes beside its arguments and results, its largest two dimensions of one
    array)."""
    program = jax.jit(fn).lower(*args).compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", program.as_text())
    sides = max(sorted(map(int, x.split(",")))[-2:][0] for x in shapes if "," in x)
    return program.memory_analysis().temp_size_in_bytes, sides


@pytest.mark.parametrize("segments", [False, True])
def test_memory_of_a_gradient_grows_with_the_length_and_not_with_its_square(segments):
    lm = networks.language_model(SHAPE)
    params = jax.eval_shape(lm.init, jax.random.key(0))
    loss = lambda p, t, m: jnp.sum(lm.policy_fn(p, t, m, last=8)[0])

    def needs(length):
        mask = jax.ShapeDtypeStruct((1, length), jnp.int32 if segments else bool)
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return compiled(jax.grad(loss), params, tokens, mask)

    (short, _), (long, sides) = needs(2048), needs(8192)
    assert long < 4.2 * short
    assert sides < 2048  # nothing of [L, L] in any shape


def test_memory_of_a_prefill_does_not_grow_with_the_prompt():
    """Beside the cache, of which it makes a second copy at most."""
    lm = networks.language_model(SHAPE)
    params = jax.eval_shape(lm.init, jax.random.key(0))

    def needs(length):
        args = (jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.int32, bool))
        return compiled(partial(lm.prefill_fn, room=8), params, *args)

    (short, _), (long, sides) = needs(2048), needs(8192)
    cache = 4 * 2 * SHAPE.layers * SHAPE.d_model
    assert long - short < 1.5 * cache * (8192 - 2048)
    assert sides < 2048


def test_short_sequences_have_the_program_of_a_whole_mask():
    """One below the threshold holds [L, L], and the threshold does not."""
    lm = networks.language_model(SHAPE)
    params = jax.eval_shape(lm.init, jax.random.key(0))
    for length, whole in ((sight.LONG - 1, True), (sight.LONG, False)):
        args = (jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.int32, bool))
        text = jax.jit(lm.hidden_fn).lower(params, *args).as_text()
        assert (f"{length}x{length}x" in text) == whole
