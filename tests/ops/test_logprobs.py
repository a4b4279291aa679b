import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from rlhf_jax.ops import logprobs

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 5, 7)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (2, 5))


def test_logprobs_and_entropy_equal_scipys():
    want = log_softmax(LOGITS.astype(np.float64), axis=-1)
    got = logprobs.logprobs_of(jnp.array(LOGITS), jnp.array(TOKENS))
    np.testing.assert_allclose(
        got, np.take_along_axis(want, TOKENS[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(
        logprobs.entropy_of(jnp.array(LOGITS)), -(np.exp(want) * want).sum(-1), rtol=1e-5
    )


def test_bfloat16_logits_are_reduced_in_float32_and_forbidden_tokens_add_no_entropy():
    low = jnp.array(LOGITS, jnp.bfloat16)
    got = logprobs.logprobs_of(low, jnp.array(TOKENS))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(
        got, logprobs.logprobs_of(low.astype(jnp.float32), jnp.array(TOKENS))
    )
    np.testing.assert_allclose(
        logprobs.entropy_of(jnp.array([0.0, 0.0, -jnp.inf])), np.log(2), rtol=1e-6
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_chunks_change_neither_values_nor_gradients(chunk):
    hidden = jnp.array(RNG.normal(size=(2, 5, 3)), jnp.float32)
    kernel = jnp.array(RNG.normal(size=(3, 7)), jnp.float32)

    def total(kernel, hidden, chunk):
        found = logprobs.token_logprobs(
            lambda h: h @ kernel, hidden, jnp.array(TOKENS), temperature=0.7, chunk=chunk
        )
        return jnp.sum(found[0]) + 0.3 * jnp.sum(jnp.square(found[1])), found

    run = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    jax.tree.map(close, run(kernel, hidden, chunk), run(kernel, hidden, 0))


def test_chunks_never_hold_all_logits():
    B, T, D, V = 2, 256, 8, 512
    kernel, hidden = jnp.ones((D, V)), jnp.ones((B, T, D))
    tokens = jnp.zeros((B, T), int)

    def memory(chunk):
        f = lambda k, h: logprobs.token_logprobs(lambda x: x @ k, h, tokens, chunk=chunk)[0].sum()
        compiled = jax.jit(jax.grad(f, (0, 1))).lower(kernel, hidden).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = B * T * V * 4
    assert memory(0) >= whole
    assert memory(8) < whole / 4
