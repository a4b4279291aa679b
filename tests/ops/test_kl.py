import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import kl


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


EDGES = np.array([0, 20, -20, -30, 89, -89, 1e3, -1e3], np.float32)
KINDS = {  # value and slope in float64, with k3 held below -20
    "k1": (lambda d: d, np.ones_like),
    "k2": (lambda d: d * d / 2, lambda d: d),
    "k3": (
        lambda d: np.expm1(np.minimum(-d, 20)) + np.maximum(d, -20),
        lambda d: np.where(d < -20, 0, -np.expm1(np.minimum(-d, 20))),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_estimators_and_their_slopes_at_extreme_log_ratios(kind):
    estimate = lambda d: kl.ESTIMATORS[kind](d, jnp.zeros(()))
    got, slopes = jax.vmap(jax.value_and_grad(estimate))(jnp.array(EDGES))
    value, slope = KINDS[kind]
    np.testing.assert_allclose(got, value(np.float64(EDGES)), rtol=2e-6)
    np.testing.assert_allclose(slopes, slope(np.float64(EDGES)), rtol=2e-6)


@pytest.mark.parametrize("ref", [0.0, -3.0, 25.0])
def test_corrected_k3_and_its_slope_at_extreme_log_ratios(ref):
    """rho k3 = ref / old + rho (d - 1), and its slope rho d: both finite where exp(-d) is not."""
    estimate = lambda new: kl.corrected("k3", new, jnp.float32(ref), jnp.zeros(()))
    got, slopes = jax.vmap(jax.value_and_grad(estimate))(jnp.array(EDGES))
    d, held = np.float64(EDGES) - ref, lambda x: np.exp(np.minimum(x, 20.0))
    rho = held(np.float64(EDGES))
    want = np.where(d < 0, held(ref) + rho * (d - 1), rho * (np.expm1(-d.clip(0)) + d))
    if ref <= 20:  # above, exp(-d) is held where rho is not
        np.testing.assert_allclose(got, want, rtol=4e-6)
    np.testing.assert_allclose(slopes, rho * d, rtol=4e-6, atol=1e-36)
    assert np.all(np.isfinite(got)) and np.all(got >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrected_estimator_is_the_product_and_its_slope_the_products(kind):
    new, ref, old = jax.random.normal(jax.random.key(1), (3, 50))
    product = lambda new: jnp.exp(new - old) * kl.ESTIMATORS[kind](new, ref)
    corrected = lambda new: kl.corrected(kind, new, ref, old)
    total = lambda f: jax.value_and_grad(lambda x: jnp.sum(f(x)))(new)
    np.testing.assert_allclose(corrected(new), product(new), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total(corrected)[1], total(product)[1], rtol=1e-4, atol=1e-5)


def test_the_adaptive_coefficient_at_extremes():
    """It moves by a fifth of samples / horizon at most; a KL that is no number is not hidden."""
    start = jnp.float32(0.15)
    adapt = lambda kl_now, **to: float(kl.adapt(start, jnp.float32(kl_now), samples=512, **to))
    for found in (1e30, np.inf):
        assert adapt(found, target=6.0) == pytest.approx(0.15 * (1 + 0.2 * 0.0512))
    for found in (0.0, -1e30):  # an estimate from samples may be negative
        assert adapt(found, target=6.0) == pytest.approx(0.15 * (1 - 0.2 * 0.0512))
    assert adapt(9.0, target=1e-30) == adapt(np.inf, target=6.0)
    assert adapt(9.0, target=1e30) == adapt(0.0, target=6.0)
    assert adapt(9.0, target=6.0, horizon=1e30) == start
    assert np.isnan(adapt(np.nan, target=6.0))
