"""Rewards as Python functions of texts.

A reward is a function `(prompts, responses, **columns) -> one number a sample`, where `columns` are the
other fields of the samples' rows, each a list. This is one, for short answers that name their subject:

    def names_it(prompts, responses, subject):
        return [0.7 * (s in r) - 0.01 * len(r) for r, s in zip(responses, subject)]

    scores = rewards.as_scores(names_it(prompts, responses, subject=subjects), len(responses))
"""

import math
import numbers
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float32


def as_scores(values: Sequence | np.ndarray | jax.Array, n: int) -> Float32[np.ndarray, " N"]:
    """The scores of `n` samples as float32, whatever numbers came: 0.7 stays 0.7, and True becomes 1.

    Raises ValueError where there are not `n` of them, or one (named by its index) is no finite number.
    """
    if isinstance(values, jax.Array):
        values = np.asarray(values)
    if len(values) != n:
        raise ValueError(f"the reward gave {len(values)} scores for {n} samples: give one for each")
    scores = np.empty(n, np.float32)
    for i, value in enumerate(values):
        number = value.item() if getattr(value, "shape", None) == () else value
        if not isinstance(number, numbers.Real) or not math.isfinite(number):
            raise ValueError(f"the reward of sample {i} is {value!r}: give a finite number")
        scores[i] = number
    return scores
