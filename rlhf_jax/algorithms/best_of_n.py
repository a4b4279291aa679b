"""Best of n: the highest-scoring response among n draws (Stiennon et al., 2020; Nakano et al., 2021).

This policy needs no training and is the baseline of every trained one: one pool of draws gives its KL to
the reference and its scores for every n. Fine-tuning on the selected responses is rejection sampling, or
RAFT (Dong et al., 2023):

    demonstrations = select(samples, scores, k)  # for `sft.make_train_step`

All functions are NumPy on the host, since each pool is read only once.
"""

from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float, Int, Num

from rlhf_jax.batches import Samples, Sequences


def kl(n):
    """log n - (n - 1) / n: KL of best of n to its sampling distribution, in nats per response.

    This is an upper bound (Beirami et al., 2024), exact in the limit where no response has much probability
    and no two scores tie (Hilton and Gao, 2022); `exact_kl` is the KL of a finite distribution. `n` is a
    number or an array. Raises ValueError for n < 1.
    """
    n = np.asarray(n)
    if np.any(n < 1):
        raise ValueError(f"n = {n.min()}: the best of n needs n of 1 or more")
    return np.log(n) - (n - 1) / n


def estimates(
    scores: Num[np.ndarray, "prompts N"],
    values: Num[np.ndarray, "prompts N"],
    ns: Sequence[int] | Int[np.ndarray, " n"],
) -> Float[np.ndarray, "prompts n"]:
    """E[value of the highest-scoring of n draws] for every n of `ns`, from N draws per prompt.

    The estimate is the mean over all subsets of n of the N draws, which is unbiased (Nakano et al., 2021):
    with draws sorted by score, draw i of 1..N is the best of its subset in

        C(i - 1, n - 1) / C(N, n)

    of the subsets. Ties are broken uniformly. `values` may be `scores`, or another score (gold) of the same
    draws. Raises ValueError for an n outside 1..N, and for values that are not finite.
    """
    scores, values = _finite(scores, "scores"), _finite(values, "values")
    N = scores.shape[1]
    for n in ns:
        if not 1 <= n <= N:
            raise ValueError(
                f"n = {n} of {N} draws a prompt: choose an n between 1 and {N}, or draw more"
            )
    order = np.argsort(scores, axis=1)
    ascending = np.take_along_axis(scores, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)

    # Among equal scores all are as likely to be the best, so that each may stand for their mean.
    first = np.ones(scores.shape, bool)
    first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    group = np.cumsum(first) - 1  # over all prompts: each row starts one
    means = np.bincount(group, values.ravel()) / np.bincount(group)
    return means[group].reshape(scores.shape) @ _weights(N, np.asarray(ns))


def _weights(N: int, ns: Int[np.ndarray, " n"]) -> Float[np.ndarray, "N n"]:
    """C(i - 1, n - 1) / C(N, n) for i = 1..N: the share of subsets whose best draw is the i-th of N."""
    i = np.arange(1, N + 1)[:, None]
    ns = ns[None]
    below = np.maximum(i - ns, 0)  # where i < n there is no such subset
    log_gamma = scipy.special.gammaln
    log_subsets = log_gamma(N + 1) - log_gamma(ns + 1) - log_gamma(N - ns + 1)
    log_weights = log_gamma(i) - log_gamma(ns) - log_gamma(below + 1) - log_subsets
    return np.where(i < ns, 0.0, np.exp(log_weights))


def law(
    probabilities: Num[np.ndarray, " K"], scores: Num[np.ndarray, " K"], n: int
) -> Float[np.ndarray, " K"]:
    """Probability of each of K responses as the best of n draws from `probabilities`.

    F(y)^n - F(y-)^n for all responses with score y, divided in proportion to their probabilities; F is the
    distribution function of the score. Raises ValueError for n < 1, for probabilities that are negative or
    do not sum to one, and for scores that are not finite.
    """
    p, mass, best, group = _groups(probabilities, scores, n)
    return p * np.divide(best, mass, where=mass > 0, out=np.zeros_like(mass))[group]


def exact_kl(probabilities: Num[np.ndarray, " K"], scores: Num[np.ndarray, " K"], n: int) -> float:
    """KL of `law(probabilities, scores, n)` to `probabilities`, in nats: at most `kl(n)`."""
    _, mass, best, _ = _groups(probabilities, scores, n)
    seen = best > 0
    return float(best[seen] @ np.log(best[seen] / mass[seen]))


def _groups(probabilities, scores, n):
    """(probabilities [K]; probability of each distinct score, and of it being the best [G]; score index of
    each response [K])."""
    p, scores = _finite(probabilities, "probabilities"), _finite(scores, "scores")
    if n < 1:
        raise ValueError(f"n = {n}: the best of n needs n of 1 or more")
    if np.any(p < 0) or not np.isclose(p.sum(), 1.0, rtol=0, atol=1e-4):
        raise ValueError(
            f"the probabilities sum to {p.sum():g}, the least is {p.min():g}: "
            "give numbers of 0 or more that sum to 1"
        )
    p = p / p.sum()
    group = np.unique(scores, return_inverse=True)[1]
    mass = np.bincount(group, p)
    F = np.cumsum(mass)
    F /= F[-1]
    with np.errstate(divide="ignore"):  # log 0 where nothing lies below: then all of F^n is its own
        share = np.divide(mass, F, where=F > 0, out=np.zeros_like(F))
        # F^n - (F - mass)^n, without the difference of two numbers that are nearly equal
        best = F**n * -np.expm1(n * np.log1p(-np.minimum(share, 1.0)))
    return p, mass, best, group


def best_rows(scores: Num[np.ndarray, " B"], k: int) -> Int[np.ndarray, " R"]:
    """Row of the best of each `k` adjacent draws, in order: B / k rows.

    The first of equal scores wins: draws of a prompt are exchangeable, so this favours none. Raises
    ValueError where k does not divide B, and for scores that are not finite.
    """
    scores = _finite(scores, "scores")
    if k < 1 or len(scores) % k:
        raise ValueError(f"k = {k} does not divide the {len(scores)} scores: choose a divisor")
    return scores.reshape(-1, k).argmax(axis=1) + np.arange(0, len(scores), k)


def select(samples: Samples, scores: Num[np.ndarray, " B"], k: int) -> Sequences:
    """The winners of `best_rows` as demonstrations: `mask` marks the policy's own tokens, EOS included.

    A truncated response has no EOS to learn from. `mask` stays False at the environment's tokens.
    """
    rows = best_rows(scores, k)
    take = lambda x: np.asarray(x)[rows]
    return Sequences(take(samples.tokens), take(samples.attention_mask), take(samples.mask))


def _finite(values, name: str) -> np.ndarray:
    """The values as float64; raises ValueError where one is not finite."""
    values = np.asarray(values, np.float64)
    if not np.all(np.isfinite(values)):
        where = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
        at = ", ".join(map(str, where))
        raise ValueError(f"{name}[{at}] is {values[where]}: all of them must be finite")
    return values
