import enumerable
import numpy as np
import pytest
from scipy.stats import norm

from rlhf_jax.algorithms import best_of_n
from rlhf_jax.evaluation import overoptimization
from rlhf_jax.evaluation.overoptimization import Frontier

# The law of a standard normal, finely cut.
NORMAL = np.linspace(-9, 9, 6001), np.full(6001, 0.003) * norm.pdf(np.linspace(-9, 9, 6001))
SIX = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def kl_of(pi, ref):
    return float(np.sum(pi * np.log(pi / ref)))


def tilted(p, x):
    weights = p * np.exp(x)
    return weights / weights.sum()


def world(seed=0):
    """Reference probabilities and gold of 121 responses."""
    made = enumerable.make(seed)
    return enumerable.distribution(made.ref_logits), np.asarray(made.scores, float)


def policies(ref, gold, rng, n=400):
    """Policies near the reference, far from it, near the optima and near a single response."""
    for _ in range(n):
        noise = rng.normal(size=len(ref)) * 10 ** rng.uniform(-2, 1)
        yield tilted(ref, noise + gold * rng.choice([0.0, 0.3, 1.0, 3.0, 10.0]))


def test_of_a_normal_gold_the_frontier_is_the_square_root_of_twice_the_kl():
    """E_ref[exp(lambda gold)] = exp(lambda^2 / 2), so gold = lambda and KL = lambda^2 / 2."""
    frontier = overoptimization.frontier_of_law(*NORMAL, SIX)
    np.testing.assert_allclose(frontier.gold[:5], SIX[:5], atol=1e-3)
    np.testing.assert_allclose(frontier.kl[:5], SIX[:5] ** 2 / 2, atol=2e-3)
    kl = np.array([0.01, 0.1, 1.0, 2.0, 4.0, 8.0])
    fine = overoptimization.gold_at(overoptimization.frontier_of_law(*NORMAL), kl)
    np.testing.assert_allclose(fine, np.sqrt(2 * kl), atol=1e-3)


def test_of_two_values_the_frontier_is_the_binary_divergence():
    q, g = 0.1, np.array([0.2, 0.5, 0.9])
    kl = g * np.log(g / q) + (1 - g) * np.log((1 - g) / (1 - q))
    lambdas = np.log(g * (1 - q) / (1 - g) / q)
    frontier = overoptimization.frontier_of_law(np.array([0.0, 1.0]), np.array([1 - q, q]), lambdas)
    np.testing.assert_allclose(frontier.gold, [*g, 1.0], rtol=1e-12)
    np.testing.assert_allclose(frontier.kl, [*kl, -np.log(q)], rtol=1e-12)
    assert np.isinf(frontier.lambdas[-1]) and np.all(np.isinf(frontier.ess))
    np.testing.assert_allclose(overoptimization.gold_at(frontier, kl), g, rtol=1e-12)
    # all of the mass is on the best response: more KL buys nothing
    np.testing.assert_allclose(overoptimization.gold_at(frontier, np.array([2.31, 50.0])), 1.0)
    # between the points it is the tangents, above the curve and below the chord's ends
    between = overoptimization.gold_at(frontier, (kl[0] + kl[1]) / 2)
    assert g[0] + (g[1] - g[0]) / 2 < between < g[1]


def test_gold_at_is_not_known_outside_of_what_is_known():
    frontier = Frontier(SIX[:2], np.array([0.5, 2.0]), np.array([1.0, 2.0]), np.full(2, 200.0))
    got = overoptimization.gold_at(frontier, np.array([-0.01, 0.5, 2.0, 2.01]))
    np.testing.assert_allclose(got, [np.nan, 1.0, 2.0, np.nan])
    exact = overoptimization.frontier_of_law(*NORMAL)
    assert np.isnan(overoptimization.gold_at(exact, -1e-9))
    assert overoptimization.gold_at(exact, 0.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("lambdas", [overoptimization.LAMBDAS, (0.0, 0.5, 4.0), (3.0,)])
def test_no_policy_lies_above_the_frontier_and_the_optima_lie_on_it(lambdas):
    ref, gold = world()
    frontier = overoptimization.frontier_of_law(gold, ref, lambdas)
    lacks = [
        float(overoptimization.regret(frontier, kl_of(pi, ref), float(pi @ gold)))
        for pi in policies(ref, gold, np.random.default_rng(0))
    ]
    assert min(lacks) > -1e-9
    assert max(lacks) > 1.0
    for x in (0.5, 3.0, 4.0):
        pi = tilted(ref, x * gold)
        lack = overoptimization.regret(frontier, kl_of(pi, ref), float(pi @ gold))
        assert lack > -1e-9
        if x in lambdas or len(lambdas) > 100:
            assert lack < 1e-4


def test_the_regret_of_an_optimum_of_another_reward_is_what_it_lacks():
    """The score 121 worlds over, rotated by an error: positive, and larger the larger the error."""
    ref, gold = world()
    error = np.random.default_rng(1).normal(size=len(gold))
    frontier = overoptimization.frontier_of_law(gold, ref)
    lacks = []
    for size in (0.0, 0.5, 2.0):
        pi = tilted(ref, 2 * (gold + size * error))
        lacks.append(float(overoptimization.regret(frontier, kl_of(pi, ref), float(pi @ gold))))
    assert lacks[0] == pytest.approx(0, abs=1e-4)
    assert 0.01 < lacks[1] < lacks[2]


@pytest.mark.parametrize("correlation", [0.9, 0.5])
def test_regressional_goodhart_costs_the_share_that_is_not_correlated(correlation):
    """Gold and proxy jointly normal: the proxy's optimum has gold correlation x sqrt(2 KL)."""
    x = np.linspace(-8, 8, 161)
    p = norm.pdf(x) / norm.pdf(x).sum()
    proxy, error = np.meshgrid(x, x, indexing="ij")
    joint = np.outer(p, p).ravel()
    gold = (correlation * proxy + np.sqrt(1 - correlation**2) * error).ravel()
    frontier = overoptimization.frontier_of_law(gold, joint, np.linspace(0, 3, 301))
    for lam in (0.5, 2.0):
        pi = tilted(joint, lam * proxy.ravel())
        lack = overoptimization.regret(frontier, float(pi @ np.log(pi / joint)), float(pi @ gold))
        assert lack == pytest.approx((1 - correlation) * lam, rel=2e-3)


def test_best_of_n_lies_below_the_frontier_and_near():
    values, p = NORMAL
    frontier = overoptimization.frontier_of_law(values, p)
    for n in (2, 16, 256):
        kl, gold = best_of_n.exact_kl(p, values, n), float(best_of_n.law(p, values, n) @ values)
        assert 0 < overoptimization.regret(frontier, kl, gold) < 0.2


def test_the_frontier_of_a_mixture_spends_one_beta_everywhere():
    """No pair of policies, one for each prompt, is above it; two betas are below; one is on it."""
    one, two = world(0), world(1)
    two = two[0], 0.3 * two[1]  # gold is harder to gain there
    shares = np.array([0.25, 0.75])
    frontier = overoptimization.average(
        [overoptimization.frontier_of_law(gold, ref) for ref, gold in (one, two)], shares.tolist()
    )

    def lack(*pair):
        kl = shares @ [kl_of(pi, ref) for pi, (ref, _) in zip(pair, (one, two), strict=True)]
        gained = shares @ [pi @ gold for pi, (_, gold) in zip(pair, (one, two), strict=True)]
        return float(overoptimization.regret(frontier, kl, gained))

    at = lambda x, y: (tilted(one[0], x * one[1]), tilted(two[0], y * two[1]))
    assert lack(*at(1.5, 1.5)) == pytest.approx(0, abs=1e-4)
    assert lack(*at(3.0, 0.5)) > 0.01
    assert lack(*at(0.5, 3.0)) > 0.01
    rng = np.random.default_rng(2)
    pairs = zip(policies(*one, rng, 200), policies(*two, rng, 200), strict=True)
    assert min(lack(*pair) for pair in pairs) > -1e-9
    other = overoptimization.frontier_of_law(one[1], one[0], SIX)
    with pytest.raises(ValueError, match="different lambdas"):
        overoptimization.average([frontier, other])


def test_the_frontier_of_samples_nears_that_of_the_law_and_ends_where_few_are_effective():
    ref, gold = world()
    exact = overoptimization.frontier_of_law(gold, ref, SIX)
    drawn = np.random.default_rng(3).choice(gold, p=ref, size=(5, 40_000))
    got = overoptimization.frontier_of_samples(drawn, SIX)
    np.testing.assert_allclose(got.gold, exact.gold[:6], atol=0.02)
    np.testing.assert_allclose(got.kl, exact.kl[:6], atol=0.05)
    # the share that is effective is 1 / E_pi*[pi* / pi_ref]
    for i, lam in enumerate(SIX):
        pi = tilted(ref, lam * gold)
        assert got.ess[i] == pytest.approx(40_000 / np.sum(pi**2 / ref), rel=0.1)
    ends = overoptimization.frontier_of_samples(drawn[:, :2000], SIX, least_ess=300)
    assert 0 < len(ends.lambdas) < 6 and ends.ess.min() >= 300
    assert np.isnan(overoptimization.gold_at(ends, ends.kl[-1] + 0.01))
    with pytest.raises(ValueError, match=r"no lambda has more than [0-9.]+ effective"):
        overoptimization.frontier_of_samples(drawn[:, :50], SIX)


def test_samples_of_tuned_policies_reach_where_those_of_the_reference_do_not():
    """Gold is normal, 6000 responses: from N(0, 1) alone lambda = 4 would need e^16 of them."""
    rng, shifts, counts = np.random.default_rng(4), (0.0, 2.0, 4.0), (2000, 2000, 2000)
    golds = np.concatenate(
        [rng.normal(shift, size=n) for shift, n in zip(shifts, counts, strict=True)]
    )
    logprobs = np.array([norm.logpdf(golds, shift) for shift in shifts])
    log_weights = overoptimization.balance_log_weights(logprobs[0], logprobs, counts)
    lambdas = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    got = overoptimization.frontier_of_samples(golds[None], lambdas, log_weights[None])
    np.testing.assert_allclose(got.gold, lambdas, atol=0.08)
    np.testing.assert_allclose(got.kl, lambdas**2 / 2, atol=0.2)
    assert got.ess.min() > 1000
    alone = overoptimization.frontier_of_samples(golds[None, :2000], lambdas)
    assert alone.lambdas[-1] < 4
    unweighted = overoptimization.frontier_of_samples(golds[None], lambdas)
    assert abs(unweighted.gold[0]) > 1  # as if the tuned policies were the reference


def test_balanced_weights_make_means_under_the_mixture_means_under_the_reference():
    rng, counts = np.random.default_rng(5), (300, 100, 600)
    pis = rng.dirichlet(np.ones(121), size=3)
    weights = np.exp(
        overoptimization.balance_log_weights(np.log(pis[0]), np.log(pis), counts)  # [121]
    )
    f = rng.normal(size=121)
    assert (np.array(counts) / 1000 @ pis) @ (weights * f) == pytest.approx(pis[0] @ f)
    assert weights.max() <= 1000 / 300 + 1e-12
    # of any shape, and the reference need not be among those that were sampled from
    rows = overoptimization.balance_log_weights(
        np.log(pis[0]).reshape(11, 11), np.log(pis[1:]).reshape(2, 11, 11), counts[1:]
    )
    assert (np.array(counts[1:]) / 700 @ pis[1:]) @ (np.exp(rows).ravel() * f) == pytest.approx(
        pis[0] @ f
    )


D = np.linspace(0, 4, 33)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
def test_a_curve_without_noise_is_recovered_with_its_peak(form):
    alpha, beta = 1.2, 0.2 if form == "best_of_n" else 0.9
    curve = {
        "best_of_n": D * (alpha - beta * D),
        "rl": D * (alpha - beta * np.log(np.where(D > 0, D, 1))),
    }[form]
    got = overoptimization.fit(D**2, curve, form)
    assert (got.alpha, got.beta) == pytest.approx((alpha, beta))
    assert got.r2 == pytest.approx(1)
    np.testing.assert_allclose(got.predict(D**2), curve, atol=1e-12)
    fine = np.linspace(0, 16, 160_001)
    assert got.peak == pytest.approx(fine[np.argmax(got.predict(fine))], abs=2e-4)
    assert got.peak == pytest.approx(
        {"best_of_n": (alpha / (2 * beta)) ** 2, "rl": np.exp(alpha / beta - 1) ** 2}[form]
    )
    assert got.predict(0.0) == 0


def test_a_peak_beyond_float64_is_infinite():
    assert overoptimization.Fit("rl", 1.0, 1e-4, 1.0).peak == np.inf
    assert overoptimization.Fit("best_of_n", 1.0, 1e-200, 1.0).peak == np.inf


def test_a_curve_that_does_not_bend_down_has_no_peak():
    for form in ("best_of_n", "rl"):
        rising = overoptimization.fit(D**2, D * (1 + 0.1 * D), form)
        assert rising.beta < 0 and rising.peak == np.inf
    falling = overoptimization.fit(D**2, -D - D**2, "best_of_n")
    assert falling.peak == 0


def test_the_fit_is_least_squares_under_its_weights():
    rng = np.random.default_rng(6)
    kl, gold, weights = rng.uniform(0.1, 9, 50), rng.normal(size=50), rng.uniform(0, 2, 50)
    d = np.sqrt(kl)
    for form, second in (("best_of_n", -(d**2)), ("rl", -d * np.log(d))):
        got = overoptimization.fit(kl, gold, form, weights)
        residual = weights * (gold - got.predict(kl))
        np.testing.assert_allclose([residual @ d, residual @ second], 0, atol=1e-10)
        spread = weights @ (gold - np.average(gold, weights=weights)) ** 2
        assert got.r2 == pytest.approx(1 - residual @ (gold - got.predict(kl)) / spread)
        outlier = overoptimization.fit(
            np.append(kl, 4.0), np.append(gold, 1e6), form, np.append(weights, 0.0)
        )
        assert outlier.alpha == pytest.approx(got.alpha)


def test_extrapolation_holds_for_the_right_form_and_fails_for_the_wrong_one():
    kl, curve = D**2, D * (1.2 - 0.2 * D)
    right = overoptimization.extrapolation(kl, curve, "best_of_n", 0.5)
    assert right.cut == 8 and right.points == np.sum(kl > 8)
    assert (right.rmse, right.bias) == pytest.approx((0, 0), abs=1e-12)
    assert right.r2 == pytest.approx(1)
    wrong = overoptimization.extrapolation(kl, curve, "rl", 0.5)
    assert wrong.fit.r2 > 0.97  # it looks right where it was fitted
    assert wrong.bias > 0.1 and wrong.rmse >= wrong.bias and wrong.r2 < 0.5
    beyond = kl > 8
    assert wrong.bias == pytest.approx(np.mean(wrong.fit.predict(kl[beyond]) - curve[beyond]))
    # what lies beyond is not looked at
    spoilt = np.where(beyond, 7.0, curve)
    assert overoptimization.extrapolation(kl, spoilt, "rl", 0.5).fit == wrong.fit


def noisy(curve, rng, seeds, end=12.0):
    """One curve for each seed: its own KLs in no order, its own gain, an offset, noise that lasts."""
    kls, golds = [], []
    for _ in range(seeds):
        kl = np.linspace(0, end * rng.uniform(0.95, 1.2), 120)
        kl = np.abs(kl + 0.15 * rng.normal(size=120))
        noise = np.convolve(rng.normal(size=139), 0.8 ** np.arange(20), "valid")
        d = np.sqrt(kl)
        gold = curve(d) + 0.1 * rng.normal() * d + 0.15 * rng.normal() + 0.06 * noise
        order = rng.permutation(120)
        kls.append(kl[order])
        golds.append(gold[order])
    return kls, golds


def share_turned(curve, seeds, trials=100):
    rng = np.random.default_rng(7)
    points = [
        overoptimization.turning_point(*noisy(curve, rng, seeds), seed=trial, resamples=300)
        for trial in range(trials)
    ]
    return np.mean([point.turned for point in points]), points


def test_the_turning_point_of_a_curve_that_turns_is_found_and_covered():
    turned, points = share_turned(lambda d: 2 * d - d**2 / np.sqrt(6), seeds=6)  # at KL 6
    assert turned > 0.97
    assert np.mean([point.share for point in points]) > 0.97
    assert np.median([point.kl for point in points]) == pytest.approx(6, abs=0.15)
    assert np.mean([point.low <= 6 <= point.high for point in points]) >= 0.88
    for point in points:
        assert point.low <= point.kl <= point.high <= point.end
        assert point.turned == (point.drop > point.margin > 0)
    fewer = share_turned(lambda d: 2 * d - d**2 / np.sqrt(6), seeds=3)[1]
    width = lambda points: np.median([point.high - point.low for point in points])
    assert width(points) < width(fewer)


def test_a_curve_that_rises_does_not_turn_and_says_so():
    turned, points = share_turned(lambda d: d, seeds=4)
    assert turned == 0
    for point in points:
        assert point.kl == point.end and point.high == point.end
        assert point.share < 0.2


@pytest.mark.parametrize("curve", [lambda d: 0 * d, lambda d: 1.5 * np.minimum(d, 1.5)])
def test_noise_on_a_plateau_is_taken_for_a_turn_once_in_twenty(curve):
    """Its maximum always lies above its end, so a rule that compares the two would say it turned."""
    turned, _ = share_turned(curve, seeds=4, trials=200)
    assert turned < 0.1


def test_a_peak_that_noise_chose_is_no_turn():
    """White noise alone: peaks of the mean of all seeds, the judged one included, turn twice as often."""
    rng, kl = np.random.default_rng(8), np.linspace(0, 12, 200)
    turned = [
        overoptimization.turning_point(
            [kl] * 4, rng.normal(size=(4, 200)), bandwidth=0.05, resamples=10
        ).turned
        for _ in range(400)
    ]
    assert np.mean(turned) < 0.12


def test_without_noise_the_turning_point_is_the_maximum():
    kl = np.linspace(0, 16, 400)
    d = np.sqrt(kl)
    curve = lambda gain: gain * (1.2 * d - 0.2 * d**2)
    got = overoptimization.turning_point(
        np.stack([kl, kl, kl]), np.stack([curve(1.0), curve(0.9), curve(1.1)]), bandwidth=0.02
    )
    assert got.turned and got.share == 1
    assert got.kl == pytest.approx(9, abs=0.1)
    assert (got.low, got.high) == pytest.approx((9, 9), abs=0.1)
    assert got.end == 16
    assert got.gold == pytest.approx(1.8, abs=0.01)
    assert got.drop == pytest.approx(1.8 - 1.6, abs=0.01)


def test_points_too_far_apart_for_a_slope_count_with_their_level():
    kl = np.array([0.0, 4.0, 16.0])
    gold = np.array([0.0, 2.0, 1.0])
    got = overoptimization.turning_point([kl, kl], [gold, 1.01 * gold], bandwidth=0.005)
    assert got.turned and got.gold == pytest.approx(2.01)
    assert got.drop == pytest.approx(1.005)


def test_impossible_arguments_are_refused():
    kl = np.array([0.0, 1.0, 4.0])
    with pytest.raises(ValueError, match='form = "log" is no curve'):
        overoptimization.fit(kl, kl, "log")
    with pytest.raises(ValueError, match="fewer than two"):
        overoptimization.fit(np.array([0.0, 1.0]), np.zeros(2), "rl")
    with pytest.raises(ValueError, match="must be finite"):
        overoptimization.fit(kl, np.array([0.0, np.nan, 1.0]), "rl")
    with pytest.raises(ValueError, match=r"fraction = 1\.5"):
        overoptimization.extrapolation(kl, kl, "rl", 1.5)
    with pytest.raises(ValueError, match=r"sum to 0\.9"):
        overoptimization.frontier_of_law(np.zeros(2), np.array([0.4, 0.5]))
    with pytest.raises(ValueError, match="must ascend"):
        overoptimization.frontier_of_law(np.zeros(2), np.array([0.5, 0.5]), (2.0, 1.0))
    with pytest.raises(ValueError, match="two seeds or more"):
        overoptimization.turning_point([kl], [kl])
    with pytest.raises(ValueError, match="no KL is common"):
        overoptimization.turning_point([kl, kl + 5], [kl, kl])
    with pytest.raises(ValueError, match="must be finite"):
        overoptimization.turning_point([kl, kl], [kl, np.nan * kl])
