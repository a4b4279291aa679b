"""Bradley and Terry's model of who beats whom, with Davidson's ties, an order term, a length term, and
intervals for votes that share prompts and people.

The logit of a vote for a over b is

    s = strength[a] - strength[b] + order (a first: 1, second: -1, unknown: 0) + length x,

    P(a) = e^(s/2) / Z, P(b) = e^(-s/2) / Z, P(tie) = tie / Z, Z = e^(s/2) + e^(-s/2) + tie.

Without ties this is Bradley and Terry (1952); tie is Davidson's nu (1970). "Both are bad" is no tie and does
not belong here. A weak normal prior on the strengths (`prior_sd`) keeps them finite where one policy never
lost, or where nothing joins two groups of policies; `Fit.loose` names the policies that it alone holds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

PRIOR_SD = 10.0
"""Standard deviation of a strength's prior, in logits: it moves an estimate of error .3 by a thousandth."""


class Contests(NamedTuple):
    """N votes between policies numbered from 0."""

    a: Int[np.ndarray, " N"]
    b: Int[np.ndarray, " N"]
    result: Float[np.ndarray, " N"]
    """1 where a was preferred, 0 where b was, 1/2 for a tie."""
    order: Num[np.ndarray, " N"] | None = None
    """1 where a was shown first, -1 where b was; None leaves the term out."""
    length: Num[np.ndarray, " N"] | None = None
    """Standardised length of a less that of b; None leaves the term out."""
    weight: Num[np.ndarray, " N"] | None = None
    """Number of equal votes that a row stands for; None: one each."""


class Fit(NamedTuple):
    """Strengths of K policies, then the terms that were fitted, and their covariances."""

    names: tuple[str, ...]
    """The policies."""
    terms: tuple[str, ...]
    """Those of "order", "length" and "log tie" that were fitted."""
    parameters: Float[np.ndarray, " P"]
    """Strengths of mean zero, and the terms."""
    covariance: Float[np.ndarray, "P P"]
    """Inverse of the posterior's information, which takes votes as independent."""
    scores: Float[np.ndarray, "N P"]
    """Gradient of each row's log-likelihood."""
    precision: Float[np.ndarray, " P"]
    """Precision of the prior."""
    log_likelihood: float
    loose: tuple[str, ...]
    """Policies whose strengths the prior alone keeps finite, or joins to the others."""

    def strength_against(self, reference: int = 0) -> Float[np.ndarray, " K"]:
        """Strengths less that of policy number `reference`."""
        return self.parameters[: len(self.names)] - self.parameters[reference]

    def term(self, name: str) -> float:
        """A fitted term."""
        return float(self.parameters[len(self.names) + self.terms.index(name)])

    def errors_against(
        self, reference: int = 0, covariance: Float[np.ndarray, "P P"] | None = None
    ) -> Float[np.ndarray, " K"]:
        """Standard errors of `strength_against`."""
        k, v = len(self.names), self.covariance if covariance is None else covariance
        v = v[:k, :k]
        return np.sqrt(np.maximum(np.diag(v) + v[reference, reference] - 2 * v[:, reference], 0.0))


def fit(
    votes: Contests,
    names: Sequence[str],
    prior_sd: float = PRIOR_SD,
    tolerance: float = 1e-10,
    most: int = 200,
) -> Fit:
    """The mode of the posterior, by Newton's method with step halving, until the gradient is zero.

    `prior_sd` np.inf gives maximum likelihood, which has to exist then. Raises ValueError for no votes, and
    for policies that `names` has not.
    """
    k, n = len(names), len(votes.a)
    if not n:
        raise ValueError("there are no votes: Bradley-Terry needs at least one")
    if max(votes.a.max(), votes.b.max()) >= k:
        raise ValueError(
            f"votes are about policy {max(votes.a.max(), votes.b.max())}, of {k} names"
        )
    weight = np.ones(n) if votes.weight is None else np.asarray(votes.weight, np.float64)
    ties = bool(np.any(votes.result == 0.5))
    columns, terms = [np.eye(k)[votes.a] - np.eye(k)[votes.b]], []
    for name, values in (("order", votes.order), ("length", votes.length)):
        if values is not None:
            columns.append(np.asarray(values, np.float64)[:, None])
            terms.append(name)
    x = np.concatenate(columns, axis=1)  # [N, P], without the tie
    p = x.shape[1] + ties
    precision = np.zeros(p)
    precision[: x.shape[1]] = prior_sd**-2.0
    theta = np.zeros(p)
    value, gradient, information, scores = _derivatives(theta, x, votes.result, weight, ties)

    def penalised(theta, value):
        return value - 0.5 * precision @ theta**2

    # strengths have no origin: a row of ones takes theirs to mean zero, and changes no likelihood
    pin = np.zeros((p, p))
    pin[:k, :k] = 1.0
    for _ in range(most):
        total = gradient - precision * theta
        if np.abs(total).max() < tolerance * max(1.0, weight.sum()):
            break
        step = np.linalg.solve(information + np.diag(precision) + pin, total)
        size, before = 1.0, penalised(theta, value)
        while True:
            trial = theta + size * step
            value, gradient, information, scores = _derivatives(
                trial, x, votes.result, weight, ties
            )
            if penalised(trial, value) >= before - 1e-12 * abs(before) or size < 1e-8:
                break
            size /= 2
        theta = trial
    else:
        raise ValueError(
            "Bradley-Terry did not converge: give the prior a finite standard deviation"
        )
    covariance = np.linalg.inv(information + np.diag(precision) + pin)
    terms = (*terms, "log tie") if ties else tuple(terms)
    out = loose(votes, names)
    return Fit(tuple(names), terms, theta, covariance, scores, precision, value, out)


def _derivatives(theta, x, result, weight, ties):
    """Log-likelihood, its gradient, the observed information, and the gradient of each row."""
    m = x.shape[1]
    half = x @ theta[:m] / 2
    log_tie = theta[m] if ties else -np.inf
    top = np.maximum(np.abs(half), log_tie)
    up, down, tie = np.exp(half - top), np.exp(-half - top), np.exp(log_tie - top)
    z = up + down + tie
    won, lost, tied = up / z, down / z, tie / z
    said = np.where(result == 1, half, np.where(result == 0, -half, log_tie if ties else 0.0))
    value = float(weight @ (said - top - np.log(z)))
    side = np.where(result == 1, 0.5, np.where(result == 0, -0.5, 0.0)) - (won - lost) / 2
    scores = x * side[:, None]
    mean = (won - lost) / 2
    information = (x * (weight * ((won + lost) / 4 - mean**2))[:, None]).T @ x
    if ties:
        scores = np.concatenate([scores, ((result == 0.5) - tied)[:, None]], axis=1)
        cross = -(weight * tied * mean) @ x
        corner = weight @ (tied * (1 - tied))
        information = np.block([[information, cross[:, None]], [cross[None, :], corner]])
    scores = scores * weight[:, None]
    return value, scores.sum(0), information, scores


def loose(votes: Contests, names: Sequence[str]) -> tuple[str, ...]:
    """Policies outside the largest set whose strengths the votes alone make finite (Ford, 1957).

    In that set each policy is reached from each other one by wins and ties. Where no set of two or more is
    the largest, all policies are outside.
    """
    k = len(names)
    won = np.zeros((k, k))
    np.add.at(won, (votes.a, votes.b), votes.result > 0)
    np.add.at(won, (votes.b, votes.a), votes.result < 1)
    _, part = connected_components(csr_array(won), directed=True, connection="strong")
    sizes = np.bincount(part)
    if k > 1 and (sizes.max() == 1 or np.sum(sizes == sizes.max()) > 1):
        return tuple(names)
    return tuple(name for name, x in zip(names, part, strict=True) if x != np.argmax(sizes))


def two_way_covariance(
    fit: Fit, prompts: Int[np.ndarray, " N"], people: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "P P"]:
    """Sandwich covariance for votes that share prompts and people, who have tastes of their own.

    V = H^-1 (M_prompt + M_person - M_both) H^-1, where M sums the outer products of the groups' scores, each
    with its correction G / (G - 1) (Cameron, Gelbach and Miller, 2011). Where the difference is not positive,
    M_both is not taken off. The prior's variance is added, H^-1 diag(precision) H^-1, so that what it alone
    holds has a wide interval, and votes that are all ties, whose scores are zero, have H^-1. Use it with
    `quantile`. NaN for a single prompt or person, who tell no spread.
    """
    if min(len(np.unique(prompts)), len(np.unique(people))) < 2:
        return np.full_like(fit.covariance, np.nan)
    _, both = np.unique(np.stack([prompts, people]), axis=1, return_inverse=True)
    parts = [_meat(fit.scores, x) for x in (prompts, people, both.reshape(-1))]
    meat = parts[0] + parts[1] - parts[2]
    if np.linalg.eigvalsh(meat).min() < -1e-9 * np.trace(meat):
        meat = parts[0] + parts[1]
    if np.trace(meat) < 1e-12 * len(fit.scores):
        return fit.covariance
    return fit.covariance @ (meat + np.diag(fit.precision)) @ fit.covariance


def _meat(scores, groups) -> Float[np.ndarray, "P P"]:
    _, group = np.unique(groups, return_inverse=True)
    n = group.max() + 1
    sums = np.zeros((n, scores.shape[1]))
    np.add.at(sums, group, scores)
    return sums.T @ sums * n / (n - 1)


def quantile(prompts, people, level: float = 0.95) -> float:
    """Student's quantile for two-way intervals: at the smaller number of groups, less one.

    Infinite for a single prompt or person. Under eight people the intervals are rough.
    """
    groups = min(len(np.unique(prompts)), len(np.unique(people)))
    return float(student.ppf((1 + level) / 2, groups - 1)) if groups > 1 else float("inf")


def win_rates(fit: Fit) -> Float[np.ndarray, "K K"]:
    """Probability that the row's policy beats the column's: ties count half, order none, lengths equal."""
    k = len(fit.names)
    half = (fit.parameters[:k, None] - fit.parameters[None, :k]) / 2
    tie = np.exp(fit.term("log tie")) if "log tie" in fit.terms else 0.0
    z = np.exp(half) + np.exp(-half) + tie
    return (np.exp(half) + tie / 2) / z
