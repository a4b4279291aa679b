"""Over-optimization of a reward model: gold against KL, the frontier of gold, and where gold turns.

After Gao, Schulman and Hilton, "Scaling laws for reward model overoptimization" (2022): gold against
the KL to the reference, in nats a response, and the curves that it follows. The frontier, the most gold that
any policy of a KL can have, follows from the distribution of gold under the reference, known or sampled. The
regret of a policy is its distance to the frontier.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.special import log_softmax, logsumexp
from scipy.stats import t as student

from rlhf_jax.evaluation.intervals import widening_factor

# 1 / beta of a fine frontier, where gold is in standard deviations
LAMBDAS = (0.0, *np.geomspace(1e-3, 1e3, 1000).tolist())


class Frontier(NamedTuple):
    """Gold and KL of the policies that are optimal for each KL coefficient beta = 1 / lambda."""

    lambdas: np.ndarray  # [M], ascending; 0 is the reference
    kl: np.ndarray  # [M], nats a response
    gold: np.ndarray  # [M]
    ess: np.ndarray  # [M], effective sample size of the estimate; infinite if exact


class Fit(NamedTuple):
    """A curve of Gao et al., with d = sqrt(KL) and gold relative to its start, so that R(0) = 0.

    "best_of_n" is R(d) = d (alpha - beta d), "rl" is R(d) = d (alpha - beta log d).
    """

    form: str
    alpha: float
    beta: float
    r2: float  # 1 - sum of squared errors / that of the mean

    def predict(self, kl) -> np.ndarray:
        """R at each KL."""
        basis = _basis(np.asarray(kl, float), self.form)
        return np.asarray(basis @ np.array([self.alpha, self.beta]))

    @property
    def peak(self) -> float:
        """The KL at which gold turns: d* = alpha / (2 beta), or e^(alpha / beta - 1); inf if beta <= 0."""
        if self.beta <= 0:
            return float("inf")
        share = np.float64(self.alpha) / self.beta
        with np.errstate(over="ignore"):  # infinite too where it is beyond float64
            if self.form == "best_of_n":
                return float(np.square(max(share / 2, 0.0)))
            return float(np.exp(2 * (share - 1)))


class Extrapolation(NamedTuple):
    """The errors of a curve, fitted up to a KL, on the points beyond."""

    fit: Fit
    cut: float  # largest KL of the fit
    points: int  # number of points beyond
    bias: float  # mean of predicted - measured
    rmse: float  # root mean squared error
    r2: float  # 1 - sum of squared errors / that of the mean: below 0, a constant is better


class TurningPoint(NamedTuple):
    """The KL at which gold stops rising, over seeds; `end` if it rises over the whole range."""

    turned: bool  # True if `drop` is above `margin`
    kl: float  # KL at which the mean curve is highest; `end` if it did not turn
    low: float  # bootstrap interval over seeds, where each resample that did not turn counts as `end`
    high: float
    share: float  # fraction of the resamples that turned
    gold: float  # the mean curve's value at `kl`
    drop: (
        float  # fall of gold from its peak to `end`; the peak of each seed is taken from the others
    )
    margin: float  # the drop that noise alone can reach
    end: float  # the largest KL that all seeds reach


def frontier_of_law(
    values: Num[np.ndarray, " K"],
    probabilities: Num[np.ndarray, " K"],
    lambdas: Sequence[float] | np.ndarray | None = None,
) -> Frontier:
    """The optimum of E[gold] - beta KL(pi || pi_ref) for each lambda = 1 / beta (LAMBDAS), and infinite.

    pi* ~ pi_ref exp(lambda gold), which depends on the reference only through its distribution of gold: with
    Z = E_ref[exp(lambda gold)], its gold is d log Z / d lambda and its KL lambda gold - log Z. The last point
    is the best response alone: gold max(values), KL -log of its probability.
    Raises ValueError if the probabilities are no distribution.
    """
    values, p = np.asarray(values, float), np.asarray(probabilities, float)
    if np.any(p < 0) or not np.isclose(p.sum(), 1.0):
        raise ValueError(
            f"the probabilities sum to {p.sum():.6g}, the least is {p.min():.3g}: "
            "they must be 0 or more and sum to 1"
        )
    values, log_p = values[p > 0], np.log(p[p > 0] / p.sum())
    lambdas = _ascending(lambdas)
    kl, gold, _ = np.array([_tilt(values, log_p, x) for x in lambdas]).T
    best = values == values.max()
    return Frontier(
        lambdas=np.append(lambdas, np.inf),
        kl=np.append(kl, -np.log(np.sum(np.exp(log_p[best])))),
        gold=np.append(gold, values.max()),
        ess=np.full(len(lambdas) + 1, np.inf),
    )


def frontier_of_samples(
    golds: Num[np.ndarray, "prompts N"],
    lambdas: Sequence[float] | np.ndarray | None = None,
    log_weights: Float[np.ndarray, "prompts N"] | None = None,
    least_ess: float | int = 100,
) -> Frontier:
    """The frontier from N responses to each prompt, by self-normalised weights, averaged over prompts.

    Response i of a prompt weighs w_i exp(lambda gold_i), with log w_i = `log_weights` = log pi_ref - log q
    for a response drawn from q (`balance_log_weights` computes them), and 0 for one from the reference.
    Prompts with the same distribution of gold may be pooled into one row. `ess` is (sum of weights)^2 / sum
    of weights^2 (Kong, 1992), the least over prompts; lambdas with less than `least_ess` are left out, so the
    frontier ends where its estimate does. Gold is biased down, by the order of 1 / ess.
    Raises ValueError if no lambda is left.
    """
    golds = np.asarray(golds, float)
    log_w = np.zeros_like(golds) if log_weights is None else np.asarray(log_weights, float)
    log_w = np.asarray(log_softmax(log_w, axis=1))
    lambdas = _ascending(lambdas)
    rows = [[_tilt(g, w, x) for x in lambdas] for g, w in zip(golds, log_w, strict=True)]
    kl, gold, ess = np.moveaxis(np.array(rows), 2, 0)  # [prompts, M] each
    ess = ess.min(axis=0)
    kept = ess >= least_ess
    if not kept.any():
        raise ValueError(
            f"least_ess = {least_ess}, and no lambda has more than {ess.max():.3g} effective samples "
            "a prompt: draw more, pool prompts into one row, or lower it"
        )
    return Frontier(lambdas[kept], kl.mean(axis=0)[kept], gold.mean(axis=0)[kept], ess[kept])


def average(frontiers: Sequence[Frontier], weights: Sequence[float] | None = None) -> Frontier:
    """The frontier of a mixture of prompts: the mean of KL and gold at each lambda.

    E[gold] - beta KL is a sum over prompts, so its optimum has one beta for all of them, and spends more KL
    on prompts whose gold is easier to gain. Raises ValueError if the lambdas differ.
    """
    lambdas = frontiers[0].lambdas
    if any(not np.array_equal(f.lambdas, lambdas) for f in frontiers):
        raise ValueError("the frontiers have different lambdas: make them all with the same")
    return Frontier(
        lambdas=lambdas,
        kl=np.average([f.kl for f in frontiers], axis=0, weights=weights),
        gold=np.average([f.gold for f in frontiers], axis=0, weights=weights),
        ess=np.min([f.ess for f in frontiers], axis=0),
    )


def balance_log_weights(
    ref_logprobs: Float[np.ndarray, "*n"],
    logprobs: Float[np.ndarray, "J *n"],
    counts: Sequence[int],
) -> Float[np.ndarray, "*n"]:
    """log pi_ref - log q of responses pooled from J policies, q = sum_j counts_j / sum(counts) pi_j.

    The balance heuristic (Veach and Guibas, 1995) weighs every response against the mixture, whichever policy
    drew it, so `logprobs` [J, ...] holds each response's log-probability under all J policies. With the
    reference among them no weight exceeds sum(counts) / its count.
    """
    shares = np.asarray(counts, float) / np.sum(counts)
    log_shares = np.log(shares).reshape(-1, *[1] * np.ndim(ref_logprobs))
    return ref_logprobs - logsumexp(log_shares + logprobs, axis=0)


def gold_at(frontier: Frontier, kl: float | int | Num[np.ndarray, "*n"]) -> np.ndarray:
    """The most gold that a policy of each KL can have: min over lambda of (KL + log Z) / lambda.

    The tangents of the frontier, gold + (kl - KL) / lambda at each of its points, lie above it elsewhere, so
    no policy lies above their minimum, however coarse the grid. The result is NaN below 0 and beyond the
    last KL of a frontier from samples; an exact frontier ends at the largest gold, and stays there.
    """
    kl = np.asarray(kl, float)
    beyond = kl[..., None] - frontier.kl
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.where(beyond == 0, 0.0, beyond / frontier.lambdas)  # vertical at the reference
    most = np.min(frontier.gold + rise, axis=-1)
    known = (kl >= 0) & ((kl <= frontier.kl[-1]) | np.isinf(frontier.lambdas[-1]))
    return np.where(known, most, np.nan)


def regret(
    frontier: Frontier,
    kl: float | int | Num[np.ndarray, "*n"],
    gold: float | int | Num[np.ndarray, "*n"],
) -> np.ndarray:
    """The distance of a policy to the frontier at its own KL: `gold_at(frontier, kl) - gold`, 0 at best."""
    return np.asarray(gold_at(frontier, kl) - gold)


def fit(
    kl: Num[np.ndarray, " K"],
    gold: Num[np.ndarray, " K"],
    form: str,
    weights: Num[np.ndarray, " K"] | None = None,
) -> Fit:
    """Least squares for alpha and beta, in which both forms are linear; `gold` relative to its start.

    With columns X = [d, -d^2] or [d, -d log d], solves X'WX (alpha, beta) = X'W gold.
    Raises ValueError for fewer than two KLs above 0, numbers that are not finite, or an unknown form.
    """
    kl, gold = np.asarray(kl, float), np.asarray(gold, float)
    if not (np.all(np.isfinite(kl)) and np.all(np.isfinite(gold)) and np.all(kl >= 0)):
        raise ValueError("kl and gold must be finite, and kl 0 or more: leave out the other points")
    if len(np.unique(kl[kl > 0])) < 2:
        raise ValueError("kl has fewer than two different values above 0: two unknowns need two")
    w = np.ones(len(kl)) if weights is None else np.asarray(weights, float)
    root, x = np.sqrt(w), _basis(kl, form)
    alpha, beta = np.linalg.lstsq(root[:, None] * x, root * gold)[0]
    return Fit(form, float(alpha), float(beta), _r2(x @ [alpha, beta], gold, w))


def extrapolation(
    kl: Num[np.ndarray, " K"], gold: Num[np.ndarray, " K"], form: str, fraction: float
) -> Extrapolation:
    """Fits a curve to the points whose KL is at most `fraction` of the largest, and tests it on the others.

    Raises ValueError if either side has too few points.
    """
    kl, gold = np.asarray(kl, float), np.asarray(gold, float)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction = {fraction}: choose one between 0 and 1, to test beyond it")
    cut = fraction * float(kl.max())
    near = kl <= cut
    fitted = fit(kl[near], gold[near], form)
    error = fitted.predict(kl[~near]) - gold[~near]
    return Extrapolation(
        fit=fitted,
        cut=cut,
        points=len(error),
        bias=float(error.mean()),
        rmse=float(np.sqrt(np.mean(error**2))),
        r2=_r2(fitted.predict(kl[~near]), gold[~near], np.ones(len(error))),
    )


def turning_point(
    kl: Sequence[np.ndarray] | np.ndarray,
    gold: Sequence[np.ndarray] | np.ndarray,
    *,
    bandwidth: float = 0.1,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> TurningPoint:
    """The KL at which gold turns, from one curve of points (kl, gold) for each of S seeds, in any order.

    Each curve is smoothed onto a grid of d = sqrt(KL) that all seeds cover (local linear regression, Gaussian
    weights whose standard deviation is `bandwidth` of the range), and the peak is the maximum of their mean.
    A maximum over noise is always above the end, so the drop of each seed is measured in its own curve from
    the peak of the *other* seeds' mean to the end; on a plateau this drop has mean zero. Gold turned if the
    mean drop is above `margin`, Student's one-sided bound at `level` (S - 1 degrees of freedom) times the
    standard error over seeds. The interval resamples seeds, with deviations from the mean widened by
    `intervals.widening_factor` because few seeds vary too little. A resample turns if its maximum is above
    its end by `margin`; otherwise it counts as `end`.
    Raises ValueError for fewer than two seeds, or seeds without a common range of KL.
    """
    grid, curves = _on_common_grid(kl, gold, bandwidth)
    seeds, high = len(curves), grid[-1]
    others = (curves.sum(axis=0) - curves) / (seeds - 1)
    drops = curves[np.arange(seeds), others.argmax(axis=1)] - curves[:, -1]
    drop = float(drops.mean())
    margin = float(student.ppf(level, seeds - 1) * drops.std(ddof=1) / np.sqrt(seeds))
    mean = curves.mean(axis=0)
    turned = drop > margin
    place = int(mean.argmax()) if turned else len(grid) - 1

    rows = np.random.default_rng(seed).integers(seeds, size=(resamples, seeds))
    factor = widening_factor(seeds, level)
    means = mean + factor * (curves[rows].mean(axis=1) - mean)  # [resamples, grid]
    turns = means.max(axis=1) - means[:, -1] > margin
    peaks = np.where(turns, grid[means.argmax(axis=1)], high) ** 2
    bounds = np.quantile(peaks, [(1 - level) / 2, (1 + level) / 2])
    return TurningPoint(
        turned=bool(turned),
        kl=float(grid[place] ** 2),
        low=float(bounds[0]),
        high=float(bounds[1]),
        share=float(turns.mean()),
        gold=float(mean[place]),
        drop=drop,
        margin=margin,
        end=float(high**2),
    )


def _tilt(values, log_p, x) -> tuple[float, float, float]:
    """KL, gold and effective sample size of p exp(x values) / Z, where p sums to one."""
    exponent = log_p + x * values
    largest = exponent.max()
    weights = np.exp(exponent - largest)
    z = weights.sum()
    gold = np.sum(weights * values) / z  # no BLAS: its threads cost more than they do here
    kl = x * gold - largest - np.log(z) if x else 0.0
    return float(max(kl, 0.0)), float(gold), float(z**2 / np.sum(weights**2))


def _ascending(lambdas) -> np.ndarray:
    lambdas = np.asarray(LAMBDAS if lambdas is None else lambdas, float)
    if not (
        len(lambdas) and lambdas[0] >= 0 and lambdas[-1] < np.inf and np.all(np.diff(lambdas) > 0)
    ):
        raise ValueError("lambdas, which are 1 / beta, must ascend from 0 or more, all finite")
    return lambdas


def _basis(kl, form) -> np.ndarray:
    """The columns [..., 2] that alpha and beta multiply; d log d is 0 at d = 0."""
    d = np.sqrt(kl)
    if form == "best_of_n":
        return np.stack([d, -(d**2)], axis=-1)
    if form == "rl":
        return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)
    raise ValueError(f'form = "{form}" is no curve of Gao et al.: use best_of_n or rl')


def _r2(predicted, measured, weights) -> float:
    spread = weights @ (measured - np.average(measured, weights=weights)) ** 2
    wrong = weights @ (predicted - measured) ** 2
    return float(1.0 - wrong / spread) if spread > 0 else float("nan")


def _on_common_grid(kl, gold, bandwidth, points: int = 201) -> tuple[np.ndarray, np.ndarray]:
    """A grid of d = sqrt(KL) that all seeds cover, and the smoothed curve of each seed on it [S, points]."""
    if len(kl) != len(gold) or len(kl) < 2:
        raise ValueError(
            f"kl has {len(kl)} curves, gold {len(gold)}: give two seeds or more of each"
        )
    if not all(np.all(np.isfinite(x)) for x in (*kl, *gold)):
        raise ValueError("kl and gold must be finite: leave out the other points")
    d = [np.sqrt(np.maximum(np.asarray(x, float), 0.0)) for x in kl]
    low, high = max(x.min() for x in d), min(x.max() for x in d)
    if not low < high:
        raise ValueError(
            f"some seed ends at KL {high**2:.3g}, another begins at {low**2:.3g}: "
            "no KL is common to all"
        )
    grid, width = np.linspace(low, high, points), bandwidth * (high - low)
    curves = zip(d, gold, strict=True)
    return grid, np.array([_smooth(grid, x, np.asarray(y, float), width) for x, y in curves])


def _smooth(grid, x, y, width) -> np.ndarray:
    """Local linear regression of y on x at each point of the grid."""
    away = x - grid[:, None]  # [G, K]
    log_w = -0.5 * (away / width) ** 2
    w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    centre = np.sum(w * away, axis=1, keepdims=True)
    spread = np.sum(w * (away - centre) ** 2, axis=1)
    # a single point in reach determines no slope: then the level alone
    slope = np.sum(w * (away - centre) * y, axis=1) / (spread + 1e-6 * width**2)
    return np.sum(w * y, axis=1) - slope * centre[:, 0]
