"""How far each person's judgements can be trusted, and who is flagged, by false discovery rate.

Each test asks about one person whether the judgements look like those of somebody careful:

    position    the response shown first is chosen in half of the decided pairs (exact binomial, two-sided)
    consensus   agreement with what the others say, compared with the others' own (Fisher, too low)
    fatigue     agreement in the second half of a person's work, compared with the first (Fisher, too low)
    length      the longer response is chosen more often than the person's accuracy explains, by no more than
                among the others (normal)
    gold        hidden gold answered right, as often as by the others (Fisher, too low)
    self        repeats answered as before, as often as by the others (Fisher, too low)

What the others say is the posterior of Dawid and Skene's model without the person's own vote. P values of all
people and tests are corrected together (Benjamini and Hochberg, 1995).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit, logit
from scipy.stats import binomtest, false_discovery_control, fisher_exact, norm

from rlhf_jax.people.aggregation import dawid_skene
from rlhf_jax.people.judgements import Judgements, work

TESTS = ("position", "consensus", "fatigue", "length", "gold", "self")
LEAST = 20
"""Votes of a person from which the normal distribution judges the preference for length."""
RATE = 0.05
"""Expected share of honest people among those who are flagged."""


class Share(NamedTuple):
    """`k` of `n`; a half counts half."""

    k: float
    n: int

    @property
    def mean(self) -> float:
        """The proportion; NaN of nothing."""
        return self.k / self.n if self.n else float("nan")

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the proportion; 0 and 1 of nothing."""
        if not self.n:
            return 0.0, 1.0
        found = binomtest(round(self.k), self.n).proportion_ci(level, "wilson")
        return float(found.low), float(found.high)


class Person(NamedTuple):
    """One person's record."""

    name: str
    judged: int
    accuracy: float
    """Probability of choosing the better response, in Dawid and Skene's model."""
    position: Share
    consensus: Share
    halves: tuple[Share, Share]
    """Agreement with the others in the first and the second half of the work."""
    length: float
    """How much more often the longer response was chosen than the accuracy explains, from -1 to 1."""
    gold: Share
    self: Share
    seconds: float
    """Median time of a judgement; NaN where none is known."""
    p_values: dict[str, float]
    """P value of each test that could be made."""
    flags: tuple[str, ...]
    """Tests by which the person is flagged."""


def people(judged: Judgements, rate: float = RATE) -> list[Person]:
    """The record of each person, in the order of `judged.people`."""
    worked = work(judged)
    pairs = _Pairs.of(worked)
    records = [_facts(judged, worked, pairs, p) for p in range(len(judged.people))]
    pooled = {
        name: _without_each([getattr(x, name) for x in records])
        for name in ("consensus", "gold", "self")
    }
    tested = [_p_values(x, pooled, p) for p, x in enumerate(records)]
    for p, value in _too_long(pairs).items():
        tested[p]["length"] = value
    keys = [(p, name) for p, found in enumerate(tested) for name in found]
    values = [tested[p][name] for p, name in keys]
    corrected = false_discovery_control(values) if values else []
    flagged = {key for key, q in zip(keys, corrected, strict=True) if q <= rate}
    return [
        x._replace(p_values=tested[p], flags=tuple(name for name in TESTS if (p, name) in flagged))
        for p, x in enumerate(records)
    ]


class _Pairs(NamedTuple):
    """Decided votes, with what the others say about their pairs."""

    person: np.ndarray
    first: np.ndarray
    others: Float[np.ndarray, " N"]  # log-odds that the first is better, without this vote
    accuracy: Float[np.ndarray, " people"]
    words: np.ndarray

    @classmethod
    def of(cls, judged: Judgements) -> "_Pairs":
        votes = judged.votes
        fitted = dawid_skene(votes) if len(votes.item) else None
        decided = (judged.first == 0) | (judged.first == 1)
        x = judged.where(decided)
        known = np.full(len(judged.people), 0.75)
        if fitted is not None:
            known[: len(fitted.accuracy)] = fitted.accuracy
        evidence = logit(known)[x.person] * np.where(x.first == 1, 1, -1)
        total = np.bincount(x.item, evidence, minlength=len(judged.items))
        count = np.bincount(x.item, minlength=len(judged.items))
        alone = count[x.item] < 2
        others = np.where(alone, 0.0, total[x.item] - evidence)
        return cls(x.person, x.first, others, known, x.words)

    def agreement(self, person: int) -> np.ndarray:
        """1 or 0 for each of a person's decided votes on which the others say something, in their order."""
        rows = (self.person == person) & (self.others != 0)
        return ((self.others[rows] > 0) == (self.first[rows] == 1)).astype(float)

    def longer(self, person: int) -> tuple[np.ndarray, np.ndarray]:
        """1 where the longer response was chosen, and the probability of that by the accuracy alone."""
        rows = (self.person == person) & (self.words != 0)
        toward = np.where(self.words[rows] > 0, 1, -1)
        better, q = expit(toward * self.others[rows]), self.accuracy[person]
        chosen = (toward > 0) == (self.first[rows] == 1)
        return chosen.astype(float), better * q + (1 - better) * (1 - q)


def _facts(judged: Judgements, worked: Judgements, pairs: _Pairs, p: int) -> Person:
    mine = worked.where(worked.person == p)
    placed = mine.chosen_first[(mine.chosen_first == 0) | (mine.chosen_first == 1)]
    agreed = pairs.agreement(p)
    half = len(agreed) // 2
    longer, expected = pairs.longer(p)
    times = mine.seconds[~np.isnan(mine.seconds)]
    hidden = judged.where((judged.person == p) & judged.hidden)
    return Person(
        name=judged.people[p],
        judged=len(mine.item),
        accuracy=float(pairs.accuracy[p]),
        position=_share(placed),
        consensus=_share(agreed),
        halves=(_share(agreed[:half]), _share(agreed[half:])),
        length=float((longer - expected).mean()) if len(longer) else float("nan"),
        gold=_share([_same(a, b) for a, b in zip(hidden.first, hidden.gold, strict=True)]),
        self=_share(_kept(judged, p)),
        seconds=float(np.median(times)) if len(times) else float("nan"),
        p_values={},
        flags=(),
    )


def _kept(judged: Judgements, p: int) -> list[bool]:
    """True for each repeat that a person answered as the first time; ties and "both are bad" count."""
    mine = judged.where(judged.person == p)
    before = dict(zip(mine.item.tolist(), mine.first.tolist(), strict=True))
    again = mine.where(mine.repeats >= 0)
    pairs = zip(again.repeats.tolist(), again.first.tolist(), strict=True)
    return [_same(before[old], new) for old, new in pairs if old in before]


def _same(a: float, b: float) -> bool:
    return bool(a == b or (np.isnan(a) and np.isnan(b)))


def _share(right) -> Share:
    return Share(float(np.sum(right)), len(right))


def _without_each(shares: list[Share]) -> list[Share]:
    """The counts of everybody but one, for each."""
    k, n = sum(x.k for x in shares), sum(x.n for x in shares)
    return [Share(k - x.k, n - x.n) for x in shares]


def _p_values(x: Person, pooled: dict[str, list[Share]], p: int) -> dict[str, float]:
    found = {}
    if x.position.n:
        found["position"] = float(binomtest(round(x.position.k), x.position.n).pvalue)
    for name in ("consensus", "gold", "self"):
        if getattr(x, name).n and pooled[name][p].n:
            found[name] = _fewer(getattr(x, name), pooled[name][p])
    early, late = x.halves
    if early.n:
        found["fatigue"] = _fewer(late, early)
    return found


def _fewer(a: Share, b: Share) -> float:
    """P value of Fisher's exact test that the share `a` is as high as `b`, against a lower one."""
    tested = fisher_exact([[a.k, a.n - a.k], [b.k, b.n - b.k]], alternative="less")
    return float(tested[1])  # pyright: ignore[reportArgumentType]


def _too_long(pairs: _Pairs) -> dict[int, float]:
    """P value of each person's choices of the longer response, beside the others', who may be right in it."""
    over, spread, n = np.zeros((3, len(pairs.accuracy)))
    for p in range(len(n)):
        longer, expected = pairs.longer(p)
        over[p], spread[p] = (longer - expected).sum(), np.sum(expected * (1 - expected))
        n[p] = len(longer)
    found = {}
    for p in np.flatnonzero((spread > 0) & (n >= LEAST)):
        rest = n.sum() - n[p]
        usual = (over.sum() - over[p]) / rest if rest else 0.0
        found[int(p)] = float(norm.sf((over[p] - n[p] * usual) / np.sqrt(spread[p])))
    return found
