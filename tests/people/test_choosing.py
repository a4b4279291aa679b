"""Choice of pairs: closed forms, a slow greedy twin, the uniform stream, and what it refuses."""

import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.people import choosing
from rlhf_jax.people.choosing import Pool, choose


def pool(seed=0, prompts=30, responses=4, members=5, dim=6, asked=10):
    """All pairs of the responses to each prompt; rewards are linear in the features, up to the member."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(prompts * responses, dim))
    rewards = rng.normal(size=(members, dim)) @ features.T
    pair = np.array([(i, j) for i in range(responses) for j in range(i)])
    prompt = np.repeat(np.arange(prompts), len(pair))
    a, b = (prompt[:, None] * responses + np.tile(pair, (prompts, 1))).T
    times = np.zeros(len(prompt), int)
    times[:asked] = 1
    gone = features[a[:asked]] - features[b[:asked]]
    return Pool(prompt, a, b, rewards, features, gone, times)


def test_entropy_and_bald_are_those_of_two_certain_opponents_and_of_two_doubters():
    """log 2 for both scores where members are sure of opposite answers; bald is 0 where all toss a coin."""
    sure = np.array([[50.0, 0.0, 0.0, 0.0], [-50.0, 0.0, 0.0, 0.0]])
    two = Pool(
        np.array([0, 1]),
        np.array([0, 2]),
        np.array([1, 3]),
        sure,
        np.eye(4),
        np.zeros((0, 4)),
        np.zeros(2, int),
    )
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(choosing.entropy(two, 1, rng), np.log(2))
    np.testing.assert_allclose(choosing.bald(two, 1, rng), [np.log(2), 0], atol=1e-12)


def test_d_optimal_is_the_greedy_choice_of_the_largest_determinant():
    one = pool()
    n = 12
    x = one.features[one.a] - one.features[one.b]
    p = expit(one.margins).mean(0)
    x = x * np.sqrt(p * (1 - p))[:, None]
    scale = np.sqrt(np.mean(x**2))
    x = x / scale
    information = np.eye(x.shape[1]) + (one.asked / (2 * scale)).T @ (one.asked / (2 * scale))
    chosen, used = [], np.zeros(30, int)
    for _ in range(n):
        gains = [
            -np.inf
            if k in chosen or used[one.prompt[k]] >= choosing.CAP
            else np.linalg.slogdet(information + np.outer(x[k], x[k]))[1]
            for k in range(len(x))
        ]
        best = int(np.argmax(gains))
        chosen.append(best)
        used[one.prompt[best]] += 1
        information += np.outer(x[best], x[best])
    scores = choosing.d_optimal(one, n, np.random.default_rng(0))
    assert np.argsort(-scores)[:n].tolist() == chosen


def test_double_thompson_asks_about_favourites_of_members():
    one = pool()
    scores = choosing.double_thompson(one, 30, np.random.default_rng(0))
    asked = np.flatnonzero(scores >= 1)
    assert len(asked) == len(np.unique(one.prompt[asked])) == 30
    favourites = [
        {4 * p + int(x) for x in one.rewards[:, 4 * p : 4 * p + 4].argmax(1)} for p in range(30)
    ]
    for k in asked:
        liked = favourites[one.prompt[k]]
        assert {int(one.a[k]), int(one.b[k])} <= liked or len(liked) == 1


@pytest.mark.parametrize("name", choosing.STRATEGIES)
def test_a_fifth_is_uniform_and_nothing_is_asked_twice(name):
    chosen = choose(name, pool(), 40, np.random.default_rng(1))
    assert len({*chosen.index.tolist()}) == 40 and chosen.uniform.sum() == 8
    assert np.isnan(chosen.score[:8]).all() and np.isfinite(chosen.score[8:]).all()
    np.testing.assert_allclose(chosen.probability[:8], 8 / 170)
    assert np.isnan(chosen.probability[8:]).all()
    one = pool()
    if name not in choosing.REPEATING:
        assert not one.times[chosen.index].any()
        assert (
            np.bincount(one.prompt[chosen.index]).max() <= choosing.CAP + 2
        )  # the stream has no cap
    else:
        assert one.times[chosen.index].sum() == one.times.sum()


def test_the_uniform_stream_is_uniform():
    """Each fresh pair is drawn as often as another, whatever the strategy likes."""
    counts = np.zeros(180)
    for seed in range(400):
        chosen = choose("bald", pool(), 40, np.random.default_rng(seed))
        counts[chosen.index[chosen.uniform]] += 1
    fresh = counts[10:]
    expected = 400 * 8 / 170
    assert not counts[:10].any()
    statistic = np.sum((fresh - expected) ** 2 / expected) / (1 - 8 / 170)
    assert abs(statistic - 169) < 4 * np.sqrt(2 * 169)


def test_a_strategy_that_chooses_nothing_is_noticed():
    def constant(pool, n, rng):
        return np.ones(len(pool.a))

    with pytest.raises(ValueError, match=r"constant gives all pairs the score 1\.0"):
        choose(constant, pool(), 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="171 pairs are wanted, and the pool has 170"):
        choose("random", pool(), 171, np.random.default_rng(0))
