"""Numbers that compare responses with reference answers, and verified draws: pass@k and maj@k.

Rows of one prompt are its draws, so intervals (95 %) are over prompts. `prompts` [N] are any names of groups:
rows of equal text and different answers need different names.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from math import comb

import numpy as np
from jaxtyping import Bool, Float

from rlhf_jax.evaluation.intervals import (
    Groups,
    Interval,
    accuracy,
    bootstrap_interval,
    group_numbers,
    percentile_interval,
)

References = Sequence[str | Sequence[str]]
RESAMPLES = 1000


def compare(
    names: Sequence[str], responses: Sequence[str], answers: References, prompts: Groups
) -> dict[str, dict[str, float]]:
    """Overlap of N responses with their answers, a text each or a list of several: {name: mean, low, high}.

    `names` are keys of `OVERLAPS`. BLEU (Papineni et al., 2002) and chrF (Popović, 2015) are of the whole
    corpus, from 0 to 100, as sacrebleu has them; all references count. ROUGE-1, -2 and -L (Lin, 2004) are the
    mean F1 of rouge-score with stemming, and "exact match" the share of responses that equal a reference but
    for white space; both lie between 0 and 1, and the best reference of a row counts.

    Raises ValueError for an unknown name, no responses, or a row without a reference.
    """
    if unknown := [name for name in names if name not in OVERLAPS]:
        raise ValueError(f"{unknown[0]!r} is no comparison: choose among {', '.join(OVERLAPS)}")
    if not len(responses) == len(answers) > 0:
        raise ValueError(
            f"{len(responses)} responses have {len(answers)} answers: give one for each"
        )
    several = [[one] if isinstance(one, str) else list(one) for one in answers]
    for i, found in enumerate(several):
        if not found or not all(isinstance(one, str) for one in found):
            raise ValueError(f"answers[{i}] is {answers[i]!r:.80}: give a text, or a list of texts")
    return {name: OVERLAPS[name](list(responses), several, prompts)._asdict() for name in names}


def pass_at_k(correct: Bool[np.ndarray, " N"], prompts: Groups, k: int) -> Float[np.ndarray, " G"]:
    """The chance that k of a prompt's n draws, c of them correct, contain a correct one (Chen et al., 2021).

    It is 1 - C(n - c, k) / C(n, k), without bias, for each prompt in the order of its first row. Raises
    ValueError for a prompt with fewer than `k` draws.
    """
    draws = _draws(prompts, len(correct), k)
    return np.array(
        [1 - comb(len(own) - int(correct[own].sum()), k) / comb(len(own), k) for own in draws]
    )


def maj_at_k(
    correct: Bool[np.ndarray, " N"], said: Sequence[Hashable], prompts: Groups, k: int
) -> Float[np.ndarray, " G"]:
    """The chance that the vote of k of a prompt's n draws is correct (self-consistency; Wang et al., 2023).

    The most frequent answer among the k draws wins, ties are broken at random, and None does not vote. The
    result is the exact mean over all C(n, k) subsets, for each prompt in the order of its first row. Raises
    ValueError for a prompt with fewer than `k` draws.
    """
    chances = []
    for own in _draws(prompts, len(correct), k):
        votes = Counter(said[i] for i in own)
        right = {said[i] for i in own if correct[i]} - {None}
        blank = votes.pop(None, 0)
        wins = sum(
            _wins(votes[x], [n for y, n in votes.items() if y != x], blank, k) for x in right
        )
        chances.append(float(Fraction(wins) / comb(len(own), k)))
    return np.array(chances)


def _wins(own: int, others: list[int], blank: int, k: int) -> Fraction:
    """The number of subsets of k draws in which an answer wins; a tie of t answers counts 1/t.

    `own` draws give that answer, `others` are the numbers of draws of each other one, and `blank` have none.
    """
    total = Fraction(0)
    for votes in range(1, min(own, k) + 1):
        ways = {
            (0, 1): 1
        }  # number of subsets of the others by their size, and by how many are tied
        for n in others:
            longer = defaultdict(int)
            for (size, tied), many in ways.items():
                for more in range(min(n, votes, k - votes - size) + 1):
                    longer[size + more, tied + (more == votes)] += many * comb(n, more)
            ways = longer
        for (size, tied), many in ways.items():
            left = comb(own, votes) * many * comb(blank, k - votes - size)
            total += Fraction(left, tied)
    return total


def _draws(prompts: Groups, n: int, k: int) -> list[np.ndarray]:
    """The rows of each prompt, in the order of the first ones."""
    group = group_numbers(np.arange(n) if prompts is None else prompts, n)
    first = dict.fromkeys(group.tolist())
    draws = [np.flatnonzero(group == one) for one in first]
    fewest = min(map(len, draws), default=0)
    if not 1 <= k <= fewest:
        raise ValueError(
            f"k = {k}, and the fewest draws of a prompt are {fewest}: choose a k from 1 to that number, "
            "or draw more"
        )
    return draws


def _exact(responses: list[str], answers: list[list[str]], prompts: Groups) -> Interval:
    plain = lambda text: " ".join(text.split())
    pairs = zip(responses, answers, strict=True)
    equal = [plain(said) in map(plain, references) for said, references in pairs]
    return accuracy(np.where(equal, 1.0, -1.0), prompts)


def _rouge(kind: str, responses: list[str], answers: list[list[str]], prompts: Groups) -> Interval:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    pairs = zip(responses, answers, strict=True)
    found = [scorer.score_multi(references, said)[kind].fmeasure for said, references in pairs]
    return bootstrap_interval(np.array(found, float), prompts)


def _corpus(kind: str, responses: list[str], answers: list[list[str]], prompts: Groups) -> Interval:
    """BLEU or chrF, whose sufficient statistics (counts of n-grams, lengths) are resampled by prompt."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    metric = BLEU(force=True) if kind == "BLEU" else CHRF()
    most = max(map(len, answers))
    streams = [[one[i] if i < len(one) else None for one in answers] for i in range(most)]
    rows = np.array(metric._extract_corpus_statistics(responses, streams))  # pyright: ignore[reportArgumentType]
    group = group_numbers(np.arange(len(rows)) if prompts is None else prompts, len(rows))
    n = int(group.max()) + 1
    sums = np.zeros((n, rows.shape[1]), rows.dtype)
    np.add.at(sums, group, rows)
    score = lambda stats: metric._compute_score_from_stats(stats.tolist()).score
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    resampled = np.array([score(stats) for stats in times @ sums])
    return percentile_interval(score(rows.sum(0)), resampled, n)


OVERLAPS: dict[str, Callable[[list[str], list[list[str]], Groups], Interval]] = {
    **{name: functools.partial(_corpus, name) for name in ("BLEU", "chrF")},
    **{f"ROUGE-{x}": functools.partial(_rouge, f"rouge{x}") for x in ("1", "2", "L")},
    "exact match": _exact,
}
"""The comparisons of `compare` by name."""
