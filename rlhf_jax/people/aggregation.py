"""Aggregation of votes into one label for each item: the majority, and Dawid and Skene's model of accuracies.

votes = Votes(items, people, first)     # first: 1 where a is better, 0 where b is, 1/2 for a tie
majority(votes), dawid_skene(votes).probability
"""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int

PRIOR = (4.0, 2.0)
"""Beta prior of a person's accuracy, with its mode at 3/4."""


class Votes(NamedTuple):
    """Votes on pairs. "Both are bad" is no vote."""

    item: Int[np.ndarray, " N"]
    """Number of the pair, from 0."""
    person: Int[np.ndarray, " N"]
    """Number of the person, from 0."""
    first: Float[np.ndarray, " N"]
    """1 where the item's first response was preferred, 0 where the second was, 1/2 for a tie."""


class PairLabels(NamedTuple):
    """The model of people of different accuracy, fitted to votes on pairs."""

    probability: Float[np.ndarray, " items"]
    """Posterior that an item's first response is the better one; 1/2 without a decided vote."""
    accuracy: Float[np.ndarray, " people"]
    """Probability that a person chooses the better one."""
    iterations: int


class Classes(NamedTuple):
    """Dawid and Skene's model of labels in K classes, fitted by maximum likelihood."""

    prior: Float[np.ndarray, " K"]
    confusion: Float[np.ndarray, "people K K"]
    """Probability that a person gives the column's label to an item of the row's class."""
    posterior: Float[np.ndarray, "items K"]
    log_likelihood: float
    iterations: int


def majority(votes: Votes) -> Float[np.ndarray, " items"]:
    """The share of each item's votes for its first response; 1/2 without a vote."""
    size = votes.item.max(initial=-1) + 1
    n = np.bincount(votes.item, minlength=size)
    total = np.bincount(votes.item, votes.first, minlength=size)
    return np.where(n > 0, total / np.maximum(n, 1), 0.5)


def dawid_skene(
    votes: Votes, prior: tuple[float, float] = PRIOR, tolerance: float = 1e-8, most: int = 1000
) -> PairLabels:
    """The posterior of each pair's better response, from people of unknown accuracy, by EM.

    Which response is first is arbitrary, so both are as likely, and a person has one accuracy q with a Beta
    prior: logit p(first) = sum over decided votes of +-logit(q), and q is its posterior mode. Ties say
    nothing about either. Dawid and Skene (1979), with one accuracy a person.
    """
    items, people = votes.item.max(initial=-1) + 1, votes.person.max(initial=-1) + 1
    decided = votes.first != 0.5
    item, person, first = votes.item[decided], votes.person[decided], votes.first[decided]
    a, b = prior[0] - 1, prior[1] - 1
    n = np.bincount(person, minlength=people)
    probability = majority(Votes(item, person, first)) if len(item) else np.empty(0)
    probability = np.concatenate([probability, np.full(items - len(probability), 0.5)])
    accuracy, k = np.full(people, a / (a + b)), 0
    for k in range(1, most + 1):  # noqa: B007, the count is returned
        right = np.where(first == 1, probability[item], 1 - probability[item])
        accuracy = (np.bincount(person, right, minlength=people) + a) / (n + a + b)
        evidence = np.log(accuracy / (1 - accuracy))[person] * np.where(first == 1, 1, -1)
        before, probability = (
            probability,
            scipy.special.expit(np.bincount(item, evidence, minlength=items)),
        )
        if np.abs(probability - before).max(initial=0) < tolerance:
            break
    return PairLabels(probability, accuracy, k)


def dawid_skene_classes(
    item: Int[np.ndarray, " N"],
    person: Int[np.ndarray, " N"],
    label: Int[np.ndarray, " N"],
    classes: int = 0,
    tolerance: float = 1e-9,
    most: int = 2000,
) -> Classes:
    """Dawid and Skene's EM (1979) for labels 0 to K - 1, from the average of each item's labels.

    A person's asymmetry is a bias: fitted to labels "first on the screen" and "second", its confusion shows
    who prefers a position.
    """
    counts = np.zeros((item.max() + 1, person.max() + 1, classes or label.max() + 1))
    np.add.at(counts, (item, person, label), 1)
    total = counts.sum((1, 2))[:, None]
    even = np.full(counts.shape[::2], 1 / counts.shape[2])  # of items without a label
    posterior = np.divide(counts.sum(1), total, out=even, where=total > 0)
    old, k = -np.inf, 0
    while True:
        prior = posterior.mean(0)
        confusion = np.einsum("ij,ipl->pjl", posterior, counts)
        total = confusion.sum(2, keepdims=True)
        confusion = np.divide(confusion, total, out=np.zeros_like(confusion), where=total > 0)
        # 0 log 0 is 0, and a label that the class never gets rules the class out
        logs = scipy.special.xlogy(counts[:, :, None, :], confusion[None]).sum((1, 3)) + _log(prior)
        each = np.asarray(scipy.special.logsumexp(logs, axis=1))
        likelihood, k = float(each.sum()), k + 1
        posterior = np.exp(logs - each[:, None])
        if likelihood - old < tolerance or k == most:
            return Classes(prior, confusion, posterior, likelihood, k)
        old = likelihood


def _log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)
