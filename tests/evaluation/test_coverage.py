"""How often intervals that say 95 % hold the truth: docstrings quote the shares of MEASURED."""

import numpy as np
import pytest
from scipy.stats import binom

from rlhf_jax.evaluation import intervals, reward_models
from rlhf_jax.evaluation.nested_seeds import interquartile_mean, nested_bootstrap

pytestmark = pytest.mark.more
TRIALS = 1000
FEW = dict(resamples=400)
LAWS = {  # a law's draws and its mean
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
}


def share(covers, trials=TRIALS):
    """How often `covers(generator, trial)` is true."""
    return np.mean([covers(np.random.default_rng(trial), trial) for trial in range(trials)])


def holds(interval, truth):
    return interval.low <= truth <= interval.high


def of_values(law, n):
    draw, mean = LAWS[law]
    return share(
        lambda rng, i: holds(intervals.bootstrap_interval(draw(rng, n), seed=i, **FEW), mean)
    )


def of_ragged_groups(many):
    def covers(rng, i):
        sizes = rng.integers(1, 9, size=many)
        groups = np.repeat(np.arange(many), sizes)
        values = rng.normal(size=many)[groups] + 0.3 * rng.normal(size=len(groups))
        return holds(intervals.bootstrap_interval(values, groups, i, **FEW), 0.0)

    return share(covers)


def of_shares(p, n):
    """Exact: a sum over all that may happen."""
    found = (intervals.wilson_interval(k, n) for k in range(n + 1))
    return binom.pmf(np.arange(n + 1), n, p) @ [holds(interval, p) for interval in found]


def of_ties(tied, n):
    """Wins and losses alike, and so many ties: the truth is a half."""
    margins = lambda rng: rng.choice([-1.0, 0.0, 1.0], n, p=[(1 - tied) / 2, tied, (1 - tied) / 2])
    return share(lambda rng, i: holds(intervals.accuracy(margins(rng)), 0.5))


def of_grouped_judgements(p, many, size, alike):
    """`many` groups of `size` judgements (of 1 to 2 size - 1, where it is 16) that correlate by `alike`."""

    def covers(rng, i):
        sizes = rng.integers(1, 2 * size, size=many) if size == 16 else np.full(many, size)
        groups = np.repeat(np.arange(many), sizes)
        k = 1 / alike - 1 if alike else np.inf
        rates = rng.beta(p * k, (1 - p) * k, size=many) if 0 < k < np.inf else np.full(many, p)
        rates = rates if k else rng.random(many) < p
        right = rng.random(len(groups)) < rates[groups]
        return holds(intervals.accuracy(np.where(right, 1.0, -1.0), groups), p)

    return share(covers)


def of_votes(p, n):
    """Pairs of 1 to 9 votes each, which count by their votes."""

    def covers(rng, i):
        right = rng.random(n) < p
        return holds(intervals.accuracy(2.0 * right - 1, weights=rng.integers(1, 10, size=n)), p)

    return share(covers)


def of_correlations(truth, many):
    """Pairs of responses in `many` groups of two pairs; scores and lengths are normal."""

    def covers(rng, i):
        lengths, noise = rng.normal(size=(2, 2 * many, 2))
        scores = truth * lengths + np.sqrt(1 - truth**2) * noise
        groups = np.repeat(np.arange(many), 2)
        report = reward_models.length_report(scores, lengths, groups=groups, seed=i, resamples=200)
        return holds(report.correlation, truth)

    return share(covers, 400)


def of_seeds(statistic, shape, deviations):
    """Of data, reward models and policies, each with a normal effect of its own deviation."""

    def covers(rng, i):
        ones = [(*shape[: level + 1], *[1] * (2 - level)) for level in range(3)]
        levels = zip(ones, deviations, strict=True)
        values = sum(deviation * rng.normal(size=size) for size, deviation in levels)
        values = np.broadcast_to(values, shape)
        return holds(nested_bootstrap(values, statistic, seed=i, **FEW), 0.0)

    return share(covers)


MEASURED = [
    (of_values, ("normal", 2), 0.933),
    (of_values, ("normal", 3), 0.933),
    (of_values, ("normal", 5), 0.947),
    (of_values, ("normal", 10), 0.952),
    (of_values, ("normal", 30), 0.946),
    (of_values, ("normal", 100), 0.941),
    (of_values, ("exponential", 2), 0.889),
    (of_values, ("exponential", 3), 0.877),
    (of_values, ("exponential", 5), 0.879),
    (of_values, ("exponential", 10), 0.91),
    (of_values, ("exponential", 30), 0.932),
    (of_values, ("exponential", 100), 0.938),
    (of_ragged_groups, (5,), 0.942),
    (of_ragged_groups, (10,), 0.941),
    (of_ragged_groups, (30,), 0.935),
    (of_ragged_groups, (100,), 0.945),
    (of_shares, (0.5, 10), 0.979),
    (of_shares, (0.5, 30), 0.957),
    (of_shares, (0.5, 100), 0.943),
    (of_shares, (0.5, 1000), 0.946),
    (of_shares, (0.76, 10), 0.984),
    (of_shares, (0.76, 30), 0.948),
    (of_shares, (0.76, 100), 0.954),
    (of_shares, (0.76, 1000), 0.95),
    (of_shares, (0.97, 10), 0.965),
    (of_shares, (0.97, 30), 0.94),
    (of_shares, (0.97, 100), 0.969),
    (of_shares, (0.97, 1000), 0.949),
    (of_ties, (0.2, 30), 0.967),
    (of_ties, (0.5, 30), 0.989),
    (of_ties, (0.8, 30), 1.0),
    (of_grouped_judgements, (0.76, 10, 4, 0.3), 0.955),
    (of_grouped_judgements, (0.76, 30, 4, 0.3), 0.94),
    (of_grouped_judgements, (0.76, 100, 4, 0.3), 0.945),
    (of_grouped_judgements, (0.97, 10, 4, 0.3), 0.956),
    (of_grouped_judgements, (0.97, 30, 1, 0), 0.919),
    (of_grouped_judgements, (0.97, 30, 4, 0.3), 0.969),
    (of_grouped_judgements, (0.97, 30, 4, 1), 0.919),
    (of_grouped_judgements, (0.97, 30, 16, 0.3), 0.861),
    (of_grouped_judgements, (0.97, 100, 4, 0.3), 0.927),
    (of_votes, (0.76, 10), 0.965),
    (of_votes, (0.76, 30), 0.935),
    (of_votes, (0.76, 100), 0.956),
    (of_seeds, (interquartile_mean, (2, 1, 1), (1, 0, 0)), 0.926),
    (of_seeds, (interquartile_mean, (3, 1, 1), (1, 0, 0)), 0.916),
    (of_seeds, (interquartile_mean, (5, 1, 1), (1, 0, 0)), 0.966),
    (of_seeds, (interquartile_mean, (10, 1, 1), (1, 0, 0)), 0.97),
    (of_seeds, (interquartile_mean, (3, 3, 3), (1, 0.5, 0.5)), 0.984),
    (of_seeds, (interquartile_mean, (10, 3, 2), (1, 0.5, 0.5)), 0.979),
    (of_seeds, (interquartile_mean, (10, 3, 2), (0, 0, 1)), 0.997),
    (of_seeds, (np.mean, (2, 1, 1), (1, 0, 0)), 0.926),
    (of_seeds, (np.mean, (3, 1, 1), (1, 0, 0)), 0.925),
    (of_seeds, (np.mean, (5, 1, 1), (1, 0, 0)), 0.938),
    (of_seeds, (np.mean, (10, 1, 1), (1, 0, 0)), 0.948),
    (of_seeds, (np.mean, (3, 3, 3), (1, 0.5, 0.5)), 0.984),
    (of_seeds, (np.mean, (10, 3, 2), (1, 0.5, 0.5)), 0.967),
    (of_seeds, (np.mean, (10, 3, 2), (0, 0, 1)), 0.998),
    (of_correlations, (0.8, 10), 0.95),
    (of_correlations, (0.8, 30), 0.93),
    (of_correlations, (0.8, 100), 0.948),
]


@pytest.mark.parametrize(("measure", "case", "want"), MEASURED)
def test_the_share_of_intervals_that_hold_the_truth(measure, case, want):
    assert measure(*case) == pytest.approx(want, abs=0.025)
