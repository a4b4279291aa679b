"""Prompts to answer, as a data set of TFDS."""

from typing import ClassVar

from rlhf_jax.data.builders.builder import MESSAGES, TEXT, TEXTS, Builder


class Prompts(Builder):
    """Prompts to answer, which `reading.read_prompts` reads, with any other columns for a Python reward.

    A row is a prompt (a text, or messages, or a text whose first words become the prompt), and may have a
    reference answer, or several, in "answer".
    """

    LAYOUTS: ClassVar = {
        "texts": {"prompt": TEXT},
        "messages": {"prompt": MESSAGES},
        "answers": {"prompt": TEXT, "answer": TEXT},
        "references": {"prompt": TEXT, "answer": TEXTS},
        "dialogues": {"messages": MESSAGES},
        "openings": {"text": TEXT},
    }
