"""Judges that are models or functions, in the place of people: who of two responses is better.

    judge = both_orders(endpoint("http://127.0.0.1:8000/v1", "judge"))
    judge("Write a line.", "one", "two")        # probability that "one" is better

A judge is any function of (prompt, a, b) that gives the probability that a is better: 1, 0, or between.
Judges prefer positions (Zheng et al., 2023), so `both_orders` asks twice and averages. `verdicts` asks about
many pairs, beside people's votes.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rlhf_jax.people.asking import ask

Judge = Callable[[str, str, str], float]
PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each further attempt of a request that failed in passing."""
INSTRUCTION = """Compare two responses to a prompt. Answer with one word: A if the first response is better, \
B if the second is better, or TIE.

[Prompt]
{prompt}

[Response A]
{a}

[Response B]
{b}

[Better response]"""
ANSWER = re.compile(  # "a" is the article, unless it stands alone
    r"[\W_]*(?:(?:[Aa] )?(tie|Tie|TIE)\b|(A|[Bb]|a(?=[\W_]*$))\b(?!\s+(?:and|or|tie)\b))"
)


class MalformedError(ValueError):
    """A judge gave no answer that can be read."""


def both_orders(judge: Judge) -> Judge:
    """A judge that is asked in both orders: the mean of p(a, b) and 1 - p(b, a)."""

    def asked(prompt: str, a: str, b: str) -> float:
        return (judge(prompt, a, b) + 1 - judge(prompt, b, a)) / 2

    return asked


def by_reward(reward: Callable[[Sequence[str], Sequence[str]], Any]) -> Judge:
    """A judge that prefers the higher reward, of a function of prompts and responses."""

    def judge(prompt: str, a: str, b: str) -> float:
        first, second = np.asarray(reward([prompt, prompt], [a, b]), np.float64)
        return 0.5 + 0.5 * float(np.sign(first - second))

    return judge


def endpoint(
    url: str,
    model: str,
    key: str = "",
    instruction: str = INSTRUCTION,
    timeout: float = 60.0,
    pauses: Sequence[float] = PAUSES,
) -> Judge:
    """A judge behind an OpenAI-compatible interface: POST `url`/chat/completions, at temperature 0.

    `instruction` is a template with {prompt}, {a} and {b}, whose answer begins with A, B or TIE. A reply that
    is late, 429 or 5xx is asked for again after `pauses`. Raises ConnectionError where the server stays away,
    ValueError for what it refuses, MalformedError for an answer without a verdict.
    """

    def judge(prompt: str, a: str, b: str) -> float:
        parts = {"prompt": prompt, "a": a, "b": b}
        text = re.sub(r"\{(prompt|a|b)\}", lambda found: parts[found[1]], instruction)
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        body |= {"temperature": 0, "max_tokens": 8}
        at = f"{url.rstrip('/')}/chat/completions"
        return verdict(_content(ask("POST", at, key, body, timeout, pauses).body))

    return judge


def _content(said: bytes) -> str:
    try:
        content = json.loads(said)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise MalformedError(f"the reply has no choices[0].message.content: {said[:200]!r}")
    return content


def verdict(answer: str) -> float:
    """1 for an answer that begins with A, 0 for B, 1/2 for TIE; MalformedError for any other."""
    found = ANSWER.match(answer)
    if not found:
        raise MalformedError(f"the answer begins with none of A, B and TIE: {answer[:80]!r}")
    return 0.5 if found[1] else {"A": 1.0, "B": 0.0}[found[2].upper()]


class Verdicts(NamedTuple):
    """Answers of a judge to N pairs."""

    probability: Float[np.ndarray, " N"]
    """Probability that the first response is better; NaN where the answer could not be read."""
    first_place: float
    """How much the judge prefers the place of the first response: mean of p(a, b) + p(b, a), less 1."""
    malformed: int
    """Pairs without an answer that could be read."""

    def agreement(self, votes: Float[np.ndarray, " N"]) -> tuple[float, int]:
        """The share of decided pairs on which the judge and the people are of one side, and their number.

        `votes` are shares of the votes for the first responses. Ties of the judge count half.
        """
        rows = ~np.isnan(self.probability) & ~np.isnan(votes) & (votes != 0.5)
        side = np.sign(self.probability[rows] - 0.5) * np.sign(votes[rows] - 0.5)
        return (float((0.5 + 0.5 * side).mean()) if rows.any() else float("nan")), int(rows.sum())


def verdicts(judge: Judge, pairs: Sequence[tuple[str, str, str]]) -> Verdicts:
    """A judge's answers to pairs (prompt, a, b), each asked in both orders."""
    found = np.full((len(pairs), 2), np.nan)
    for n, (prompt, a, b) in enumerate(pairs):
        try:
            found[n] = judge(prompt, a, b), judge(prompt, b, a)
        except MalformedError:
            found[n] = np.nan
    whole = ~np.isnan(found[:, 0])
    p = (found[:, 0] + 1 - found[:, 1]) / 2
    place = float(found[whole].sum(1).mean() - 1) if whole.any() else float("nan")
    return Verdicts(p, place, int(np.sum(~whole)))
