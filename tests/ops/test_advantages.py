import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import advantages


def ragged(seed, shape=(8, 7)):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    return rewards, values, rng.random(shape) < 0.6  # holes: what the environment said


def run(rewards, values, mask, gamma, lam):
    return advantages.gae(*map(jnp.array, (rewards, values, mask)), gamma=gamma, lam=lam)


def test_two_tokens_by_hand():
    got, returns = run([[1.0, 2.0]], [[0.5, 0.25]], [[True, True]], 0.9, 0.5)
    last = 2.0 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last
    np.testing.assert_allclose(got, [[first, last]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[first + 0.5, last + 0.25]], rtol=1e-6)


def test_gae_equals_a_loop_that_skips_what_the_policy_did_not_say():
    rewards, values, mask = ragged(0)
    got, returns = run(rewards, values, mask, 0.9, 0.8)
    want = np.zeros_like(rewards)
    for b in range(8):
        next_value = next_advantage = 0.0
        for t in reversed(np.flatnonzero(mask[b])):
            delta = rewards[b, t] + 0.9 * next_value - values[b, t]
            want[b, t] = delta + 0.9 * 0.8 * next_advantage
            next_value, next_advantage = values[b, t], want[b, t]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, np.where(mask, want + values, 0), rtol=1e-5, atol=1e-6)


def test_gae_equals_the_double_sum_of_its_definition():
    rewards, values, mask = ragged(1)
    got, _ = run(rewards, values, mask, 0.97, 0.9)
    for b in range(8):
        said = np.flatnonzero(mask[b])
        r, v = rewards[b, said].astype(float), np.append(values[b, said], 0).astype(float)
        delta = r + 0.97 * v[1:] - v[:-1]
        want = [
            sum((0.97 * 0.9) ** (k - t) * delta[k] for k in range(t, len(said)))
            for t in range(len(said))
        ]
        np.testing.assert_allclose(got[b][said], want, rtol=1e-5, atol=1e-6)


def test_lambda_one_is_monte_carlo_and_lambda_zero_is_one_step():
    rewards, values, mask = ragged(2)
    _, returns = run(rewards, values, mask, 1.0, 1.0)
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), atol=1e-5)
    whole = np.ones_like(mask)
    got, _ = run(rewards, values, whole, 1.0, 0.0)
    ahead = np.concatenate([values[:, 1:], np.zeros((8, 1))], axis=1)
    np.testing.assert_allclose(got, rewards + ahead - values, atol=1e-6)


def test_padding_and_what_stands_on_it_change_nothing():
    rewards, values, mask = ragged(3)
    noise = np.random.default_rng(4).normal(size=rewards.shape)
    put = lambda x: np.where(mask, x, noise).astype(np.float32)
    jax.tree.map(
        np.testing.assert_array_equal,
        run(rewards, values, mask, 0.9, 0.8),
        run(put(rewards), put(values), mask, 0.9, 0.8),
    )


def test_scores_stay_whole_and_fall_on_the_last_token_said():
    mask = jnp.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    got = advantages.on_last_token(jnp.array([0.7, -1.6, 5.0]), mask)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.float32([[0, 0, 0.7, 0], [0, 0, 0, -1.6], [0, 0, 0, 0]]))


def test_integer_scores_are_refused_because_they_have_lost_their_fractions():
    with pytest.raises(TypeError, match=r"scores are int32.*float32"):
        advantages.on_last_token(jnp.zeros(2, int), jnp.ones((2, 4), bool))


def test_bfloat16_scores_become_float32():
    got = advantages.on_last_token(jnp.array([0.7], jnp.bfloat16), jnp.ones((1, 1), bool))
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_gae_at_the_ends_of_gamma_and_lambda(gamma, lam):
    """No future, one step of it, or all of it."""
    rewards, values, mask = ragged(4)
    got, returns = run(rewards, values, mask, gamma, lam)
    for b in range(8):
        said = np.flatnonzero(mask[b])
        r, v = rewards[b, said], values[b, said]
        after = np.append(v[1:], 0) if lam == 0 else np.append(np.cumsum(r[::-1])[-2::-1], 0)
        want = r + gamma * after[: len(r)]
        np.testing.assert_allclose(returns[b, said], want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[b, said], want - v, rtol=1e-5, atol=1e-5)


def test_what_is_no_number_spreads_to_earlier_tokens_of_its_row_alone():
    rewards, values, mask = ragged(5)
    mask[:, 3] = True
    clean, _ = run(rewards, values, mask, 1.0, 0.95)
    for x in (rewards, values):
        x[~mask] = np.nan  # where the policy said nothing, nothing is read
    same, _ = run(rewards, values, mask, 1.0, 0.95)
    np.testing.assert_array_equal(same, clean)
    rewards[2, 3] = np.nan
    got, _ = run(rewards, values, mask, 1.0, 0.95)
    reached = (np.arange(8)[:, None] == 2) & (np.arange(7)[None] <= 3) & mask
    np.testing.assert_array_equal(np.isnan(got), reached)
    np.testing.assert_array_equal(np.where(reached, 0, got), np.where(reached, 0, clean))
