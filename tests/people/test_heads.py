"""Bootstrapped linear rewards: the optimum of the library's own loss, and bootstraps of the labels."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from rlhf_jax.ops import losses
from rlhf_jax.people import heads


def labelled(seed=0, n=60, dim=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    return x, expit(3 * x @ rng.normal(size=dim)), rng


def test_the_fit_is_the_optimum_of_the_reward_models_loss():
    """The gradient of JAX's Bradley-Terry loss of soft labels, with the ridge, is zero there."""
    x, labels, rng = labelled()
    counts = rng.integers(0, 4, len(x)).astype(float)
    w = heads.fit(x, labels, counts, ridge=0.7)

    def loss(w):
        d = jnp.asarray(x) @ w
        zero = jnp.zeros_like(d)
        each = labels * losses.pairwise_loss(d, zero) + (1 - labels) * losses.pairwise_loss(zero, d)
        return jnp.vdot(counts, each) + 0.35 * jnp.vdot(w, w)

    assert np.abs(jax.grad(loss)(jnp.asarray(w, jnp.float32))).max() < 1e-4
    assert np.abs(jax.grad(loss)(jnp.zeros(5))).max() > 1


def test_labels_that_a_line_separates_have_a_finite_fit():
    x = np.linspace(-1, 1, 40)[:, None] * 50
    w = heads.fit(x, (x[:, 0] > 0).astype(float), np.ones(40))
    assert np.isfinite(w).all() and w[0] > 0


def test_members_differ_by_their_bootstraps_and_less_with_more_labels():
    spread = []
    for n in (30, 3000):
        x, labels, rng = labelled(n=n)
        found = heads.bootstrap_heads(x, labels, 20, rng)
        spread.append(found.std(axis=0).mean())
    assert 0 < spread[1] < spread[0] / 4


def test_scale_of_features_changes_no_reward():
    x, labels, _ = labelled()
    wide = x * np.array([1, 10, 0.1, 5, 0])
    wide[:, 4] = 0  # one that never differs
    found = heads.bootstrap_heads(wide, labels, 3, np.random.default_rng(1))
    other = heads.bootstrap_heads(wide * 7, labels, 3, np.random.default_rng(1))
    np.testing.assert_allclose(found @ wide.T, other @ (7 * wide).T, rtol=1e-6)


def test_without_labels_a_head_is_a_draw_from_its_prior():
    found = heads.bootstrap_heads(np.zeros((0, 400)), np.zeros(0), 4, np.random.default_rng(0))
    assert found.shape == (4, 400) and abs(found.std() - 1) < 0.1
