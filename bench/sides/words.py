"""Texts that are token numbers, for peers that want texts: "5 12 7" is the tokens 5, 12 and 7.

Neither the pad nor the end is a token of the model, so no response is padded or ends early.
"""

import numpy as np


def text(tokens) -> str:
    """Of one row."""
    return " ".join(map(str, np.asarray(tokens).tolist()))


def tokenizer(vocab_size: int):
    """As transformers' tokenizers are; `vocab_size` is the model's."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {str(i): i for i in range(vocab_size)} | {
        "<pad>": vocab_size,
        "<eos>": vocab_size + 1,
    }
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, "0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
