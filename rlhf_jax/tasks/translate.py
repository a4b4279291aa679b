"""A generated world: subordinate clauses of German, to be translated into English.

    prompt     weil die alte frau heute die bank malt
    response   because the old woman paints the bench today .

German puts the verb last, and English after the subject (order). The English verb agrees with
the subject in number, and the reflexive, which is always "sich" in German, also in gender
(agreement). "bank" is a bench where one paints or carries it, and a bank where one runs or owns it: the
verb, four words later, decides.

`gold` compares a response with the correct translation, word by word and in order; only the
translation itself has the highest. Demonstrations are by translators who make known errors with
known probabilities (see `ways`), and `log_prob` is the exact log-probability of a response, so the loss of
the best language model is known. Gold has mean 0 and standard deviation 1 under that law.
"""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from rlhf_jax.tasks import law
from rlhf_jax.tasks.task import Row, Task, split_rows

OPENERS = {"weil": "because", "wenn": "when", "dass": "that"}
ADJECTIVES = {"alt": "old", "jung": "young", "klein": "small", "reich": "rich"}
ADVERBS = {"heute": "today", "hier": "here", "wieder": "again"}
# A subject's German article, singular and plural; its English forms; and its reflexive in the singular.
SUBJECTS = {
    "mann": ("der", "maenner", "man", "men", "himself"),
    "sohn": ("der", "soehne", "son", "sons", "himself"),
    "koch": ("der", "koeche", "cook", "cooks", "himself"),
    "frau": ("die", "frauen", "woman", "women", "herself"),
    "tante": ("die", "tanten", "aunt", "aunts", "herself"),
}
PLURAL_REFLEXIVE = "themselves"
REFLEXIVES = ("himself", "herself", PLURAL_REFLEXIVE)
# An object's German article and its English noun; that of "bank" depends on the verb.
OBJECTS = {
    "hund": ("den", "dog"),
    "katze": ("die", "cat"),
    "haus": ("das", "house"),
    "bild": ("das", "picture"),
}
BANK, SICH = "bank", "sich"
SENSES = ("bench", "bank")
# A verb's German plural, its English forms, and its objects.
VERBS = {
    "sieht": ("sehen", "sees", "see", ("hund", "katze", "haus", "bild", SICH)),
    "malt": ("malen", "paints", "paint", ("hund", "katze", "haus", BANK, SICH)),
    "kennt": ("kennen", "knows", "know", ("hund", "katze", "haus", "bild", SICH)),
    "traegt": ("tragen", "carries", "carry", ("hund", "katze", "bild", BANK)),
    "leitet": ("leiten", "runs", "run", ("haus", BANK)),
    "besitzt": ("besitzen", "owns", "own", ("hund", "katze", "haus", "bild", BANK)),
}
BENCH_VERBS = ("malt", "traegt")
SENTENCES = 4000

# The errors of the translators, and their probabilities.
GERMAN_ORDER = 0.35  # the verb last, after the adverb and the object
WRONG_VERB = 0.35  # a verb of the other number
WRONG_NOUN = 0.1  # a subject of the other number
WRONG_REFLEXIVE = 0.4  # one of the two others, equally likely
WRONG_SENSE = 0.4  # of "bank"
WRONG_OBJECT = 0.1  # another object, equally likely
LEFT_OUT = 0.2  # the adjective; the adverb
ADDED = 0.2  # one of them, equally likely, where the German has none

ORDER = 0.75  # the share of gold that only words in order earn
STRAY = 0.5  # what a word costs that fits nothing, as a share of what a right one earns
MEAN = 0.8615  # of the demonstrations, before gold is standardised
SCALE = 0.1068  # and their standard deviation
FLOOR = -8.0


class Sentence(NamedTuple):
    """A sentence by the keys of the tables above; `adjective` and `adverb` are "" if absent."""

    opener: str
    adjective: str
    subject: str
    plural: bool
    adverb: str
    object: str
    verb: str


class Parts(NamedTuple):
    """The English parts of a translation."""

    adjective: str
    subject: str
    verb: str
    object: str
    adverb: str


# --- the two languages


def sentences() -> list[Sentence]:
    """All sentences, in a fixed order."""
    return [
        Sentence(opener, adjective, subject, plural, adverb, thing, verb)
        for verb, (*_, things) in VERBS.items()
        for plural in (False, True)
        for thing, opener, adjective, subject, adverb in itertools.product(
            things, OPENERS, ("", *ADJECTIVES), SUBJECTS, ("", *ADVERBS)
        )
    ]


def german(x: Sentence) -> str:
    """The German of a sentence."""
    article, plural, *_ = SUBJECTS[x.subject]
    adjective = x.adjective and x.adjective + ("en" if x.plural else "e")
    article, noun = ("die", plural) if x.plural else (article, x.subject)
    verb = VERBS[x.verb][0] if x.plural else x.verb
    thing = {SICH: (SICH,), BANK: ("die", BANK)}.get(x.object)
    thing = thing or (OBJECTS[x.object][0], x.object)
    return _joined(x.opener, article, adjective, noun, x.adverb, *thing, verb)


def correct(x: Sentence) -> Parts:
    """The correct English parts of a sentence."""
    _, _, *nouns, reflexive = SUBJECTS[x.subject]
    thing = {
        SICH: PLURAL_REFLEXIVE if x.plural else reflexive,
        BANK: "the bench" if x.verb in BENCH_VERBS else "the bank",
    }.get(x.object)
    return Parts(
        adjective=ADJECTIVES.get(x.adjective, ""),
        subject=nouns[x.plural],
        verb=VERBS[x.verb][1 + x.plural],
        object=thing or f"the {OBJECTS[x.object][1]}",
        adverb=ADVERBS.get(x.adverb, ""),
    )


def english(x: Sentence) -> str:
    """The correct translation of a sentence."""
    adjective, subject, verb, thing, adverb = correct(x)
    return _joined(OPENERS[x.opener], "the", adjective, subject, verb, thing, adverb, ".")


def parse(prompt: str) -> Sentence:
    """The sentence that a prompt is. Raises ValueError where it is none."""
    found = _by_german().get(prompt)
    if found is None:
        raise ValueError(f"the prompt {prompt!r} is no sentence of the German of this task")
    return found


@functools.cache
def _by_german() -> dict[str, Sentence]:
    return {german(x): x for x in sentences()}


def _joined(*phrases: str) -> str:
    return " ".join(phrase for phrase in phrases if phrase)


def vocabulary() -> list[str]:
    """Every word of both languages, sorted."""
    return sorted({word for x in sentences() for word in f"{german(x)} {english(x)}".split()})


# --- the score


FORMS = [
    *(tuple(nouns) for _, _, *nouns, _ in SUBJECTS.values()),
    *(tuple(forms) for _, *forms, _ in VERBS.values()),
    REFLEXIVES,
]
LEMMA = {word: forms[0] for forms in FORMS for word in forms}
"""What words that differ in agreement alone have in common."""


def gold(answer: str, response: str) -> float:
    """The agreement of a response with the correct translation, in standard deviations of the
    demonstrations from their mean.

    A word is worth 1 where it is right, and 0.5 where it is another form of the right word. Before it is
    standardised, gold is a share of what the correct translation is worth, less 0.5 of a word for each that
    fits nothing: three quarters are for words in the best alignment that keeps the order, and one quarter
    for words in any order. The minimum is -8.
    """
    right, said = answer.split(), response.split()
    stems = [[LEMMA.get(word, word) for word in words] for words in (right, said)]
    fitting = _common(*stems)
    bag = (_common(right, said) + fitting) / 2
    strays = len(said) - fitting
    earned = ORDER * _aligned(right, said, *stems) + (1 - ORDER) * bag
    worth = (earned - STRAY * strays) / len(right)
    return max((worth - MEAN) / SCALE, FLOOR)


def golds(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """The `gold` of each response."""
    found = [gold(row["answer"], x) for row, x in zip(rows, responses, strict=True)]
    return np.array(found, np.float32)


def exact(rows: Sequence[Row], responses: Sequence[str]) -> Float32[np.ndarray, " N"]:
    """1 where a response is the correct translation, else 0."""
    pairs = zip(rows, responses, strict=True)
    return np.array([row["answer"].split() == x.split() for row, x in pairs], np.float32)


def _common(one: list[str], two: list[str]) -> int:
    """The number of words that two texts share, each as often as in both."""
    return (Counter(one) & Counter(two)).total()


def _aligned(right: list[str], said: list[str], stems: list[str], said_stems: list[str]) -> float:
    """The most that pairs of words are worth, in an alignment that keeps the order (as for the longest common
    subsequence)."""
    row = [0.0] * (len(right) + 1)
    for word, stem in zip(said, said_stems, strict=True):
        above, row = row, [0.0]
        for i, (other, other_stem) in enumerate(zip(right, stems, strict=True)):
            pair = (word == other) / 2 + (stem == other_stem) / 2
            row.append(max(above[i] + pair, above[i + 1], row[i]))
    return row[-1]


# --- the demonstrations


def ways(prompt: str) -> list[law.Way]:
    """The law of the demonstrations: each error has its own probability, independent of the others."""
    x = parse(prompt)
    adjective, subject, verb, thing, adverb = correct(x)
    others = {
        SICH: [word for word in REFLEXIVES if word != thing],
        BANK: [f"the {word}" for word in SENSES if f"the {word}" != thing],
    }.get(x.object) or [f"the {noun}" for _, noun in OBJECTS.values() if f"the {noun}" != thing]
    odds = {SICH: WRONG_REFLEXIVE, BANK: WRONG_SENSE}.get(x.object, WRONG_OBJECT)
    begin: list[law.Part] = [
        {f"{OPENERS[x.opener]} the": 1.0},
        _optional(adjective, ADJECTIVES),
        law.mistaken(subject, _other_forms(subject), WRONG_NOUN),
    ]
    said = law.mistaken(verb, _other_forms(verb), WRONG_VERB)
    rest, then = law.mistaken(thing, others, odds), _optional(adverb, ADVERBS)
    return [
        law.Way(1 - GERMAN_ORDER, [*begin, said, rest, then, {".": 1.0}]),
        law.Way(GERMAN_ORDER, [*begin, then, rest, said, {".": 1.0}]),
    ]


def _optional(right: str, words: dict[str, str]) -> law.Part:
    """The part of an adjective or adverb, "" where the German has none."""
    if right:
        return law.mistaken(right, [""], LEFT_OUT)
    return law.mistaken("", [*words.values()], ADDED)


def _other_forms(word: str) -> list[str]:
    (forms,) = [forms for forms in FORMS if word in forms]
    return [form for form in forms if form != word]


def log_prob(prompt: str, response: str) -> float:
    """The exact log-probability of a demonstration given its prompt, in nats; -inf outside the law."""
    return law.log_prob(ways(prompt), response)


def prompts() -> list[str]:
    """The prompts of this task, different from each other, in a fixed order."""
    return [german(x) for x in random.Random(0).sample(sentences(), SENTENCES)]


def generate(seed: int, n: int, allowed: Sequence[str]) -> list[tuple[str, str]]:
    """`n` prompts drawn from `allowed`, with replacement, and a translation of each."""
    rng = random.Random(seed)
    return [(prompt, law.draw(ways(prompt), rng)) for prompt in rng.choices(allowed, k=n)]


def _rows(share: float, seed: int) -> tuple[list[Row], list[Row]]:
    every: list[Row] = [{"prompt": x, "answer": english(parse(x))} for x in prompts()]
    return split_rows(every, share, seed)


def _entropy(corpus: Sequence[tuple[str, str]]) -> dict[str, float]:
    nats = -np.mean([log_prob(*pair) for pair in corpus])
    return {"entropy of the demonstrations, nats a response": float(nats)}


TASK = Task(
    prompts=_rows,
    corpus=lambda seed, n, rows: generate(seed, n, [row["prompt"] for row in rows]),
    gold=golds,
    metrics={"exact": exact},
    facts=_entropy,
    defaults={"data.prompt_length": 14, "sample.length": 14},
    best=lambda rows: [row["answer"] for row in rows],
)
