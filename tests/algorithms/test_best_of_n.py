"""Best of n: estimates from one pool, the exact law, its KL, and fine-tuning on what it chooses."""

import itertools
import math
from functools import partial

import enumerable
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import optimised
from enumerable import EOS, LENGTH, PAD, distribution, total_variation
from scipy import integrate, stats

from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import best_of_n, sft
from rlhf_jax.batches import Samples
from rlhf_jax.models import networks
from rlhf_jax.sampling import SampleConfig

TABLE = networks.from_logits(enumerable.apply)


def best_of(scores, values):
    """The value of the best of some draws, the mean over those that tie."""
    return np.mean(values[scores == scores.max()])


# the KL


def test_kl_is_the_published_formula():
    assert best_of_n.kl(1) == 0
    np.testing.assert_allclose(best_of_n.kl(4), math.log(4) - 3 / 4)
    np.testing.assert_allclose(best_of_n.kl(np.array([2, 256])), [0.19314718, 4.54908369])
    with pytest.raises(ValueError, match="n = 0: the best of n needs n of 1 or more"):
        best_of_n.kl(np.array([4, 0]))


# estimates from a pool


def test_estimates_are_means_over_all_subsets_with_ties():
    rng, N = np.random.default_rng(0), 7
    scores = rng.integers(0, 3, (4, N))
    scores[3] = 1  # all tie
    values = rng.normal(size=(4, N))
    ns = np.arange(1, N + 1)
    found = best_of_n.estimates(scores, values, ns)
    for row, i in itertools.product(range(4), range(N)):
        subsets = map(list, itertools.combinations(range(N), int(ns[i])))
        want = np.mean([best_of(scores[row, s], values[row, s]) for s in subsets])
        np.testing.assert_allclose(found[row, i], want, rtol=1e-10)


def every_pool(probabilities, N):
    """All K^N pools as rows of indices, and the probability of each."""
    pools = np.array(list(itertools.product(range(len(probabilities)), repeat=N)))
    return pools, probabilities[pools].prod(axis=1)


def test_estimates_are_unbiased_where_those_with_replacement_are_not():
    probabilities = np.array([0.1, 0.4, 0.3, 0.2])
    scores = np.array([2.0, 0.0, 1.0, 1.0])  # two tie
    values = np.array([0.3, -1.0, 2.0, 0.5])
    N, ns = 5, [1, 2, 3, 5]
    pools, chances = every_pool(probabilities, N)
    exact = [best_of_n.law(probabilities, scores, n) @ values for n in ns]
    found = best_of_n.estimates(scores[pools], values[pools], ns)
    np.testing.assert_allclose(chances @ found, exact, rtol=1e-10)

    # 1 - (1 - i / N)^n: the law of the best of n draws from the pool, put back each time
    uniform = np.full(N, 1 / N)
    for n, truth in zip(ns[1:], exact[1:], strict=True):
        plugged = [best_of_n.law(uniform, scores[p], n) @ values[p] for p in pools]
        assert abs(chances @ plugged - truth) > 0.01

    # the best of the first n is unbiased too, and varies more
    first = np.array([best_of(scores[p[:2]], values[p[:2]]) for p in pools])
    np.testing.assert_allclose(chances @ first, exact[1], rtol=1e-10)
    variance = lambda x: chances @ np.square(x) - np.square(chances @ x)
    assert variance(found[:, 1]) < 0.5 * variance(first)


@pytest.mark.parametrize("N", [2, 256, 5000])
def test_weights_of_large_pools_are_those_of_exact_integers(N):
    scores = np.arange(N, dtype=float)[None]
    ns = sorted({1, 2, N // 2, N - 1, N})
    whole = [math.comb(N, n) for n in ns]
    tail = max(0, N - 300)  # an indicator: the best is one of the last draws
    found = best_of_n.estimates(scores, (scores >= tail).astype(float), ns)
    want = [1 - math.comb(tail, n) / c for n, c in zip(ns, whole, strict=True)]
    np.testing.assert_allclose(found[0], want, rtol=1e-9)


def test_gold_falls_short_of_the_proxy_as_regression_says():
    """E[gold | best of n] = E[max of n normals] var(gold) / sd(proxy) (Gao et al., 2023)."""
    rng, n = np.random.default_rng(1), 64
    gold = rng.normal(size=(2000, 256))
    proxy = gold + 0.8 * rng.normal(size=gold.shape)
    density = lambda x: x * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1)
    most = integrate.quad(density, -10, 10)[0]
    sd = math.sqrt(1 + 0.8**2)
    found = best_of_n.estimates(proxy, gold, [n]).mean()
    np.testing.assert_allclose(found, most / sd, atol=0.02)
    np.testing.assert_allclose(best_of_n.estimates(proxy, proxy, [n]).mean(), most * sd, atol=0.02)


def test_what_no_pool_can_say_is_refused():
    scores = np.zeros((2, 4))
    with pytest.raises(ValueError, match="n = 8 of 4 draws a prompt: choose an n between 1 and 4"):
        best_of_n.estimates(scores, scores, [2, 8])
    with pytest.raises(ValueError, match="n = 0 of 4 draws"):
        best_of_n.estimates(scores, scores, [0])
    bad = scores.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"values\[1, 2\] is nan"):
        best_of_n.estimates(scores, bad, [2])


# the law


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_law_is_that_of_all_draws(n):
    probabilities = np.array([0.25, 0.0, 0.3, 0.05, 0.4])
    scores = np.array([1.0, 9.0, 0.0, 2.0, 1.0])  # the second is never drawn, two tie
    want = np.zeros(5)
    for draws in itertools.product(range(5), repeat=n):
        draws = np.array(draws)
        winners = draws[scores[draws] == scores[draws].max()]
        np.add.at(want, winners, probabilities[draws].prod() / len(winners))
    found = best_of_n.law(probabilities, scores, n)
    np.testing.assert_allclose(found, want, rtol=1e-12)
    assert found[1] == 0
    seen = found > 0
    by_hand = found[seen] @ np.log(found[seen] / probabilities[seen])
    np.testing.assert_allclose(best_of_n.exact_kl(probabilities, scores, n), by_hand, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 16, 256, 100_000])
def test_the_law_sums_to_one_and_keeps_within_the_bound_on_its_kl(n):
    for seed in range(3):
        world = enumerable.make(seed)
        ref, scores = distribution(world.ref_logits), np.asarray(world.scores)
        np.testing.assert_allclose(best_of_n.law(ref, scores, n).sum(), 1.0, rtol=1e-12)
        assert -1e-12 <= best_of_n.exact_kl(ref, scores, n) <= best_of_n.kl(n) + 1e-12
        assert best_of_n.exact_kl(ref, np.zeros(121), n) == pytest.approx(0, abs=1e-12)


def test_the_bound_is_reached_where_no_response_has_much_probability():
    bound = best_of_n.kl(256)
    uniform = lambda K: best_of_n.exact_kl(np.full(K, 1 / K), np.arange(K), 256)
    assert 0 < bound - uniform(5000) < 5e-4
    assert 0.1 < bound - uniform(121) < 0.2
    world = enumerable.make(1)
    found = best_of_n.exact_kl(distribution(world.ref_logits), np.asarray(world.scores), 256)
    np.testing.assert_allclose(found, 4.47, atol=5e-3)


def test_a_law_of_no_distribution_is_refused():
    scores = np.arange(2)
    with pytest.raises(ValueError, match=r"the probabilities sum to 0\.9"):
        best_of_n.law(np.array([0.5, 0.4]), scores, 2)
    with pytest.raises(ValueError, match=r"the least is -0\.5"):
        best_of_n.law(np.array([1.5, -0.5]), scores, 2)
    with pytest.raises(ValueError, match="n = 0"):
        best_of_n.exact_kl(np.array([0.5, 0.5]), scores, 0)
    with pytest.raises(ValueError, match=r"scores\[1\] is inf"):
        best_of_n.law(np.array([0.5, 0.5]), np.array([0, np.inf]), 2)


# selection


def test_best_rows_are_the_first_best_of_adjacent_draws():
    scores = np.array([0.0, 2.0, 2.0, -1.0, -3.0, -2.0, 5.0, 4.0, 4.5])
    rows = partial(best_of_n.best_rows, scores)
    assert rows(1).tolist() == list(range(9))
    assert rows(3).tolist() == [1, 3, 6]
    for k in (2, 0):
        with pytest.raises(ValueError, match=f"k = {k} does not divide the 9 scores"):
            rows(k)
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        best_of_n.best_rows(np.array([0.0, np.nan]), 2)


@pytest.mark.parametrize("xp", [np, jnp])
def test_winners_become_demonstrations_of_what_the_policy_said(xp):
    rng, mask = np.random.default_rng(0), np.ones((4, 3), bool)
    mask[1, 1] = False  # the environment spoke
    attention_mask = np.ones((4, 5), bool)
    attention_mask[:, 0] = False
    samples = Samples(
        tokens=xp.array(rng.integers(0, 9, (4, 5))),
        attention_mask=xp.array(attention_mask),
        mask=xp.array(mask),
        logprobs=xp.zeros((4, 3)),
        ended=xp.ones(4, bool),
    )
    chosen = best_of_n.select(samples, np.array([0.0, 1.0, 3.0, 2.0]), 2)
    for name, rows in chosen._asdict().items():
        np.testing.assert_array_equal(rows, np.asarray(getattr(samples, name))[[1, 2]])


# fine-tuning on what was chosen

SEED, K = 0, 4


def pool(rows):
    """Sampled responses of the reference, which they are, and their scores."""
    world = enumerable.make(SEED)
    sample = jax.jit(sampling.make_sample(TABLE, SampleConfig(length=LENGTH, stop=(EOS,), pad=PAD)))
    samples = sample(world.ref_logits, enumerable.prompts(rows), jax.random.key(SEED))
    which = enumerable.response_of(samples)
    return jax.device_get((samples, which, world.scores[which]))


@optimised()
def fine_tuned(step, state, batch, steps=600):
    """What a table samples after full-batch steps from the reference."""
    run = lambda state: jax.lax.scan(
        lambda s, _: (step(s, {}, batch)[0], None), state, length=steps
    )[0]
    return distribution(jax.jit(run)(state).params)


def reference_law(n):
    world = enumerable.make(SEED)
    return best_of_n.law(distribution(world.ref_logits), np.asarray(world.scores), n)


def test_fine_tuning_on_the_exact_law_gives_the_policy_that_is_best_of_n():
    """The shipped SFT loss on every response, weighed by its probability as the best of n."""
    tx = optimizer.make(optimizer.OptimizerConfig(lr=0.3, schedule="linear", clip=0.0), 600)
    state = train_step.init_state(enumerable.make(SEED).ref_logits, tx)
    batch = jax.tree.map(jnp.asarray, enumerable.responses())
    step = lambda weights: train_step.make_train_step(
        partial(sft.loss, policy_fn=TABLE.policy_fn),
        lambda batch: jnp.float32(weights)[:, None] * batch.mask,
        tx,
    )
    target = reference_law(K)
    assert total_variation(fine_tuned(step(target), state, batch), target) < 1e-3
    other = fine_tuned(step(np.ones(121)), state, batch)  # control: every response once
    assert total_variation(other, target) > 0.3


def test_fine_tuning_on_winners_gives_the_law_of_the_best_of_k():
    """RAFT: a sampled pool, the best of each k draws, and the shipped SFT step to convergence."""
    samples, which, scores = pool(64_000)
    rows = best_of_n.best_rows(scores, K)
    count = lambda which: np.bincount(which, minlength=121) / len(which)
    chosen = count(which[rows])
    near = lambda pi: [total_variation(pi, reference_law(n)) for n in (1, K - 1, K, K + 1)]
    apart = near(chosen)
    assert apart[2] < 0.03 and min(apart[:2] + apart[3:]) > 0.06, apart

    batch = best_of_n.select(samples, scores, K)
    assert len(batch.tokens) == 16_000
    tx = optax.adam(optax.linear_schedule(0.3, 0.0, 200))
    step = sft.make_train_step(TABLE.policy_fn, tx)
    state = train_step.init_state(enumerable.make(SEED).ref_logits, tx)
    policy = fine_tuned(step, state, jax.tree.map(jnp.asarray, batch), steps=200)
    assert total_variation(policy, chosen) < 5e-3
    apart = near(policy)
    assert apart[2] < 0.03 and min(apart[:2] + apart[3:]) > 0.06, apart
