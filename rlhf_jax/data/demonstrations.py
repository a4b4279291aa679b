"""Prompts and people's responses, as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf_jax.batches import Sequences
from rlhf_jax.bounds import Settings
from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.dialogues import HISTORY, NO_TEMPLATE, Chat, Dialogue, Turn, plain
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.sources import Row, field, read, texts
from rlhf_jax.data.splits import group_of
from rlhf_jax.data.transcripts import Turns, transcript_ids


class Demonstration(NamedTuple):
    """A response to a prompt; demonstrations with equal `group` stay on one side of a split."""

    prompt: str
    response: str
    group: str


@dataclass(frozen=True)
class CorpusFields(Settings):
    """Field names of a corpus row."""

    prompt: str = "prompt"
    """Prompt fields, separated by commas and joined by newlines; empty ones are dropped."""
    response: str = "response"
    """Field of the response to the prompt."""
    text: str = "text"
    """Field of a text without a prompt, for rows without a response."""


def read_demonstrations(
    source: str | Sequence[str],
    chat: Chat = NO_TEMPLATE,
    fields: CorpusFields | None = None,
    bad: BadRecords | None = None,
) -> list[Demonstration]:
    """Prompts and responses of a source (as in `sources.read`), each pair once.

    A row has "prompt" and "response", "messages" that end with an answer, or a "text", which is a response
    to an empty prompt; `fields` names others. `group` is the key of the prompt, or of the text without a
    prompt, from `splits.group_of`. Raises BadRecord, in one sentence that names path and line, for any other
    row and for a blank text, unless `bad` skips it, and ValueError, in one that names the source, where
    every response is blank.
    """
    fields, default, found = fields or CorpusFields(), CorpusFields(), {}
    bad = bad or BadRecords()
    names = [name.strip() for name in fields.prompt.split(",") if name.strip()]
    by_text = fields.text != default.text  # a field that the user named takes precedence
    by_pair = (fields.prompt, fields.response) != (default.prompt, default.response)
    for row in read(source, bad=bad):
        with bad:
            given = row.keys()
            row = plain(row, chat, names, (fields.response,), several="")
            if fields.response in row and (by_pair or not by_text):
                prompt, response = texts(row, names), field(row, fields.response, str)
            elif fields.text in row and (by_text or not by_pair):
                prompt, response = "", field(row, fields.text, str)
            else:
                raise _unreadable(row, given, fields)
            if not (prompt or response.strip()):
                raise BadRecord(row.where, "the text is blank", ": leave the row out")
            group = row.group if prompt and row.group else group_of(prompt or response)
            found.setdefault((prompt, response), Demonstration(prompt, response, group))
    bad.check(found, source)
    if not any(demo.response.strip() for demo in found.values()):
        raise ValueError(f"{source}: every response is blank: give texts to learn")
    return list(found.values())


def _unreadable(row: Row, given: Iterable[str], fields: CorpusFields) -> BadRecord:
    """The error for a row that holds no text to learn; `given` are its own fields."""
    if HISTORY & set(given):
        reason = "the dialogue does not end with an answer of the assistant"
        return BadRecord(row.where, reason, ": leave the row out")
    return BadRecord(
        row.where,
        f"a text to learn needs the fields {fields.prompt!r} and {fields.response!r}, or 'messages', or "
        f"{fields.text!r}",
        f", and the fields found are {', '.join(map(repr, given)) or 'none'}: name yours with "
        "data.corpus_fields",
    )


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    prompt_length: int,
    length: int,
    turns: Turns | None = None,
) -> Sequences:
    """Left-padded prompts [N, prompt_length], followed by right-padded responses [N, length].

    `mask` marks the response's tokens and the one that ends it: the chat template's end of an answer in a
    dialogue, otherwise EOS. A response truncated to `length` has no end token, so that nobody learns to
    stop there. Plain text is a list of empty prompts. With `turns`, responses are transcripts, and `mask`
    marks the policy's own turns, each with its EOS. Raises ValueError where the lists differ in length,
    or a length is less than 1.
    """
    if length < 1:
        raise ValueError(f"the response length is {length}: it must be 1 or more")
    if turns:
        every = transcript_ids(tokenizer, responses, turns)
    else:
        every = [(ids, [True] * len(ids)) for ids in answer_ids(tokenizer, prompts, responses)]
    begun = [
        str(tokenizer.bos_token) if not p and tokenizers.has_bos(tokenizer, r) else p
        for p, r in zip(prompts, responses, strict=True)
    ]
    before = encode_prompts(tokenizer, begun, prompt_length)
    tokens = np.full((len(every), length), tokenizer.pad_token_id, np.int32)
    real, mask = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for row, (ids, own) in enumerate(every):
        n = min(len(ids), length)
        tokens[row, :n], mask[row, :n], real[row, :n] = ids[:n], own[:n], True
    return Sequences(
        tokens=np.concatenate([before.tokens, tokens], axis=1),
        attention_mask=np.concatenate([before.attention_mask, real], axis=1),
        mask=mask,
    )


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[list[int]]:
    """The ids of each whole response after its prompt, with the token that ends it.

    An end token written out at the end of a response is that token, and BOS at the beginning of a text
    without a prompt belongs to the prompt. Raises ValueError where the lists differ in length.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"{len(prompts)} prompts have {len(responses)} responses: give one for each"
        )
    eos = Turn("", "", "", cast(int, tokenizer.eos_token_id), False)
    turns = [prompt.turn if isinstance(prompt, Dialogue) else eos for prompt in prompts]
    rows = [
        _written(tokenizer, prompt, _unended(tokenizer, response, {turn.end, eos.end}), turn)
        for prompt, response, turn in zip(prompts, responses, turns, strict=True)
    ]
    openings, texts = ([row[n] for row in rows] for n in (0, 1))
    headers = list(dict.fromkeys(openings))
    header_ids = tokenizers.encode_written(tokenizer, headers, follows=True)
    header_of = dict(zip(headers, header_ids, strict=True))
    of_kind = lambda follows: iter(
        tokenizers.encode_responses(
            tokenizer,
            [text for text, prompt in zip(texts, prompts, strict=True) if bool(prompt) == follows],
            follows=follows,
        )
    )
    ids = {follows: of_kind(follows) for follows in (False, True)}
    return [
        [*header_of[opening], *next(ids[bool(prompt)]), turn.end]
        for prompt, opening, turn in zip(prompts, openings, turns, strict=True)
    ]


def _unended(tokenizer, response: str, ends: set[int]) -> str:
    """The response without end tokens that are written out at its end."""
    names = [str(tokenizer.convert_ids_to_tokens(end)) for end in ends]
    while found := [name for name in names if response.rstrip().endswith(name)]:
        response = response.rstrip().removesuffix(found[0])
    return response


def _written(tokenizer, prompt: str, response: str, turn: Turn) -> tuple[str, str]:
    """(text to encode with special tokens, text to encode as plain) after a prompt: the template's opening,
    and the response."""
    if isinstance(prompt, Dialogue):
        response = response.strip() if turn.trims else response
        if turn.opening and response.lstrip().startswith(turn.opening.split()[0]):
            return "", response + turn.after  # a response that brings its own, as `<think>`
        return turn.opening, turn.before + response + turn.after
    if not prompt and tokenizers.has_bos(tokenizer, response):
        return "", response.lstrip().removeprefix(str(tokenizer.bos_token))
    return "", tokenizers.at_seam(prompt, response)
