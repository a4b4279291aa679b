"""A generated world: movie reviews from a probabilistic grammar, with a known sentiment.

    prompt     the acting in this western
    response   was not very convincing but the music felt lovely .

A response is one to three clauses, `CLAUSE {CONNECTIVE the ASPECT CLAUSE} "."`, and a clause is
`[never] VERB [not] [ADVERB] ADJECTIVE`, with at most one of never and not, about the aspect that stands
before it (the prompt names the first one). Words are lower-case and separated by single spaces, 65 of
them in all.

`gold` is the sentiment, a known function of the text. Under the grammar its mean is 0 exactly (every
adjective has a mirror image of equal probability), its standard deviation is 1.00 and its largest
value 2.64. Every fault (see `gold`) costs 4, so a text with any fault scores below -1.3: no text that
leaves the grammar's rules pays, whatever else it says.

`log_prob` is the exact log-probability of a response, so the loss of the best language model is known:
the mean of -log_prob over a set of reviews, divided by the mean number of tokens. The exact distribution of
gold, and so the most that any policy can have for its KL, is in `reviews_law.py`.
"""

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.tasks.task import Row, Task, split_rows

GENRES = ("western", "comedy", "thriller", "romance", "mystery", "drama", "musical", "cartoon")
QUALIFIERS = ("", "new ", "old ", "french ")
TEMPLATES = (
    "the {aspect} in this {genre}",
    "the {aspect} of this {genre}",
    "in this {genre} the {aspect}",
    "i saw this {genre} and the {aspect}",
    "we watched this {genre} and the {aspect}",
)

# Adjectives and their strengths: each aspect has two of its own, and all share the general ones.
SPECIFIC = {
    "plot": {"gripping": 1.4, "predictable": -1.4},
    "acting": {"convincing": 1.2, "wooden": -1.2},
    "music": {"lovely": 1.2, "grating": -1.2},
    "dialogue": {"witty": 1.3, "clumsy": -1.3},
    "ending": {"moving": 1.4, "rushed": -1.4},
    "pacing": {"brisk": 1.0, "slow": -1.0},
    "humour": {"clever": 1.3, "childish": -1.3},
    "camerawork": {"elegant": 1.1, "shaky": -1.1},
}
GENERAL = {"superb": 1.2, "great": 1.0, "good": 0.8, "decent": 0.4}
GENERAL |= {"awful": -1.2, "terrible": -1.0, "bad": -0.8, "mediocre": -0.4}
ASPECTS = tuple(SPECIFIC)
STRENGTH = GENERAL | {word: s for own in SPECIFIC.values() for word, s in own.items()}

# What each word does to the strength, and how often the grammar says it.
VERBS = {"was": 0.5, "felt": 0.25, "seemed": 0.25}
NEGATIONS = {"": 1.0, "not": -0.6, "never": -0.8}
NEGATION_ODDS = {"": 0.75, "not": 0.15, "never": 0.10}
ADVERBS = {"": 1.0, "very": 1.3, "absolutely": 1.6, "somewhat": 0.7, "a bit": 0.5}
ADVERB_ODDS = {"": 0.4, "very": 0.2, "absolutely": 0.1, "somewhat": 0.15, "a bit": 0.15}
# A clause's weight, and the probability that it takes the side of the clause before it.
CONNECTIVES = {"": 1.0, "and": 1.0, "but": 2.0, "although": 0.5}
CONNECTIVE_ODDS = {"and": 0.45, "but": 0.35, "although": 0.2}
SAME_SIDE = {"": 0.5, "and": 0.85, "but": 0.1, "although": 0.1}
SPECIFIC_ODDS = 0.5
STOP_ODDS = (0.35, 0.6, 1.0)  # after one clause, two, three

SCALE = 0.847  # the standard deviation of the weighted average itself
FAULT = 4.0
FLOOR = -8.0


class Review(NamedTuple):
    """A prompt and its continuation; the text is `prompt + " " + response`."""

    prompt: str
    response: str


class Clause(NamedTuple):
    """One judgement; `connective`, `negation` and `adverb` are "" if absent."""

    connective: str
    aspect: str
    verb: str
    negation: str
    adverb: str
    adjective: str


class Parse(NamedTuple):
    """The clauses in a response, the number of words that fit nowhere, and True where it ended."""

    clauses: list[Clause]
    strays: int
    ended: bool


def prompts() -> list[str]:
    """All 1280 prompts, in a fixed order."""
    return [
        template.format(aspect=aspect, genre=qualifier + genre)
        for template, genre, qualifier, aspect in itertools.product(
            TEMPLATES, GENRES, QUALIFIERS, ASPECTS
        )
    ]


def split_prompts(fraction_held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """(prompts to train on, prompts held out), a function of the two arguments alone.

    Raises ValueError where the fraction leaves one side empty.
    """
    return split_rows(prompts(), fraction_held_out, seed)


def vocabulary() -> list[str]:
    """Every word that the grammar can say, prompts and "." included, sorted."""
    phrases = [*prompts(), *VERBS, *NEGATIONS, *ADVERBS, *CONNECTIVES, *STRENGTH, "the ."]
    return sorted({word for phrase in phrases for word in phrase.split()})


def generate(seed: int, n: int, allowed: Sequence[str]) -> list[Review]:
    """`n` reviews of prompts drawn from `allowed`, with replacement."""
    rng = random.Random(seed)
    return [Review(prompt, _respond(prompt, rng)) for prompt in rng.choices(allowed, k=n)]


def gold(prompt: str, response: str) -> float:
    """The sentiment of a response: a weighted average over its clauses, less 4 for every fault.

    A clause is worth strength x adverb x negation ("was not very good" 0.8 x 1.3 x -0.6), over SCALE, or 0
    where the adjective belongs to another aspect. Its weight is 1, after "but" 2, after "although" 0.5; in
    an average, more clauses do not mean more sentiment. Faults are a word that fits nowhere; a clause whose
    aspect or adjective was used before (also worth 0, at its usual weight); a missing "." at the end; and
    no clause at all. The minimum is -8. Raises ValueError where the prompt names no aspect.
    """
    value = lambda x: STRENGTH[x.adjective] * ADVERBS[x.adverb] * NEGATIONS[x.negation]
    return _average(prompt, response, value, lambda x: CONNECTIVES[x.connective])


def warmth(prompt: str, response: str) -> float:
    """A simpler sentiment, which fewer comparisons teach: the mean strength of the adjectives over SCALE.

    Adverbs, negations and connectives change nothing; faults cost as in `gold`, and the minimum is -8.
    """
    return _average(prompt, response, lambda x: STRENGTH[x.adjective], lambda x: 1.0)


def _average(
    prompt: str,
    response: str,
    value: Callable[[Clause], float],
    weight: Callable[[Clause], float],
) -> float:
    """The weighted mean of the clauses' values over SCALE, less FAULT for every fault, and FLOOR at least."""
    clauses, strays, ended = parse(prompt, response)
    faults = strays + (not ended) + (not clauses)
    total, whole, used = 0.0, 0.0, set()
    for clause in clauses:
        repeated = clause.aspect in used or clause.adjective in used
        used |= {clause.aspect, clause.adjective}
        whole += weight(clause)
        faults += repeated
        if _fits(clause) and not repeated:
            total += weight(clause) * value(clause)
    average = total / whole / SCALE if clauses else 0.0
    return max(average - FAULT * faults, FLOOR)


def golds(prompts: Sequence[str], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The `gold` of each pair of texts."""
    return np.array([gold(p, r) for p, r in zip(prompts, responses, strict=True)], np.float32)


def warmths(prompts: Sequence[str], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The `warmth` of each pair of texts."""
    return np.array([warmth(p, r) for p, r in zip(prompts, responses, strict=True)], np.float32)


def log_prob(prompt: str, response: str) -> float:
    """The exact log-probability of a response given its prompt, in nats; -inf outside the grammar."""
    clauses, strays, ended = parse(prompt, response)
    if strays or not ended or not 0 < len(clauses) <= len(STOP_ODDS):
        return -math.inf
    total, side, used = 0.0, 1, []
    for i, clause in enumerate(clauses):
        now = 1 if STRENGTH[clause.adjective] * NEGATIONS[clause.negation] > 0 else -1
        sign = 1 if STRENGTH[clause.adjective] > 0 else -1
        adjectives = adjective_odds(clause.aspect, sign, used)
        if clause.adjective not in adjectives or clause.aspect in used:
            return -math.inf
        same = SAME_SIDE[clause.connective]
        total += math.log(
            (same if now == side else 1 - same)
            * VERBS[clause.verb]
            * NEGATION_ODDS[clause.negation]
            * ADVERB_ODDS[clause.adverb]
            * adjectives[clause.adjective]
            / sum(adjectives.values())
        )
        if i > 0:
            total += math.log(CONNECTIVE_ODDS[clause.connective] / (len(ASPECTS) - i))
        last = i == len(clauses) - 1
        total += math.log(STOP_ODDS[i] if last else 1 - STOP_ODDS[i])
        side, used = now, [*used, clause.aspect, clause.adjective]
    return total


def parse(prompt: str, response: str) -> Parse:
    """The clauses of any text, read from left to right; a word that starts none is a stray.

    The first clause continues the prompt and has no connective; later clauses need one. Raises ValueError
    where the prompt names no aspect.
    """
    words = response.split()
    text = "".join(word + " " for word in words)
    clauses, strays, at, aspect = [], 0, 0, aspect_of(prompt)
    ended = bool(words) and words[-1] == "."
    end = len(text) - 2 * ended  # the closing "." is no stray
    while at < end:
        match = (_NEXT if clauses else _FIRST).match(text, at)
        if match is None:
            strays += 1
            at = text.index(" ", at) + 1
            continue
        found = match.groupdict(default="")
        negation = "never" if found["never"] else "not" if found["not"] else ""
        clauses.append(
            Clause(
                connective=found.get("connective", ""),
                aspect=found.get("aspect", aspect),
                verb=found["verb"],
                negation=negation,
                adverb=found["adverb"],
                adjective=found["adjective"],
            )
        )
        at = match.end()
    return Parse(clauses, strays, ended)


def _any(words) -> str:
    return "|".join(word for word in words if word)


_PHRASE = (
    rf"(?P<never>never )?(?P<verb>{_any(VERBS)}) (?(never)|(?P<not>not )?)"  # one of them at most
    rf"(?:(?P<adverb>{_any(ADVERBS)}) )?(?P<adjective>{_any(STRENGTH)}) "
)
_FIRST = re.compile(_PHRASE)
_NEXT = re.compile(
    rf"(?P<connective>{_any(CONNECTIVES)}) the (?P<aspect>{_any(ASPECTS)}) {_PHRASE}"
)


def aspect_of(prompt: str) -> str:
    """The aspect that a prompt names, the last one if there are several."""
    found = [word for word in prompt.split() if word in SPECIFIC]
    if not found:
        raise ValueError(f"the prompt {prompt!r} must name an aspect: one of {', '.join(ASPECTS)}")
    return found[-1]


def _fits(clause: Clause) -> bool:
    return clause.adjective in GENERAL or clause.adjective in SPECIFIC[clause.aspect]


def adjective_odds(aspect: str, sign: int, used: Sequence[str]) -> dict[str, float]:
    """The adjectives of a sign that the grammar allows for an aspect after `used` words, and their odds."""
    general = [word for word, strength in GENERAL.items() if strength * sign > 0]
    own = [word for word, strength in SPECIFIC[aspect].items() if strength * sign > 0]
    odds = dict.fromkeys(own, SPECIFIC_ODDS)
    odds |= {word: (1 - SPECIFIC_ODDS) / len(general) for word in general if word not in used}
    return odds


def _draw(rng: random.Random, odds: dict[str, float]) -> str:
    return rng.choices(list(odds), list(odds.values()))[0]


def _respond(prompt: str, rng: random.Random) -> str:
    """One response from the grammar."""
    words, used, connective, aspect, side = [], [], "", aspect_of(prompt), 1
    for stop in STOP_ODDS:
        side = side if rng.random() < SAME_SIDE[connective] else -side
        verb, negation = _draw(rng, VERBS), _draw(rng, NEGATION_ODDS)
        adverb = _draw(rng, ADVERB_ODDS)
        sign = -side if negation else side
        adjective = _draw(rng, adjective_odds(aspect, sign, used))
        phrase = [verb, adverb, adjective]
        phrase.insert(0 if negation == "never" else 1, negation)
        words += [connective, "the", aspect] if connective else []
        words += [word for word in phrase if word]
        used += [aspect, adjective]
        if rng.random() < stop:
            break
        connective = _draw(rng, CONNECTIVE_ODDS)
        aspect = rng.choice([a for a in ASPECTS if a not in used])
    return " ".join([*words, "."])


def best(prompt: str) -> str:
    """The response with the highest gold, by enumeration of those of one to three of the strongest clauses.

    More clauses than one win where "but" leads to an aspect with stronger adjectives. A fourth never pays.
    """
    return _best_about(aspect_of(prompt))


@functools.cache
def _best_about(aspect: str) -> str:
    others = [x for x in ASPECTS if x != aspect]
    joints = [x for x in CONNECTIVES if x]
    texts = (
        " ".join([_strongest(aspect), *(f"{c} the {x} {_strongest(x)}" for c, x in rest), "."])
        for more in range(len(STOP_ODDS))
        for then in itertools.permutations(others, more)
        for said in itertools.product(joints, repeat=more)
        for rest in [[*zip(said, then, strict=True)]]
    )
    prompt = f"the {aspect}"
    return max(texts, key=lambda text: gold(prompt, text))


def _strongest(aspect: str) -> str:
    """The clause about an aspect that is worth most."""
    adjective = max(SPECIFIC[aspect] | GENERAL, key=lambda word: STRENGTH[word])
    adverb = max(ADVERBS, key=lambda word: ADVERBS[word])
    return f"{next(iter(VERBS))} {adverb} {adjective}"


def _split_rows(share: float, seed: int) -> tuple[list[Row], list[Row]]:
    train, held_out = split_prompts(share, seed)
    return [{"prompt": prompt} for prompt in train], [{"prompt": prompt} for prompt in held_out]


def _prompts_of(rows: Sequence[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def _entropy(corpus: Sequence[tuple[str, str]]) -> dict[str, float]:
    nats = -np.mean([log_prob(*review) for review in corpus])
    return {"entropy of the grammar, nats a response": float(nats)}


TASK = Task(
    prompts=_split_rows,
    corpus=lambda seed, n, rows: [
        (x.prompt, x.response) for x in generate(seed, n, _prompts_of(rows))
    ],
    gold=lambda rows, responses: golds(_prompts_of(rows), responses),
    facts=_entropy,
    defaults={"data.prompt_length": 10, "sample.length": 24},
    best=lambda rows: [best(prompt) for prompt in _prompts_of(rows)],
)
