"""Features of texts, as rewards `--rl.reward features:NAME` and as columns beside scores.

They show what a policy exploits: a reward model may pay for length, for repetition, or for easy words. spaCy
(Honnibal et al., 2020) splits a text by its rules for English, without a download, into words (tokens with a
letter or a digit) and sentences (which hold a word). Needs the extra `[spacy]`.

    columns = {name: fn(prompts, responses) for name, fn in REWARDS.items()}
    reward = weighted({"right": (1.0, verifiers.number), "repetition": (-0.5, repetition)})
"""

import functools
import re
import threading
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.rewards.functions import RewardError


class Text(NamedTuple):
    """The words of a text in lower case, and the number of its sentences."""

    words: list[str]
    sentences: int


def length(prompts, responses) -> list[float]:
    """The number of words."""
    return [float(len(text.words)) for text in read(responses)]


def repetition(prompts, responses) -> list[float]:
    """The share of sequences of four words that occurred earlier in the text, "seq-rep-4" (Welleck et al.,
    2020); 0 for a text of fewer words."""
    return [_repetition(text) for text in read(responses)]


def distinct(prompts, responses) -> list[float]:
    """The number of different pairs of neighbouring words over the number of pairs, "distinct-2" (Li et al.,
    2016), within each text; 0 for a text without pairs."""
    return [_distinct(text) for text in read(responses)]


def sentences(prompts, responses) -> list[float]:
    """The number of sentences."""
    return [float(text.sentences) for text in read(responses)]


def readability(prompts, responses) -> list[float]:
    """Reading ease of English (Flesch, 1948), from 0 (hard) to 100 (easy), cut off at both ends.

    It is 206.835 - 1.015 words per sentence - 84.6 syllables per word. A word has as many syllables as groups
    of vowels, without a silent "e" at its end, and at least one. A text without words has 0.
    """
    return [_readability(text) for text in read(responses)]


REWARDS = {fn.__name__: fn for fn in (length, repetition, distinct, sentences, readability)}
"""The rewards of this file by name."""


def read(responses: Sequence[str]) -> list[Text]:
    """The words and sentences of texts. Raises RewardError where spaCy is missing."""
    nlp, found = _pipeline(), []
    with _LOCK:  # spaCy's store of strings is one for all threads
        for response in responses:
            with nlp.memory_zone():  # which forgets the words of a text with it
                doc = nlp(response.encode("utf-8", "replace").decode())
                spoken = [[t.lower_ for t in s if any(map(str.isalnum, t.text))] for s in doc.sents]
            found.append(Text([w for words in spoken for w in words], sum(map(bool, spoken))))
    return found


def _repetition(text: Text) -> float:
    share = _different(text.words, 4)
    return 0.0 if share is None else 1 - share


def _distinct(text: Text) -> float:
    return _different(text.words, 2) or 0.0


def _readability(text: Text) -> float:
    if not text.words:
        return 0.0
    words = len(text.words)
    ease = (
        206.835 - 1.015 * words / text.sentences - 84.6 * sum(map(_syllables, text.words)) / words
    )
    return min(max(ease, 0.0), 100.0)


def _different(words: list[str], n: int) -> float | None:
    """The share of different ones among the sequences of `n` words; None without any."""
    found = list(zip(*(words[i:] for i in range(n)), strict=False))
    return len(set(found)) / len(found) if found else None


def _syllables(word: str) -> int:
    """The number of syllables of an English word, by its vowels."""
    silent = word.endswith("e") and not word.endswith(("le", "ee"))
    return max(1, len(re.findall(r"[aeiouyáéíóúäöü]+", word)) - silent)


_LOCK = threading.Lock()


@functools.cache
def _pipeline():
    """spaCy's tokenizer and sentence splitter for English."""
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RewardError(
            "text features need spaCy: install it with the extra rlhf_jax[spacy]"
        ) from None
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.max_length = 10**9  # its limit of a million characters is for models
    return nlp
