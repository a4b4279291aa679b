"""A generated world: reports of facts that matter more or less, and summaries of one line.

    prompt     the port was shut . some gulls watched . people saw a flood . two people were hurt . the skies
               were grey .
    response   port closed . a flood . two hurt .

A report has five facts of different kinds, in any order. Each kind has a weight, a phrase of a summary and
two sentences of a report, with the fact's value in them (a flood, a fire, ...). No value belongs to two
kinds, so the words of a text alone say which facts are in it.

`gold` pays for the weight of the facts that a summary covers, and takes off words, above all those beyond
the line's nine, invented and repeated facts, and whatever else is no phrase. The best summary has the
three facts of the report that matter most: whether a fact is worth its place depends on the others.

Demonstrations are honest and far from it: writers choose facts with odds that follow the weights
only in part, get some wrong, and add what nobody reported, or padding. `log_prob` is the exact
log-probability of a summary, so the loss of the best language model is known. Gold has mean 0
and standard deviation 1 under that law.
"""

import functools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.tasks import law
from rlhf_jax.tasks.task import Row, Task, split_rows


class Kind(NamedTuple):
    """A kind of fact: its weight, the odds that a writer mentions it, its phrase in a summary and its
    sentences in a report, with {} for the value, and its values."""

    weight: float
    odds: float
    phrase: str
    sentences: tuple[str, str]
    values: tuple[str, ...]


def _kind(weight: float, odds: float, phrase: str, one: str, two: str, values: str) -> Kind:
    return Kind(weight, odds, phrase, (one, two), tuple(values.split()))


KINDS = (
    _kind(1.5, 0.6, "before {}", "it was before {}", "it began before {}", "dawn noon dusk night"),
    _kind(5.0, 0.75, "a {}", "a {} began", "people saw a {}", "fire flood crash theft storm riot"),
    _kind(3.0, 0.6, "{} closed", "the {} was shut", "police closed the {}", "port bridge market school inn"),
    _kind(4.0, 0.5, "{} hurt", "{} people were hurt", "nurses saw {} people", "two three five six nine"),
    _kind(2.0, 0.5, "{} broke", "many {} broke", "people found broken {}", "doors walls lamps pipes roofs"),
    _kind(1.0, 0.45, "{} helped", "some {} helped", "{} came to help", "monks sailors farmers drivers"),
    _kind(0.5, 0.4, "{} skies", "the skies were {}", "people saw {} skies", "grey blue red dark"),
    _kind(0.2, 0.4, "{} watched", "some {} watched", "{} came and watched", "dogs cats gulls crows"),
)  # fmt: skip
PADDING = ("more soon", "stay tuned", "so it was")
FACTS = 5  # in a report
REPORTS = 4000

# The law of the demonstrations.
WRONG_ODDS = 0.1  # that a fact has another value than the report's
INVENTED_ODDS = 0.2  # that a fact of a kind that the report lacks is added
PADDING_ODDS = 0.2

# What gold takes off the share of the weight that is covered.
LINE = 9  # words, each "." included
WORD = 0.01
OVER = 0.22  # for each word beyond the line
FAULT = 0.5

MEAN = -0.06  # of the demonstrations, before gold is standardised
SCALE = 0.709  # and their standard deviation
FLOOR = -8.0

Fact = tuple[Kind, str]
"""A kind and its value."""
KIND_OF = {value: kind for kind in KINDS for value in kind.values}
SAID = {kind.phrase.format(value): (kind, value) for value, kind in KIND_OF.items()}
"""The fact of each phrase of a summary."""


def vocabulary() -> list[str]:
    """Every word of reports and summaries, sorted."""
    sentences = (x.format(v) for v, kind in KIND_OF.items() for x in kind.sentences)
    return sorted({word for text in (*sentences, *SAID, *PADDING, ".") for word in text.split()})


def facts_of(prompt: str) -> list[Fact]:
    """The facts of a report, in the order in which a summary has them.

    Raises ValueError where there are none, or two of one kind.
    """
    facts = [(KIND_OF[word], word) for word in prompt.split() if word in KIND_OF]
    facts.sort(key=lambda fact: KINDS.index(fact[0]))
    if not facts or len({kind for kind, _ in facts}) < len(facts):
        raise ValueError(
            f"the prompt {prompt!r} must report facts of different kinds: one of "
            f"{', '.join(KIND_OF)} names a fact"
        )
    return facts


def gold(prompt: str, response: str) -> float:
    """The share of the weight that a summary covers, less its words and faults, in standard deviations of
    the demonstrations from their mean.

    A statement is what stands before a ".". It covers a fact of the report if it is the fact's phrase, and
    its first mention. The share is that of the three weightiest facts, which fill the line. Each word costs
    0.01, "." included, and each one beyond the ninth 0.22 more. Faults cost 0.5: a statement that is neither
    such a mention nor padding, an end without ".", and no fact at all. The minimum is -8.
    """
    facts, words = facts_of(prompt), words_of(response)
    *statements, rest = " ".join(words).split(".")
    faults, covered = bool(rest.strip()), []
    for statement in map(str.strip, statements):
        fact = SAID.get(statement)
        if fact in facts and fact not in covered:
            covered.append(fact)
        else:
            faults += statement not in PADDING
    faults += not covered
    weights = [kind.weight for kind, _ in facts]
    most = sum(sorted(weights, reverse=True)[: LINE // 3])
    paid = sum(kind.weight for kind, _ in covered) / most
    cost = WORD * len(words) + OVER * max(0, len(words) - LINE) + FAULT * faults
    return max((paid - cost - MEAN) / SCALE, FLOOR)


def words_of(response: str) -> list[str]:
    """The words of a summary; "." is one wherever it stands, so that "a flood.two hurt." has six."""
    return response.replace(".", " . ").split()


def golds(prompts: Sequence[str], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The `gold` of each pair of texts."""
    return np.array([gold(p, r) for p, r in zip(prompts, responses, strict=True)], np.float32)


def faithful(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """1 where all phrases that state a fact state one of the report, and there is one; else 0."""
    found = []
    for row, response in zip(rows, responses, strict=True):
        said = [SAID[x.strip()] for x in response.split(".") if x.strip() in SAID]
        facts = facts_of(row["prompt"])
        found.append(bool(said) and all(fact in facts for fact in said))
    return np.array(found, np.float32)


def lengths(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The number of words of each summary."""
    return np.array([len(words_of(response)) for response in responses], np.float32)


def best(prompt: str) -> str:
    """The summary with the highest gold: as many of the weightiest facts as the line holds."""
    facts = facts_of(prompt)
    weightiest = sorted(facts, reverse=True)[: LINE // 3]
    return " ".join(statement(fact) for fact in facts if fact in weightiest)


def statement(fact: Fact) -> str:
    """The statement of a fact in a summary."""
    kind, value = fact
    return f"{kind.phrase.format(value)} ."


def ways(prompt: str) -> list[law.Way]:
    """The law of the demonstrations, empty ones included: each fact is mentioned or not, then an invented
    one, then padding."""
    facts, parts = facts_of(prompt), []
    for kind, value in facts:
        others = [statement((kind, x)) for x in kind.values if x != value]
        said = law.mistaken(statement((kind, value)), others, WRONG_ODDS)
        parts.append({"": 1 - kind.odds} | {text: p * kind.odds for text, p in said.items()})
    present = [kind for kind, _ in facts]
    lacking = [statement(fact) for fact in SAID.values() if fact[0] not in present]
    parts.append(law.mistaken("", lacking, INVENTED_ODDS))
    parts.append(law.mistaken("", [f"{text} ." for text in PADDING], PADDING_ODDS))
    return [law.Way(1.0, parts)]


def log_prob(prompt: str, response: str) -> float:
    """The exact log-probability of a demonstration given its report, in nats; -inf outside the law."""
    if not response:
        return -math.inf
    written = ways(prompt)
    again = math.exp(law.log_prob(written, ""))  # an empty draft is written again
    return law.log_prob(written, response) - math.log1p(-again)


@functools.cache
def reports() -> list[str]:
    """All reports, different from each other, in a fixed order."""
    rng, found = random.Random(0), {}
    while len(found) < REPORTS:
        kinds = rng.sample(KINDS, FACTS)
        sentences = [rng.choice(x.sentences).format(rng.choice(x.values)) for x in kinds]
        found[" ".join(f"{sentence} ." for sentence in sentences)] = None
    return list(found)


def generate(seed: int, n: int, allowed: Sequence[str]) -> list[tuple[str, str]]:
    """`n` reports drawn from `allowed`, with replacement, and a summary of each, never empty."""
    rng = random.Random(seed)
    return [(prompt, _summary(prompt, rng)) for prompt in rng.choices(allowed, k=n)]


def _summary(prompt: str, rng: random.Random) -> str:
    while not (text := law.draw(ways(prompt), rng)):
        pass
    return text


def _rows(share: float, seed: int) -> tuple[list[Row], list[Row]]:
    every = [{"prompt": prompt, "answer": best(prompt)} for prompt in reports()]
    return split_rows(every, share, seed)


def _prompts_of(rows: Sequence[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def _entropy(corpus: Sequence[tuple[str, str]]) -> dict[str, float]:
    nats = -np.mean([log_prob(*pair) for pair in corpus])
    return {"entropy of the demonstrations, nats a response": float(nats)}


TASK = Task(
    prompts=_rows,
    corpus=lambda seed, n, rows: generate(seed, n, _prompts_of(rows)),
    gold=lambda rows, responses: golds(_prompts_of(rows), responses),
    metrics={"faithful": faithful, "words": lengths},
    facts=_entropy,
    defaults={"data.prompt_length": 32, "sample.length": 26},
    best=lambda rows: [best(prompt) for prompt in _prompts_of(rows)],
)
