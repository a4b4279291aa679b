import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import optimised
from scipy.special import log_softmax

from rlhf_jax.ops import logprobs

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (2, 5, 7)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (2, 5))
HIDDEN = jnp.array(RNG.normal(size=(2, 5, 1)), jnp.float32)
KERNEL = {"kernel": jnp.array(RNG.normal(size=(1, 7)), jnp.float32)}


def project(weights, hidden):
    return hidden @ weights["kernel"]


def plain(logits):
    """Log-probabilities and entropies by the library's softmax, whose gradient is that of its parts."""
    logp = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logp, jnp.array(TOKENS)[..., None], -1)[..., 0]
    return picked, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def test_logprobs_and_entropy_equal_scipys():
    want = log_softmax(LOGITS.astype(np.float64), axis=-1)
    got, entropy = logprobs.of_logits(jnp.array(LOGITS), jnp.array(TOKENS))
    np.testing.assert_allclose(
        got, np.take_along_axis(want, TOKENS[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_allclose(entropy, -(np.exp(want) * want).sum(-1), rtol=1e-5)


def test_bfloat16_logits_are_reduced_in_float32_and_forbidden_tokens_add_no_entropy():
    low = jnp.array(LOGITS, jnp.bfloat16)
    got, _ = logprobs.of_logits(low, jnp.array(TOKENS))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(
        got, logprobs.of_logits(low.astype(jnp.float32), jnp.array(TOKENS))[0]
    )
    logits, token = jnp.array([0.0, 0.0, -jnp.inf]), jnp.array(1)
    np.testing.assert_allclose(logprobs.of_logits(logits, token)[1], np.log(2), rtol=1e-6)
    for which in (0, 1):
        slope = jax.grad(lambda z: logprobs.of_logits(z, token)[which])(logits)  # noqa: B023
        np.testing.assert_allclose(slope, ([-0.5, 0.5, 0], [0, 0, 0])[which], atol=1e-6)


KINDS = {
    "log-probability": lambda logp, entropy: jnp.sum(logp * jnp.array([[1.0, 2, 3, 0, 5]])),
    "entropy": lambda logp, entropy: jnp.sum(jnp.sin(entropy)),
    "both": lambda logp, entropy: jnp.sum(logp**3) + 0.3 * jnp.sum(jnp.square(entropy)),
}


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_softmax_in_any_number_of_chunks(
    monkeypatch, kind, columns
):
    def total(found):
        return KINDS[kind](*found), found

    def ours(weights, hidden):
        return total(
            logprobs.token_logprobs(project, weights, hidden, jnp.array(TOKENS), temperature=0.7)
        )

    want = jax.value_and_grad(lambda w, h: total(plain(project(w, h) / 0.7)), (0, 1), has_aux=True)
    if columns < 5:
        monkeypatch.setattr(logprobs, "WHOLE", 14 * columns)
    run = jax.value_and_grad(ours, (0, 1), has_aux=True)
    scans = str(jax.make_jaxpr(run)(KERNEL, HIDDEN)).count("scan[")
    assert scans == (0 if columns == 5 else 2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    jax.tree.map(close, run(KERNEL, HIDDEN), want(KERNEL, HIDDEN))
    jax.tree.map(close, jax.jit(run)(KERNEL, HIDDEN), want(KERNEL, HIDDEN))


def test_gradients_over_seeds_and_of_hidden_states_alone(monkeypatch):
    monkeypatch.setattr(logprobs, "WHOLE", 28)
    weights = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), KERNEL)
    fn = lambda w, h: logprobs.token_logprobs(project, w, h, jnp.array(TOKENS))[0].sum()
    over_seeds = jax.vmap(jax.grad(fn, (0, 1)), (0, None))(weights, HIDDEN)
    for i in range(2):
        one = jax.grad(fn, (0, 1))(jax.tree.map(lambda x: x[i], weights), HIDDEN)  # noqa: B023
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),  # noqa: B023
            over_seeds,
            one,
        )
    np.testing.assert_array_equal(
        jax.grad(fn, 1)(KERNEL, HIDDEN), jax.grad(fn, (0, 1))(KERNEL, HIDDEN)[1]
    )


def test_the_tables_gradient_is_summed_in_float32(monkeypatch):
    """A thousand chunks add 1/256 each to 1, which bfloat16 would round away."""
    T = 1024
    monkeypatch.setattr(logprobs, "WHOLE", 2)
    table = {"kernel": jnp.zeros((1, 2), jnp.bfloat16)}
    hidden = jnp.full((1, T, 1), 2**-8, jnp.bfloat16).at[0, 0].set(1.0)
    tokens = jnp.zeros((1, T), int)
    slope = jax.grad(lambda w: logprobs.token_logprobs(project, w, hidden, tokens)[0].sum())(table)
    want = 0.5 * (1 + (T - 1) / 256)
    np.testing.assert_allclose(np.float32(slope["kernel"]), [[want, -want]], rtol=2**-8)


def test_all_logits_are_never_held_beyond_a_bound():
    B, T, D, V = 2, 8192, 8, 16384
    weights = {"kernel": jax.ShapeDtypeStruct((D, V), jnp.float32)}
    hidden = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    tokens = jnp.zeros((B, T), int)

    def loss(weights, hidden):
        logp, entropy = logprobs.token_logprobs(project, weights, hidden, tokens)
        return logp.sum() + entropy.sum()

    with optimised():
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(weights, hidden).compile()
    taken = compiled.memory_analysis().temp_size_in_bytes
    assert taken < 5 * 4 * logprobs.WHOLE < B * T * V * 4 / 3
