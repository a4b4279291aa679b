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


class Environment(NamedTuple):
    """The other side of a task of several turns, such as a customer.

    A response is then a transcript: one line for each turn of the policy and for each reply, the policy's
    first. `reply(row, lines)` answers the last of `lines`, a turn of the policy, and says whether the
    episode is over: (reply, done). It is a pure function: all that the environment knows or draws at random
    stands in columns of the row, so that an episode can be played again. An empty last reply has no line.
    """

    turns: int  # most turns of the policy
    turn_length: int  # most tokens of a turn, its end token included
    reply_length: int  # most tokens of a reply
    reply: Callable[[Row, Sequence[str]], tuple[str, bool]]

    @property
    def length(self) -> int:
        """Most tokens of a transcript."""
        return self.turns * (self.turn_length + self.reply_length)

    def columns(self, length: int) -> tuple[int, int]:
        """(tokens of a turn, tokens of a reply) where transcripts have `length` columns.

        They share the columns of a turn as in `length` itself. Raises ValueError where `length` is no
        multiple of `turns`.
        """
        if length % self.turns:
            raise ValueError(
                f"sample.length = {length} is no multiple of the {self.turns} turns of an episode: "
                f"set it to 0, for {self.length}, or to a multiple"
            )
        both = length // self.turns
        turn = round(both * self.turn_length / (self.turn_length + self.reply_length))
        return turn, both - turn

    def play(self, row: Row, speak: Callable[[list[str]], str]) -> str:
        """The transcript of an episode in which `speak(lines)` takes the policy's turns."""
        lines: list[str] = []
        for _ in range(self.turns):
            lines.append(one_line(speak(lines)))
            reply, done = self.reply(row, lines)
            lines.append(one_line(reply))
            if done:
                break
        return transcript(lines)


def one_line(text: str) -> str:
    """A text with single spaces in place of all white space, so that nobody can speak for the other side."""
    return " ".join(text.split())


def transcript(lines: Sequence[str]) -> str:
    """The lines of an episode as one text; an empty last reply is left out."""
    return "\n".join(lines[:-1] if len(lines) % 2 == 0 and not lines[-1] else lines)


class Task(NamedTuple):
    """A generated task.

    `prompts(share, seed)` splits all rows into those to train on and those held out. `corpus(seed, n, rows)`
    writes n pairs of prompt and response. `gold(rows, responses)` is the true score of each response.
    `metrics` are further functions of rows and responses, reported by name. `facts(corpus)` are known numbers
    about held-out demonstrations, such as the entropy of the law that wrote them. `defaults` are settings by
    dotted name that fit the task, such as "sample.length". `best(rows)` are responses with the highest gold.
    With an `environment`, responses are transcripts. Rows that people judge differ in their prompts.
    """

    prompts: Callable[[float, int], tuple[list[Row], list[Row]]]
    corpus: Callable[[int, int, Sequence[Row]], list[tuple[str, str]]]
    gold: Callable[[Sequence[Row], Sequence[str]], Float32[np.ndarray, " N"]]
    metrics: dict[str, Callable] = {}  # noqa: RUF012
    facts: Callable[[Sequence[tuple[str, str]]], dict[str, float]] = _no_facts
    defaults: dict[str, Any] = {}  # noqa: RUF012
    best: Callable[[Sequence[Row]], list[str]] | None = None
    environment: Environment | None = None


def split_rows(rows: Sequence[Any], share: float, seed: int) -> tuple[list, list]:
    """(rows or prompts to train on, those held out), a function of the arguments alone.

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
