"""Baselines of a reward model, linear in the words of a response or in its length."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from rlhf_jax.evaluation.intervals import Groups, Weights, group_numbers

Kind = Literal["binary", "regression"]
STRENGTHS = 1.0, 10.0, 100.0, 1000.0
"""Strengths of L2 regularisation, one of which cross-validation chooses."""
FOLDS = 5
"""Parts of the groups in cross-validation."""


class Line(NamedTuple):
    """A linear score: weights of features, and an intercept."""

    weights: Float[np.ndarray, " F"]
    intercept: float

    def __call__(self, features) -> Float[np.ndarray, " N"]:
        """The scores of rows of features."""
        return features @ self.weights + self.intercept


def words_of(text: str) -> Counter:
    """The counts of the words and punctuation marks of a text, in lower case."""
    return Counter(re.findall(r"\w+|[^\w\s]", text.lower()))


def fit(
    features,
    targets: Float[np.ndarray, " N"],
    kind: Kind,
    l2: float,
    intercept: bool = True,
    counts: Weights = None,
) -> Line:
    """The line with the least sum of losses + l2 / 2 |weights|^2, over features [N, F], dense or sparse.

    With z the line's value and y the target, the loss is log(1 + e^z) - y z for "binary", the negative
    log-likelihood of logistic regression, and (z - y)^2 / 2 for "regression". `counts` are the weights of the
    rows in the sum.
    """
    from scipy.optimize import minimize  # whose import takes a third of a second

    binary, n = kind == "binary", features.shape[1]
    counts = np.ones(len(targets)) if counts is None else np.asarray(counts)

    def objective(x):
        weights, z = x[:n], features @ x[:n] + x[n] * intercept
        away = counts * ((scipy.special.expit(z) if binary else z) - targets)
        losses = counts @ _losses(z, targets, kind)
        gradient = np.append(features.T @ away + l2 * weights, away.sum() * intercept)
        return losses + 0.5 * l2 * weights @ weights, gradient

    found = minimize(
        objective, np.zeros(n + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000}
    )
    return Line(found.x[:n], float(found.x[n] * intercept))


def _losses(z, targets, kind: Kind) -> Float[np.ndarray, " N"]:
    """The losses of `fit`."""
    if kind == "binary":
        return np.logaddexp(0.0, z) - targets * z
    return 0.5 * (z - targets) ** 2


def of_words(
    texts: Sequence[str],
    targets: Float[np.ndarray, " N"],
    kind: Kind,
    groups: Groups = None,
    counts: Weights = None,
) -> Callable[[Sequence[str]], Float[np.ndarray, " N"]]:
    """`score(texts)` of a bag of words: a line in word counts, fitted to the targets of texts.

    Words of a single training text are left out. The strength of L2 is the one of `STRENGTHS` with the least
    loss in cross-validation, where whole `groups` are left out (without them: texts). `counts` are the
    weights of the texts.
    """
    vocabulary = _vocabulary(texts)
    features = _counts(texts, vocabulary)
    line = _cross_validated(features, targets, kind, groups, intercept=True, counts=counts)
    return lambda texts: line(_counts(texts, vocabulary))


def of_words_in_pairs(
    chosen: Sequence[str],
    rejected: Sequence[str],
    groups: Groups = None,
    probability: Weights = None,
    counts: Weights = None,
) -> Callable[[Sequence[str]], Float[np.ndarray, " N"]]:
    """`score(texts)` of a bag of words, fitted to pairs: logistic regression on differences of word counts.

    The difference of the scores of two texts is the log-odds that the first is chosen, which it was with
    `probability` (1 without it). Words and the strength of L2 are chosen as by `of_words`; `counts` are the
    weights of the pairs.
    """
    vocabulary = _vocabulary([*chosen, *rejected])
    differences = _counts(chosen, vocabulary) - _counts(rejected, vocabulary)
    targets = np.ones(len(chosen)) if probability is None else np.asarray(probability)
    line = _cross_validated(differences, targets, "binary", groups, intercept=False, counts=counts)
    return lambda texts: line(_counts(texts, vocabulary))


def of_length(
    texts: Sequence[str],
    targets: Float[np.ndarray, " N"],
    kind: Kind,
    counts: Weights = None,
) -> Callable[[Sequence[str]], Float[np.ndarray, " N"]]:
    """`score(texts)` of length alone: a line in the number of words, fitted to the targets of texts, of which
    each counts by its weight in `counts`."""
    lengths = lambda texts: np.array([[len(text.split())] for text in texts], float)
    mean, deviation = lengths(texts).mean(), lengths(texts).std() or 1.0
    line = fit((lengths(texts) - mean) / deviation, targets, kind, l2=1e-6, counts=counts)
    return lambda texts: line((lengths(texts) - mean) / deviation)


def _vocabulary(texts: Sequence[str]) -> dict[str, int]:
    seen = Counter(word for text in texts for word in words_of(text))
    known = [word for word, count in seen.items() if count > 1]
    return {word: column for column, word in enumerate(known)}


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> "scipy.sparse.csr_matrix":
    """Counts of the known words [N, F]."""
    found = [
        (row, vocabulary[word], count)
        for row, text in enumerate(texts)
        for word, count in words_of(text).items()
        if word in vocabulary
    ]
    rows, columns, counts = np.array(found, int).reshape(-1, 3).T
    shape = len(texts), len(vocabulary)
    return scipy.sparse.csr_matrix((counts.astype(float), (rows, columns)), shape=shape)


def _cross_validated(
    features, targets, kind: Kind, groups: Groups, intercept: bool, counts: Weights
) -> Line:
    """The line of the strength of L2 with the least loss on rows that are left out."""
    n = len(targets)
    counts = np.ones(n) if counts is None else np.asarray(counts)
    group = np.arange(n) if groups is None else group_numbers(groups, n)
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % FOLDS

    def loss(l2: float) -> float:
        total = 0.0
        for left_out in range(FOLDS):
            rows, others = fold == left_out, fold != left_out
            if not rows.any() or not others.any():
                continue
            line = fit(features[others], targets[others], kind, l2, intercept, counts[others])
            total += float(counts[rows] @ _losses(line(features[rows]), targets[rows], kind))
        return total

    return fit(features, targets, kind, min(STRENGTHS, key=loss), intercept, counts)
