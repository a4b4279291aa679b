import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import losses

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
