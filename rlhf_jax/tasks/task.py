"""The contract of a generated task: texts from a seed, and a true score that is a known function of them.

A file of this folder that defines `TASK` is a built-in task, `--task NAME`; any other such file is `--task
FILE.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

Row = dict[str, Any]
"""A prompt, under "prompt", and further columns that a reward can read."""


def _no_facts(corpus: Sequence[tuple[str, str]]) -> dict[str, float]:
    return {}


class Task(NamedTuple):
    """A generated task.

    `prompts(share, seed)` splits all rows into those to train on and those held out. `corpus(seed, n, rows)`
    writes n pairs of prompt and response. `gold(rows, responses)` is the true score of each response.
    `metrics` are further functions of rows and responses, reported by name. `facts(corpus)` are known numbers
    about held-out demonstrations, such as the entropy of the law that wrote them. `defaults` are settings by
    dotted name that fit the task, such as "sample.length". `best(rows)` are responses with the highest gold.
    """

    prompts: Callable[[float, int], tuple[list[Row], list[Row]]]
    corpus: Callable[[int, int, Sequence[Row]], list[tuple[str, str]]]
    gold: Callable[[Sequence[Row], Sequence[str]], Float32[np.ndarray, " N"]]
    metrics: dict[str, Callable] = {}  # noqa: RUF012
    facts: Callable[[Sequence[tuple[str, str]]], dict[str, float]] = _no_facts
    defaults: dict[str, Any] = {}  # noqa: RUF012
    best: Callable[[Sequence[Row]], list[str]] | None = None


def split_rows(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows held out), a function of the arguments alone.

    Raises ValueError where the share leaves one side empty.
    """
    held_out = round(share * len(rows))
    if not 0 < held_out < len(rows):
        raise ValueError(
            f"data.held_out = {share} of {len(rows)} prompts leaves one side empty: choose a share between 0 "
            "and 1 that leaves at least one prompt on each side"
        )
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[held_out:]], [rows[i] for i in order[:held_out]]
