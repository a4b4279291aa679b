import numpy as np
import pytest
from scipy.stats import trim_mean

from rlhf_jax.evaluation import intervals
from rlhf_jax.evaluation.nested_seeds import interquartile_mean, nested_bootstrap


@pytest.fixture
def rng():
    """Of each test its own: what ran before it changes nothing."""
    return np.random.default_rng(0)


def test_the_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([8.0, 1.0, 3.0, -50.0])) == 2.0
    assert interquartile_mean(np.array([6.0, 1.0, 2.0])) == pytest.approx((0.25 + 2 + 1.5) / 1.5)
    assert interquartile_mean(np.array([1.0, 2.0])) == 1.5
    assert interquartile_mean(np.array([7])) == 7.0
    assert interquartile_mean(np.array([1, 2, 3, 4, 1000])) == pytest.approx((1.5 + 3 + 3) / 2.5)


def test_the_interquartile_mean_is_scipys_where_a_quarter_is_a_whole_number_of_values(rng):
    for n in (4, 8, 40):
        values = rng.normal(size=(3, n, 2))
        want = trim_mean(values, 0.25, axis=1)
        np.testing.assert_allclose(interquartile_mean(values, axis=1), want, rtol=1e-12)
        assert interquartile_mean(values[0, :, 0]) == pytest.approx(want[0, 0])
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=None))


@pytest.mark.parametrize("n", [1, 3, 5, 6, 7])
def test_the_interquartile_mean_of_values_is_that_of_four_copies_of_them(n, rng):
    values = rng.normal(size=n)
    assert interquartile_mean(values) == pytest.approx(trim_mean(np.repeat(values, 4), 0.25))


def test_one_level_is_the_plain_bootstrap(rng):
    values = rng.exponential(size=70)
    plain = intervals.bootstrap_interval(values, seed=3)
    assert nested_bootstrap(values, np.mean, seed=3) == pytest.approx(plain, rel=1e-12)
    many = dict(statistic=np.mean, resamples=40_000)  # their own noise is then .002
    one, three = (nested_bootstrap(x, **many) for x in (values, values[None, :, None]))
    assert three == pytest.approx(one, rel=0.02)
    wide = nested_bootstrap(values, np.mean, seed=3, level=0.99)
    assert wide.low < plain.low < plain.high < wide.high


def test_few_seeds_are_widened_by_how_many_there_are_at_the_top():
    far = intervals.widening_factor(3)
    seeds = np.array([0.0, 1.0, 5.0]).reshape(3, 1, 1)
    wide = nested_bootstrap(seeds, np.mean)
    assert wide == pytest.approx((2.0, 2.0 - 2.0 * far, 2.0 + 3.0 * far))
    assert nested_bootstrap(seeds.reshape(1, 3, 1), np.mean) == pytest.approx(wide)
    assert nested_bootstrap(np.repeat(seeds, 50, axis=2), np.mean) == pytest.approx(wide)
    assert nested_bootstrap(seeds[:1]) == (0.0, -np.inf, np.inf)


def test_copies_at_a_lower_level_are_no_evidence(rng):
    """Copies of a run make the interval no narrower than the seeds above them do."""
    seeds = rng.normal(size=60)
    copies = np.broadcast_to(seeds[:, None, None], (60, 4, 3))
    plain = intervals.bootstrap_interval(seeds, resamples=4000)
    nested = nested_bootstrap(copies, np.mean, resamples=4000)
    assert nested == pytest.approx(plain, rel=0.06, abs=0.012)


def test_the_variance_of_a_resample_is_the_multistage_bootstraps(rng):
    """Of the mean over a x b: V / a + W / (a b), the biased variances between and within the rows."""
    values = rng.normal(size=(6, 1)) + 2.0 * rng.normal(size=(6, 5))
    between, within = values.mean(1).var(), values.var(axis=1).mean()
    means = []
    nested_bootstrap(
        values, lambda x, axis: means.append(x.mean(axis)) or x.mean(axis), resamples=40_000
    )
    got = np.concatenate([x for x in means if np.ndim(x)])
    assert got.var() == pytest.approx(between / 6 + within / 30, rel=0.04)
    assert got.mean() == pytest.approx(values.mean(), abs=0.02)


@pytest.mark.parametrize("statistic", [np.mean, interquartile_mean])
def test_it_covers_where_data_seeds_differ_and_the_flat_bootstrap_does_not(statistic):
    rng, trials = np.random.default_rng(1), 300
    covered = {"nested": 0, "flat": 0}
    for trial in range(trials):
        values = rng.normal(size=(20, 1, 1)) + 0.3 * rng.normal(size=(20, 3, 3))
        for name, x in (("nested", values), ("flat", values.reshape(-1))):
            _, low, high = nested_bootstrap(x, statistic, seed=trial, resamples=300)
            covered[name] += low <= 0 <= high
    assert 0.89 <= covered["nested"] / trials <= 0.98
    assert covered["flat"] / trials < 0.65


def test_a_difference_on_the_same_seeds_is_known_better_than_either(rng):
    shared = rng.normal(size=(10, 3, 2))
    a, b = shared + 0.2 + 0.01 * rng.normal(size=shared.shape), shared
    difference = nested_bootstrap(a - b)
    assert difference.low > 0.15 and difference.high < 0.25
    assert nested_bootstrap(a).low < nested_bootstrap(b).high


def test_bad_values_are_refused_by_name():
    with pytest.raises(ValueError, match=r"values\[1, 0\] is nan"):
        nested_bootstrap(np.array([[1.0, 2.0], [np.nan, 3.0]]))
    with pytest.raises(ValueError, match="shape"):
        nested_bootstrap(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="empty"):
        interquartile_mean(np.array([]))
