"""Simulated people, who prefer by Bradley-Terry on the gold difference, with noise and a length bias."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float, Int, Num

from rlhf_jax.bounds import Finite, NonNegative, Settings, Unit


@dataclass(frozen=True)
class AnnotatorConfig(Settings):
    """Simulated people who compare two responses.

    Raises ValueError where `scale` is negative or `noise` lies outside 0 to 1.
    """

    scale: NonNegative = 4.0
    """Slope of the preference logit per unit of gold difference (Bradley and Terry, 1952)."""
    noise: Unit = 0.1
    """Probability that a person answers by a fair coin flip, which is wrong half of the time."""
    length_bias: Finite = 0.0
    """Logit added for each word by which the first response is longer than the second."""


class Pairs(NamedTuple):
    """Gold and length in words of the two responses in each row."""

    gold_a: Num[np.ndarray, " N"]
    gold_b: Num[np.ndarray, " N"]
    words_a: Num[np.ndarray, " N"]
    words_b: Num[np.ndarray, " N"]


def preference_probability(
    gold_a: Num[np.ndarray, " N"],
    gold_b: Num[np.ndarray, " N"],
    words_a: Num[np.ndarray, " N"],
    words_b: Num[np.ndarray, " N"],
    cfg: AnnotatorConfig,
) -> Float[np.ndarray, " N"]:
    """The probability that a person prefers `a` to `b`.

    p = (1 - noise) sigmoid(scale (gold_a - gold_b) + length_bias (words_a - words_b)) + noise / 2
    """
    gold = np.asarray(gold_a, np.float64) - gold_b
    words = np.asarray(words_a, np.float64) - words_b
    return (1 - cfg.noise) * scipy.special.expit(
        cfg.scale * gold + cfg.length_bias * words
    ) + cfg.noise / 2


def annotate(pairs: Pairs, cfg: AnnotatorConfig, seed: int) -> Int[np.ndarray, " N"]:
    """The response that each person preferred: 0 for `a`, 1 for `b`."""
    p = preference_probability(*pairs, cfg)
    return (np.random.default_rng(seed).random(len(p)) >= p).astype(np.int32)


def accuracy_ceiling(p: Float[np.ndarray, " N"]) -> float:
    """The best accuracy that any reward model can expect against labels drawn with `p`.

    mean max(p, 1 - p), the expectation of someone who knows `p` itself.
    """
    return float(np.mean(np.maximum(p, 1 - p)))
