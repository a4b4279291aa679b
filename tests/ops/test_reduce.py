import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import reduce


def test_shares_of_ragged_devices_add_up_to_the_true_mean():
    rng = np.random.default_rng(0)
    losses = jnp.array(rng.normal(size=(8, 5)), jnp.float32)
    mask = jnp.arange(5)[None] < jnp.arange(8)[:, None] % 5
    want = np.asarray(losses)[np.asarray(mask)].mean()

    def device(losses, mask):
        return reduce.psum(jnp.vdot(reduce.normalise(mask, "data"), losses), "data")

    cut = lambda x: x.reshape(4, 2, 5)
    got = jax.pmap(device, "data", devices=jax.devices()[:4])(cut(losses), cut(mask))
    np.testing.assert_allclose(got, [want] * 4, rtol=1e-6)
    # the usual mean of local masked means is another number: the test would see it
    local = [
        np.asarray(x)[np.asarray(m)].mean() for x, m in zip(cut(losses), cut(mask), strict=True)
    ]
    assert abs(np.mean(local) - want) > 1e-3


def test_weights_that_are_all_zero_stay_zero_and_tiny_ones_still_sum_to_one():
    weights = {"tokens": jnp.zeros((2, 3)), "pairs": jnp.full((4,), 1e-20)}
    got = reduce.normalise(weights)
    np.testing.assert_array_equal(got["tokens"], np.zeros((2, 3)))
    np.testing.assert_allclose(got["pairs"], [0.25] * 4)


def test_whitening_matches_the_published_fixture():
    # lm-human-preferences: nine numbers from 1.2 to 2.0, biased variance, mean kept
    x = jnp.linspace(1.2, 2.0, 9).reshape(3, 3)
    weights = jnp.full((3, 3), 1 / 9)
    kept = reduce.whiten(x, weights, shift_mean=False)
    np.testing.assert_allclose(kept[0], [0.0508, 0.4381, 0.8254], atol=1e-4)
    shifted = reduce.whiten(x, weights)
    np.testing.assert_allclose(kept - shifted, np.full((3, 3), 1.6), atol=1e-5)


def test_whitening_over_devices_equals_numpy_over_the_whole_and_leaves_holes_zero():
    rng = np.random.default_rng(1)
    x, mask = rng.normal(2, 3, (8, 4)).astype(np.float32), rng.random((8, 4)) < 0.6
    real = x[mask].astype(np.float64)
    want = np.where(mask, (x - real.mean()) / np.sqrt(real.var() + 1e-8), 0)

    def device(x, mask):
        return reduce.whiten(x, reduce.normalise(mask, "data"), axis_name="data")

    got = jax.pmap(device, "data")(x.reshape(8, 1, 4), mask.reshape(8, 1, 4))
    np.testing.assert_allclose(got.reshape(8, 4), want, rtol=1e-4, atol=1e-5)


def test_gather_and_share_are_inverse_and_keep_the_order():
    rows = jnp.arange(16)
    back = jax.pmap(lambda x: reduce.share(reduce.gather(x, "data"), "data"), "data")(
        rows.reshape(8, 2)
    )
    np.testing.assert_array_equal(back.reshape(-1), rows)
    assert reduce.gather(rows, None) is rows and reduce.share(rows, None) is rows
