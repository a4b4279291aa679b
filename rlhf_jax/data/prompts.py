"""Prompts as left-padded arrays."""

from collections.abc import Sequence

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_jax.batches import Prompts
from rlhf_jax.data import tokenizer as tokenizers


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> Prompts:
    """The prompts, left-padded to `length` columns; `index` is the place in `texts`, `draw` is 0.

    A prompt begins with BOS where the tokenizer has one (an empty prompt without BOS is one EOS). One that
    is too long keeps BOS and its END. Raises ValueError where `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"the prompt length is {length}: it must be 1 or more")
    tokens = np.full((len(texts), length), tokenizer.pad_token_id, np.int32)
    attention_mask = np.zeros((len(texts), length), bool)
    for row, ids in enumerate(tokenizers.encode_prompts(tokenizer, texts)):
        start = tokenizers.start_ids(tokenizer, empty=not ids)
        ids = start + ids[max(0, len(start) + len(ids) - length) :]
        tokens[row, length - len(ids) :] = ids
        attention_mask[row, length - len(ids) :] = True
    return Prompts(
        tokens=tokens,
        attention_mask=attention_mask,
        index=np.arange(len(texts), dtype=np.int32),
        draw=np.zeros(len(texts), np.int32),
    )


def repeat_draws(prompts: Prompts, k: int) -> Prompts:
    """`k` rows of each prompt, side by side, with draws 0 to k - 1 (k times as many rows)."""
    repeated = jax.tree.map(lambda x: np.repeat(x, k, axis=0), prompts)
    draw = np.tile(np.arange(k, dtype=np.int32), len(prompts.index))
    return repeated._replace(draw=draw)
