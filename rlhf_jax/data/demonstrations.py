"""Prompts and the responses that people wrote, as arrays."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_jax.batches import Sequences
from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.sources import field, read_jsonl


def read_demonstrations(
    patterns: str | Sequence[str], chat: Chat = NO_TEMPLATE
) -> list[tuple[str, str]]:
    """Prompts and responses of JSONL files (paths as `sources.read_jsonl`), each pair once.

    A row has "prompt" and "response", "messages" that end with an answer, or a "text", which is a response
    to an empty prompt. Raises ValueError, in one sentence that names path and line, for any other.
    """
    found = {}
    for row in read_jsonl(patterns):
        row = plain(row, chat)
        if "response" in row:
            found[field(row, "prompt", str), field(row, "response", str)] = None
        else:
            found["", field(row, "text", str)] = None
    return list(found)


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    prompt_length: int,
    length: int,
) -> Sequences:
    """Left-padded prompts [N, prompt_length] with right-padded responses [N, length] after them.

    `mask` marks the response's tokens and the EOS after them. A response that is cut to `length` has no
    EOS: nobody should learn to stop there. Plain text is a list of empty prompts: BOS alone stands for
    each. Raises ValueError where the lists differ in length, or a length is below 1.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"{len(prompts)} prompts have {len(responses)} responses: give one for each"
        )
    if length < 1:
        raise ValueError(f"the response length is {length}: it must be 1 or more")
    before = encode_prompts(tokenizer, prompts, prompt_length)
    texts = [tokenizers.at_seam(p, r) for p, r in zip(prompts, responses, strict=True)]
    tokens = np.full((len(texts), length), tokenizer.pad_token_id, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, ids in enumerate(tokenizers.encode_responses(tokenizer, texts)):
        ids = [*ids, tokenizer.eos_token_id][:length]
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return Sequences(
        tokens=np.concatenate([before.tokens, tokens], axis=1),
        attention_mask=np.concatenate([before.attention_mask, mask], axis=1),
        mask=mask,
    )
