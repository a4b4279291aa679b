import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.ops import losses

RNG = np.random.default_rng(0)
NEW, OLD, A, B = RNG.normal(0, 0.4, (4, 6, 9)).astype(np.float32)


def test_clipped_surrogate_equals_a_loop():
    got, clipped = losses.clipped_surrogate(*map(jnp.array, (NEW, OLD, A)), clip=0.2)
    for i in np.ndindex(NEW.shape):
        ratio = np.exp(NEW[i] - OLD[i])
        bounded = min(max(ratio, 0.8), 1.2)
        np.testing.assert_allclose(
            got[i], max(-A[i] * ratio, -A[i] * bounded), rtol=1e-5, atol=1e-6
        )
        assert bool(clipped[i]) == (-A[i] * bounded > -A[i] * ratio)


def test_clipped_value_loss_equals_a_loop():
    got, clipped = losses.clipped_value_loss(*map(jnp.array, (NEW, OLD, B)), clip=0.3)
    for i in np.ndindex(NEW.shape):
        bounded = min(max(NEW[i], OLD[i] - np.float32(0.3)), OLD[i] + np.float32(0.3))
        worse = max((NEW[i] - B[i]) ** 2, (bounded - B[i]) ** 2)
        np.testing.assert_allclose(got[i], 0.5 * worse, rtol=1e-5, atol=1e-6)
        assert bool(clipped[i]) == ((bounded - B[i]) ** 2 > (NEW[i] - B[i]) ** 2)


def test_gradient_passes_in_the_pessimistic_quadrants_alone():
    slope = lambda ratio, a: jax.grad(
        lambda lp: losses.clipped_surrogate(lp, jnp.zeros(()), jnp.float32(a), clip=0.2)[0]
    )(jnp.log(jnp.float32(ratio)))
    assert slope(1.3, 1.0) == 0 and slope(0.7, -1.0) == 0
    np.testing.assert_allclose([slope(0.7, 1.0), slope(1.3, -1.0)], [-0.7, 1.3], rtol=1e-5)


def test_pairwise_loss_is_bradley_terrys():
    got = losses.pairwise_loss(jnp.array([0.0, 2.0, -300.0]), jnp.array([0.0, 1.0, 300.0]))
    np.testing.assert_allclose(got, [np.log(2), np.log(1 + np.exp(-1)), 600.0], rtol=1e-6)


EDGES = np.array(
    [0, 20, -20, 89, -89, 1e3, -1e3], np.float32
)  # log-ratios; float32's exp ends at 88.7
HELD = lambda d: np.exp(np.minimum(np.float64(d), 20))  # a ratio, at most e^20


@pytest.mark.parametrize("clip", [0.2, np.inf])
@pytest.mark.parametrize("A", [2.0, 0.0, -2.0])
def test_the_surrogate_and_its_slope_at_extreme_log_ratios(A, clip):
    """Exact to 20 and below it; beyond, the ratio of 20 without a slope: never NaN, whatever A is."""
    loss = lambda d: losses.clipped_surrogate(d, jnp.zeros(()), jnp.float32(A), clip=clip)[0]
    got, slopes = jax.vmap(jax.value_and_grad(loss))(jnp.array(EDGES))
    rho = HELD(EDGES)
    free = A * rho <= A * np.clip(rho, 1 - clip, 1 + clip)  # the lower of two objectives
    want = -np.where(free, A * rho, A * np.clip(rho, 1 - clip, 1 + clip))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-36)
    np.testing.assert_allclose(
        slopes, np.where(free & (EDGES <= 20), -A * rho, 0), rtol=2e-6, atol=1e-36
    )


def test_a_log_ratio_that_is_not_a_number_stays_so():
    got, _ = losses.clipped_surrogate(jnp.float32(np.nan), jnp.zeros(()), jnp.ones(()), clip=0.2)
    assert np.isnan(got)


@pytest.mark.parametrize("e", [0.0, 0.1])
def test_the_pairwise_loss_and_its_slope_at_extreme_differences(e):
    loss = lambda d: losses.pairwise_loss(d, jnp.zeros(()), margin=1.0, label_smoothing=e)
    got, slopes = jax.vmap(jax.value_and_grad(loss))(jnp.array(EDGES))
    right, wrong = np.float64(EDGES) - 1, -np.float64(EDGES) - 1
    want = (1 - e) * np.logaddexp(0, -right) + e * np.logaddexp(0, -wrong)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-36)
    np.testing.assert_allclose(
        slopes, e * expit(-wrong) - (1 - e) * expit(-right), rtol=2e-6, atol=1e-36
    )
