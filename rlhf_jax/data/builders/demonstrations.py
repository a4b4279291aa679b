"""Texts to imitate, as a data set of TFDS."""

from typing import ClassVar

import tensorflow_datasets as tfds

from rlhf_jax.data.builders.builder import MESSAGES, TEXT, Builder


class Demonstrations(Builder):
    """Texts to imitate, which `demonstrations.read_demonstrations` reads.

    A row is a prompt and a response, messages that end with an answer, or one text. It may have further
    columns, such as a rating.
    """

    LAYOUTS: ClassVar = {
        "pairs": {"prompt": TEXT, "response": TEXT},
        "messages": {"messages": MESSAGES},
        "conversations": {"conversations": tfds.features.Dataset({"from": TEXT, "value": TEXT})},
        "texts": {"text": TEXT},
    }
