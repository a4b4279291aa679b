"""Epochs serve any record of rows; what they do to PPO stands in test_ppo.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.epochs import make_epochs, make_update

ROWS = jnp.arange(6.0)


def seen_step(state, frozen, batch):
    """A step that writes down the sum of its rows and how far it has come."""
    count, sums = state
    sums = sums.at[count].set(jnp.sum(batch["rows"]) * frozen["scale"])
    metrics = {"x/approx_kl": jnp.float32(count), "train/skipped": jnp.float32(1.0)}
    return (count + 1, sums), metrics


def run(**settings):
    epochs = make_epochs(seen_step, area="x", **settings)
    start = jnp.int32(0), jnp.zeros(6)
    frozen = {"scale": jnp.float32(2.0)}
    return jax.jit(epochs)(start, frozen, {"rows": ROWS}, jax.random.key(0))


def test_each_pass_takes_every_row_once():
    (count, sums), metrics = run(epochs=2, minibatches=3)
    assert count == metrics["x/steps"] == 6
    np.testing.assert_allclose(np.sum(sums.reshape(2, 3), axis=1), 2 * np.sum(ROWS))
    assert not np.array_equal(sums[:3], sums[3:])
    np.testing.assert_allclose(metrics["x/approx_kl"], 2.5)  # the mean of 0 to 5
    np.testing.assert_allclose(metrics["train/skipped"], 6)  # a count


def test_a_stop_ends_all_passes_and_the_means_are_over_what_was_taken():
    (count, sums), metrics = run(epochs=2, minibatches=3, kl_stop=1.0)
    assert count == metrics["x/steps"] == 3  # the step of KL 2 exceeds it, and is the last
    np.testing.assert_allclose(metrics["x/approx_kl"], 1.0)
    assert not np.any(sums[3:])


def test_minibatches_that_do_not_divide_are_refused_by_the_name_of_their_setting():
    with pytest.raises(ValueError, match=r"x.minibatches = 4 does not divide the 6 rows"):
        run(epochs=1, minibatches=4)


def test_an_update_prepares_the_rollout_once_and_its_steps_read_the_coefficient():
    def prepare(rollout, kl_coef):
        mean = jnp.mean(rollout)  # of the whole rollout, and not of a minibatch
        return {"rows": rollout - mean}, {"x/mean": mean, "x/kl_coef": kl_coef}

    def step(state, frozen, batch):
        metrics = {"x/coef": frozen["kl_coef"], "train/skipped": jnp.float32(0.0)}
        return state + jnp.sum(jnp.square(batch["rows"])) * frozen["scale"], metrics

    update = make_update(step, prepare, area="x", epochs=2, minibatches=3)
    frozen = {"scale": jnp.float32(2.0)}
    state, metrics = jax.jit(update)(
        jnp.float32(0.0), frozen, jnp.float32(0.5), ROWS, jax.random.key(0)
    )
    np.testing.assert_allclose(state, 2 * 2 * np.sum(np.square(ROWS - np.mean(ROWS))), rtol=1e-6)
    want = {"x/mean": 2.5, "x/kl_coef": 0.5, "x/coef": 0.5, "x/steps": 6.0, "train/skipped": 0.0}
    assert {name: float(value) for name, value in metrics.items()} == want
