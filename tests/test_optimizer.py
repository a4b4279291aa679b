"""Optimizers against their formulas, worked in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optimizer, transformations
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig


def run(tx, params, grads):
    """The updates that `tx` makes of a list of gradients, at fixed `params`."""
    state, updates, update_fn = tx.init(params), [], jax.jit(tx.update)
    for g in grads:
        update, state = update_fn(g, state, params)
        updates.append(update)
    return updates


@pytest.mark.parametrize(("b1", "b2", "eps"), [(0.9, 0.999, 1e-5), (0.8, 0.95, 1e-2)])
def test_tf_style_adam_is_tensorflows_formula(b1, b2, eps):
    """lr_t = lr sqrt(1 - b2^t) / (1 - b1^t); w -= lr_t m_t / (sqrt(v_t) + eps)."""
    rng = np.random.default_rng(0)
    grads = [
        {"w": rng.normal(size=(3, 4)) * 10.0**-i, "b": rng.normal(size=2) * 1e-4} for i in range(6)
    ]
    like = jax.tree.map(jnp.zeros_like, grads[0])
    got = run(transformations.scale_by_adam_tf_style(b1, b2, eps), like, grads)
    for name in grads[0]:
        m = v = np.zeros(grads[0][name].shape)
        for t, g in enumerate(grads, start=1):
            m = b1 * m + (1 - b1) * g[name]
            v = b2 * v + (1 - b2) * g[name] ** 2
            want = np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
            np.testing.assert_allclose(got[t - 1][name], want, rtol=2e-4)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e8])
def test_clipping_is_optaxs(size):
    rng = np.random.default_rng(1)
    grads = [{"w": size * rng.normal(size=(3, 4)), "b": size * rng.normal(size=2)}]
    like = jax.tree.map(jnp.zeros_like, grads[0])
    kinds = transformations.clip_by_global_norm, optax.clip_by_global_norm
    ours, theirs = (run(kind(0.5), like, grads) for kind in kinds)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize(("gradient", "ratio"), [(1e-3, 1.3), (1e-5, 16), (1e-6, 29)])
def test_the_first_step_is_smaller_with_tensorflows_epsilon(gradient, ratio):
    """Measured once in torch and TensorFlow, with eps 1e-5 and b2 0.999."""
    first = {}
    for placement in ("optax", "tensorflow"):
        cfg = OptimizerConfig(lr=1.0, schedule="constant", eps_placement=placement, clip=0.0)
        (update,) = run(optimizer.make(cfg, 10), jnp.zeros(1), [jnp.full(1, gradient)])
        first[placement] = -float(update[0])
    assert first["optax"] / first["tensorflow"] == pytest.approx(ratio, rel=0.02)
    root = np.sqrt(1 - 0.999)  # and in closed form
    want = (gradient / (gradient + 1e-5)) / (root * gradient / (root * gradient + 1e-5))
    assert first["optax"] / first["tensorflow"] == pytest.approx(want, rel=1e-3)


def rates(cfg, steps, count):
    """The learning rates of the first `count` steps: Adam's update of a constant gradient, at eps 0."""
    updates = run(optimizer.make(cfg, steps), jnp.zeros(1), [jnp.ones(1)] * count)
    return -np.array(updates)[:, 0]


def test_constant_schedule():
    np.testing.assert_allclose(
        rates(OptimizerConfig(lr=0.5, schedule="constant", eps=1e-12), 4, 6), 0.5, rtol=1e-4
    )


def test_linear_schedule_would_be_zero_one_step_after_the_last():
    cfg = OptimizerConfig(lr=0.5, schedule="linear", eps=1e-12)
    want = 0.5 * np.array([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    np.testing.assert_allclose(rates(cfg, 4, 6), want, rtol=1e-4, atol=1e-7)


def test_cosine_schedule_would_be_zero_one_step_after_the_last():
    cfg = OptimizerConfig(lr=0.5, schedule="cosine", eps=1e-12)
    want = 0.25 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1.0])))
    np.testing.assert_allclose(rates(cfg, 4, 5), want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_rises_evenly_from_a_first_step_above_zero(schedule):
    """Steps 0..2 of a warm-up of 3 run at 1/4, 2/4, 3/4; step 3 at the peak; decay takes what is left."""
    got = rates(OptimizerConfig(lr=0.4, schedule=schedule, warmup=3, eps=1e-12), 8, 9)
    np.testing.assert_allclose(got[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-4)
    end = {"constant": 0.4, "linear": 0.0, "cosine": 0.0}[schedule]
    np.testing.assert_allclose(got[8], end, atol=1e-5)
    if schedule == "linear":
        np.testing.assert_allclose(got[3:8], 0.4 * np.array([5, 4, 3, 2, 1]) / 5, rtol=1e-4)


def test_a_warm_up_longer_than_the_run_still_steps():
    got = rates(OptimizerConfig(lr=0.4, warmup=7, eps=1e-12), 3, 3)
    np.testing.assert_allclose(got, [0.05, 0.1, 0.15], rtol=1e-4)


def decayed(params):
    """Which leaves move without a gradient, and by how much of themselves a unit of learning rate."""
    cfg = OptimizerConfig(lr=0.5, schedule="constant", weight_decay=0.1)
    zeros = jax.tree.map(np.zeros_like, params)
    (updates,) = jax.jit(partial(run, optimizer.make(cfg, 10)))(params, [zeros])
    return jax.tree.map(lambda u, p: np.max(np.abs(np.array(u) / p)) / 0.5, updates, params)


def test_weight_decay_is_decoupled_and_on_matrices_only():
    params = {"matrix": np.full((3, 2), 7.0), "vector": np.full(3, 7.0), "scalar": np.float32(7)}
    got = decayed(params)
    assert got["matrix"] == pytest.approx(0.1, rel=1e-5)
    assert got["vector"] == got["scalar"] == 0.0


def test_weight_decay_leaves_the_vectors_of_stacked_layers_alone():
    """Scanned blocks hold their biases and norms as [layers, D], which are vectors all the same."""
    lm = networks.language_model(ModelConfig(vocab_size=5, d_model=8, heads=2, context=4))
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    got = jax.tree_util.tree_leaves_with_path(decayed(params))
    for path, amount in got:
        vector = path[-1].key in ("bias", "scale")
        assert (amount == 0.0) == vector, jax.tree_util.keystr(path)
    assert {path[-1].key for path, _ in got} == {"bias", "scale", "kernel", "embedding"}


def test_clip_bounds_the_global_norm_of_what_adam_sees():
    """Two leaves of joint norm 50 count as if divided by 50; a small gradient after it is left alone."""
    large, small = {"a": jnp.full(1, 30.0), "b": jnp.full(1, 40.0)}, {"a": 0.1, "b": 0.2}
    small = jax.tree.map(lambda x: jnp.full(1, x), small)
    unit = jax.tree.map(lambda x: x / 50.0, large)
    updates = lambda clip, first: run(
        optimizer.make(OptimizerConfig(schedule="constant", clip=clip), 10), large, [first, small]
    )
    close = lambda a, b: all(
        np.allclose(x, y, rtol=1e-5)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert close(updates(1.0, large), updates(0.0, unit))
    assert close(updates(0.0, small), updates(1.0, small))
    assert not close(updates(0.0, large), updates(1.0, large))


def test_moments_of_bfloat16_parameters_are_float32_and_do_not_stand_still():
    """(1 - b2) of a squared gradient is below half a unit in the last place of a bfloat16 moment."""
    cfg = OptimizerConfig(lr=1.0, schedule="constant", clip=0.0, weight_decay=0.5)
    params, grads = jnp.full(3, 2.0), [jnp.full(3, 1e-3)] * 50 + [jnp.full(3, 1.0)] * 50
    want = run(optimizer.make(cfg, 100), params, grads)
    low = lambda x: x.astype(jnp.bfloat16)
    tx = optimizer.make(cfg, 100)
    got = run(tx, low(params), [low(g) for g in grads])
    assert {x.dtype for x in jax.tree.leaves(tx.init(low(params)))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    np.testing.assert_allclose(got, want, rtol=2e-3)
