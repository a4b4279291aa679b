import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import kl


@pytest.mark.parametrize(
    ("shift", "bias", "deviation"),
    # bias / KL and deviation / KL of k1, k2, k3 for p = N(0, 1), q = N(shift, 1) (Schulman, 2020)
    [(0.1, (0, 0.002, 0), (20, 1.42, 1.42)), (1.0, (0, 0.25, 0), (2, 1.73, 1.7))],
)
def test_moments_of_the_estimators_under_two_normals(shift, bias, deviation):
    x = jax.random.normal(jax.random.key(0), (4_000_000,))
    d = -0.5 * jnp.square(x) + 0.5 * jnp.square(x - shift)  # log p - log q
    true = 0.5 * shift**2
    for estimate, b, s in zip((kl.k1, kl.k2, kl.k3), bias, deviation, strict=True):
        values = np.asarray(estimate(d, jnp.zeros_like(d)), np.float64)
        np.testing.assert_allclose(values.std() / true, s, rtol=0.02)
        np.testing.assert_allclose(values.mean() / true - 1, b, atol=4 * s / 2000)


def test_k3_is_never_negative_and_all_vanish_where_policies_agree():
    d = jnp.linspace(-5, 5, 101)
    assert bool(jnp.all(kl.k3(d, jnp.zeros_like(d)) >= 0))
    for estimate in kl.ESTIMATORS.values():
        np.testing.assert_array_equal(estimate(d, d), jnp.zeros_like(d))


def test_the_adaptive_coefficient_matches_the_published_fixture():
    got = kl.adapt(jnp.float32(0.15), jnp.float32(9.0), samples=512, target=6.0)
    np.testing.assert_allclose(got, 0.151536, rtol=1e-6)
    down = kl.adapt(jnp.float32(0.15), jnp.float32(0.0), samples=512, target=6.0)
    np.testing.assert_allclose(down, 0.15 * (1 - 0.2 * 512 / 10_000), rtol=1e-6)
