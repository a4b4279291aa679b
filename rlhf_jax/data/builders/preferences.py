"""Comparisons of responses by people, as a data set of TFDS."""

from typing import ClassVar

from rlhf_jax.data.builders.builder import (
    MESSAGES,
    NUMBER,
    NUMBERS,
    REAL,
    TEXT,
    TEXTS,
    Builder,
)
from rlhf_jax.data.sources import Row


class Preferences(Builder):
    """Comparisons of responses, which `comparisons.read_comparisons` reads.

    A row is two dialogues, chosen and rejected (one text each, as HH writes them, or messages); two
    responses to a prompt; a prompt with two responses and the probability that the first is better; a prompt
    with K responses and the number of the best one, or with a preference for each of the K (K - 1) / 2 pairs,
    or with a rank for each; or a text with the label 0 or 1. Any may have a weight. Rows whose preference is
    "tie" are left out: nothing is learned from them, and a column of numbers holds no text.
    """

    LAYOUTS: ClassVar = {
        "dialogues": {"chosen": TEXT, "rejected": TEXT},
        "messages": {"chosen": MESSAGES, "rejected": MESSAGES},
        "pairs": {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT},
        "soft": {"prompt": TEXT, "responses": TEXTS, "probability": REAL},
        "best": {"prompt": TEXT, "responses": TEXTS, "preference": NUMBER},
        "votes": {"prompt": TEXT, "responses": TEXTS, "preference": NUMBERS},
        "ranks": {"prompt": TEXT, "responses": TEXTS, "ranks": NUMBERS},
        "labels": {"text": TEXT, "label": NUMBER},
    }

    @classmethod
    def kept(cls, rows: list[Row]) -> list[Row]:
        """The rows without ties; prints how many those are. Raises ValueError where all rows are ties."""
        kept = [row for row in rows if row.get("preference") != "tie"]
        if len(kept) < len(rows):
            print(f"left out: {len(rows) - len(kept)} ties of {len(rows)} comparisons", flush=True)
        if not kept:
            raise ValueError(f"all {len(rows)} comparisons are ties: give others")
        return kept
