"""Prompts as left-padded arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from rlhf_jax.batches import Prompts
from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.dialogues import Dialogue

if TYPE_CHECKING:
    import transformers  # which takes a second


def encode_prompts(
    tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str], length: int
) -> Prompts:
    """The prompts, left-padded to `length` columns; `index` is the position in `texts`, `draw` is 0.

    Ids are those of `tokenizer(prompt)` in transformers (an empty prompt without BOS is one EOS). A text
    that is too long keeps BOS and its END. A dialogue first loses its oldest messages, then the end of its
    last question, and its system messages rather than the question's last word. Raises ValueError where
    `length` < 1, or where it holds not one word of that question.
    """
    if length < 1:
        raise ValueError(f"the prompt length is {length}: it must be 1 or more")
    tokens = np.full((len(texts), length), tokenizer.pad_token_id, np.int32)
    attention_mask = np.zeros((len(texts), length), bool)
    for row, ids in enumerate(prompt_ids(tokenizer, texts)):
        if len(ids) > length:
            ids = _cut(tokenizer, texts[row], ids, length)
        tokens[row, length - len(ids) :] = ids
        attention_mask[row, length - len(ids) :] = True
    return Prompts(
        tokens=tokens,
        attention_mask=attention_mask,
        index=np.arange(len(texts), dtype=np.int32),
        draw=np.zeros(len(texts), np.int32),
    )


def prompt_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[list[int]]:
    """All ids of each prompt; of a dialogue, with BOS where its template writes one."""
    plain = [text for text in texts if not isinstance(text, Dialogue)]
    written = [text.whole for text in texts if isinstance(text, Dialogue)]
    plain_ids = iter(tokenizers.encode_prompts(tokenizer, plain))
    written_ids = iter(tokenizers.encode_written(tokenizer, written))
    return [next(written_ids if isinstance(text, Dialogue) else plain_ids) for text in texts]


def repeat_draws(prompts: Prompts, k: int) -> Prompts:
    """`k` adjacent rows of each prompt, with draws 0 to k - 1 (k times as many rows)."""
    repeated = jax.tree.map(lambda x: np.repeat(x, k, axis=0), prompts)
    draw = np.tile(np.arange(k, dtype=np.int32), len(prompts.index))
    return repeated._replace(draw=draw)


def _cut(tokenizer, text: str, ids: list[int], length: int) -> list[int]:
    """The ids of a prompt that is longer than `length`, shortened as in `encode_prompts`."""
    if not isinstance(text, Dialogue):
        start = tokenizers.start_ids(tokenizer) or [tokenizer.bos_token_id]
        kept = start if ids[: len(start)] == start else []
        return (kept + ids[len(ids) - max(0, length - len(kept)) :])[:length]
    return tokenizers.encode_written(tokenizer, [shortened(tokenizer, text, length).whole])[0]


def shortened(
    tokenizer: "transformers.PreTrainedTokenizerBase", dialogue: Dialogue, length: int
) -> Dialogue:
    """The dialogue, shortened to `length` tokens as in `encode_prompts`.

    Raises ValueError where these hold not one word of its last question.
    """
    size = lambda dialogue: len(tokenizers.encode_written(tokenizer, [dialogue.whole])[0])
    shorter = dialogue.fitting(lambda dialogue: size(dialogue) <= length)
    if shorter is None:
        raise ValueError(
            f"data.prompt_length = {length} holds not one word of the last question of a dialogue beside "
            f"what the chat template writes round it ({dialogue[:40]!r}...): raise it"
        )
    return shorter
