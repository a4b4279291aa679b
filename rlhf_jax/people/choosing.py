"""Which pairs to ask people about next, from an ensemble of reward models.

    chosen = choose("bald", pool, 100, rng)     # indices into the pool, with scores and probabilities

A strategy scores pairs. `choose` takes the best, at most two of a prompt, and gives one fifth of the places
to a uniform stream, because what was chosen is no sample: agreement, win rates and calibration are computed
on that stream alone. Strategies:

    random          uniform
    entropy         entropy of the ensemble's mean prediction; it also seeks pairs that nobody can tell apart
    bald            entropy of the mean less the mean entropy: the members' dispute (Houlsby et al., 2011)
    d_optimal       gain of log det of the reward's information, greedy with rank-one updates (Fedorov, 1972)
    double_thompson the favourites of two members, drawn for each prompt (Wu and Liu, 2016)

and two controls, without which an experiment has no power:

    duplicates      pairs that were asked already: must lose
    gold            uniform, and told the truth in place of people's answers: must win
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy
from jaxtyping import Float, Int

UNIFORM = 0.2
"""Share of the uniform stream."""
CAP = 2
"""Pairs of one prompt in a batch."""


class Pool(NamedTuple):
    """N pairs that could be asked about. Pair n compares two of the responses to its prompt."""

    prompt: Int[np.ndarray, " N"]
    a: Int[np.ndarray, " N"]
    """Number of the first response, among all responses of the pool."""
    b: Int[np.ndarray, " N"]
    rewards: Float[np.ndarray, "M R"]
    """Reward of each response by each of M members."""
    features: Float[np.ndarray, "R D"]
    """Last layer of the reward model's trunk for each response."""
    asked: Float[np.ndarray, "A D"]
    """Differences of features (a less b) of the pairs asked before."""
    times: Int[np.ndarray, " N"]
    """How often each pair was asked before."""

    @property
    def margins(self) -> Float[np.ndarray, "M N"]:
        """Reward of a less that of b, by each member."""
        return self.rewards[:, self.a] - self.rewards[:, self.b]


class Chosen(NamedTuple):
    """Pairs that were chosen, and what is stored with them."""

    index: Int[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    """The strategy's score of the pair; NaN in the uniform stream."""
    probability: Float[np.ndarray, " n"]
    """Probability of being drawn in the uniform stream; NaN for pairs that a score chose."""
    uniform: np.ndarray
    """True in the uniform stream."""


def _entropy(p):
    return -scipy.special.xlogy(p, p) - scipy.special.xlogy(1 - p, 1 - p)


def random(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Uniform scores."""
    return rng.random(len(pool.a))


def entropy(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Entropy of the mean prediction, in nats."""
    return _entropy(scipy.special.expit(pool.margins).mean(0))


def bald(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Mutual information of the answer and the member, in nats: H(E p) - E H(p)."""
    p = scipy.special.expit(pool.margins)
    return _entropy(p.mean(0)) - _entropy(p).mean(0)


def d_optimal(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Scores that order pairs as a greedy choice of the largest gain in log det of the information.

    The information of a pair is w x x^T, with x the difference of features and w = p (1 - p). After each
    choice the inverse takes a rank-one update (Sherman and Morrison), so that a batch does not repeat itself.
    Pairs beyond those that a batch of `n` could need have their gain before the first choice, less than any
    chosen one's.
    """
    x = pool.features[pool.a] - pool.features[pool.b]
    p = scipy.special.expit(pool.margins).mean(0)
    x = x * np.sqrt(p * (1 - p))[:, None]
    scale = np.sqrt(np.mean(x**2)) or 1.0
    x, asked = x / scale, pool.asked / (2 * scale)  # w is at most 1/4
    inverse = np.linalg.inv(np.eye(x.shape[1]) + asked.T @ asked)
    gains = np.einsum("nd,de,ne->n", x, inverse, x)
    scores, left, current = np.log1p(gains), pool.times == 0, gains.copy()
    used = np.zeros(pool.prompt.max(initial=-1) + 1, int)
    for rank in range(min(n, len(x))):
        k = int(np.argmax(np.where(left, current, -1.0)))
        scores[k] = len(x) + n - rank
        left[k] = False
        used[pool.prompt[k]] += 1
        if used[pool.prompt[k]] >= CAP:
            left &= pool.prompt != pool.prompt[k]
        direction = inverse @ x[k]
        inverse -= np.outer(direction, direction) / (1 + current[k])
        current -= (x @ direction) ** 2 / (1 + current[k])
        if not left.any():
            break
    return scores


def double_thompson(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """One or more for each prompt's pair that two drawn members like best; random below one elsewhere."""
    scores = rng.random(len(pool.a))
    for prompt in np.unique(pool.prompt):
        rows = np.flatnonzero(pool.prompt == prompt)
        responses = np.unique(np.concatenate([pool.a[rows], pool.b[rows]]))
        for _ in range(20):
            one, two = rng.integers(len(pool.rewards), size=2)
            best = responses[pool.rewards[one, responses].argmax()]
            other = responses[pool.rewards[two, responses].argmax()]
            if best != other:
                break
        else:  # all members agree on the best one
            mean = pool.rewards[:, responses].mean(0)
            best, other = responses[np.argsort(-mean)[:2]]
        pair = {int(best), int(other)}
        hit = [k for k in rows if {int(pool.a[k]), int(pool.b[k])} == pair]
        scores[hit] += 1
    return scores


def duplicates(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """How often the pair was asked before."""
    return pool.times + rng.random(len(pool.a))


def gold(pool: Pool, n: int, rng: np.random.Generator) -> Float[np.ndarray, " N"]:
    """Uniform scores: what the control knows is the answer, which whoever asks gives in people's place."""
    return random(pool, n, rng)


Strategy = Callable[[Pool, int, np.random.Generator], np.ndarray]
STRATEGIES: dict[str, Strategy] = {
    f.__name__: f for f in (random, entropy, bald, d_optimal, double_thompson, duplicates, gold)
}
Name = Literal["random", "entropy", "bald", "d_optimal", "double_thompson", "duplicates", "gold"]
NAMES: tuple[Name, ...] = get_args(Name)
REPEATING = ("duplicates",)
"""Strategies that may ask about a pair again, and have no cap."""


def choose(
    strategy: str | Strategy,
    pool: Pool,
    n: int,
    rng: np.random.Generator,
    uniform: float = UNIFORM,
) -> Chosen:
    """The `n` pairs to ask: a uniform stream first, then the best by the strategy, ties at random.

    Raises ValueError where all scores of a strategy are equal, since such a strategy chooses nothing, and
    where the pool has too few pairs.
    """
    score = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    again = score.__name__ in REPEATING
    fresh = np.flatnonzero(pool.times == 0)
    if len(fresh) < n:
        raise ValueError(
            f"{n} pairs are wanted, and the pool has {len(fresh)} that were not asked yet"
        )
    stream = rng.choice(fresh, round(uniform * n), replace=False)
    seen = pool.times.copy()
    seen[stream] += 1  # so that a strategy takes the stream as asked
    gone = pool.features[pool.a[stream]] - pool.features[pool.b[stream]]
    after = pool._replace(times=seen, asked=np.concatenate([pool.asked, gone]))
    scores = np.asarray(score(after, n - len(stream), rng), np.float64)
    if not np.all(np.isfinite(scores)) or (n > len(stream) and np.ptp(scores) == 0):
        raise ValueError(
            f"the strategy {score.__name__} gives all pairs the score {scores[0]}, and so chooses nothing"
        )
    used = np.bincount(pool.prompt[stream], minlength=pool.prompt.max() + 1)
    taken = set(stream.tolist())
    best, over = [], []
    for k in np.lexsort((rng.random(len(scores)), -scores)).tolist():
        if k in taken or (pool.times[k] and not again):
            continue
        (best if again or used[pool.prompt[k]] < CAP else over).append(k)
        used[pool.prompt[k]] += 1
        if len(best) == n - len(stream):
            break
    best = np.array((best + over)[: n - len(stream)], int)  # the cap yields where prompts are few
    index = np.concatenate([stream, best])
    first = np.arange(n) < len(stream)
    return Chosen(
        index,
        np.where(first, np.nan, scores[index]),
        np.where(first, len(stream) / len(fresh), np.nan),
        first,
    )
