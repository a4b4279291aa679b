"""Prompts and people's responses, as arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np

from rlhf_jax.batches import Sequences
from rlhf_jax.bounds import Settings
from rlhf_jax.data import tokenizer as tokenizers
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.dialogues import HISTORY, NO_TEMPLATE, Chat, Dialogue, Turn, plain
from rlhf_jax.data.prompts import encode_prompts, shortened
from rlhf_jax.data.sources import Row, field, field_names, paths, reached, read, texts
from rlhf_jax.data.splits import group_of
from rlhf_jax.data.transcripts import Turns, transcript_ids

if TYPE_CHECKING:
    import transformers  # which takes a second

Answers = Literal["last", "all"]
"""The answers of a dialogue that are learned."""


class Demonstration(NamedTuple):
    """A response to a prompt; demonstrations with equal `group` stay on one side of a split."""

    prompt: str
    response: str
    group: str


@dataclass(frozen=True)
class CorpusFields(Settings):
    """Field names of a corpus row; "a.b" is the field b within a."""

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
    answers: Answers = "last",
    bad: BadRecords | None = None,
) -> list[Demonstration]:
    """Prompts and responses of a source (as in `sources.read`), each pair once.

    A row has "prompt" and "response", "messages" that end with an answer, or a "text", which is a response
    to an empty prompt; `fields` names others. `group` is the key of the prompt, or of the text without a
    prompt, from `splits.group_of`. Raises BadRecord, in one sentence that names path and line, for any other
    row and for a blank text, and with `answers` "all" for a dialogue whose earlier answers cannot be learned
    (`Dialogue.answered`), unless `bad` skips it; and ValueError, in one that names the source, where every
    response is blank, and with `answers` "all" where no row is a dialogue.
    """
    fields, default, found = fields or CorpusFields(), CorpusFields(), {}
    bad = bad or BadRecords()
    names, deep = field_names(fields.prompt), paths(fields)
    by_text = fields.text != default.text  # a field that the user named takes precedence
    by_pair = (fields.prompt, fields.response) != (default.prompt, default.response)
    for row in read(source, bad=bad):
        with bad:
            given = row.keys()
            row = plain(reached(row, deep), chat, names, (fields.response,), several="")
            if fields.response in row and (by_pair or not by_text):
                prompt, response = texts(row, names), field(row, fields.response, str)
            elif fields.text in row and (by_text or not by_pair):
                prompt, response = "", field(row, fields.text, str)
            else:
                raise _unreadable(row, given, fields)
            if not (prompt or response.strip()):
                raise BadRecord(row.where, "the text is blank", ": leave the row out")
            if answers == "all":
                _check_turns(row.where, prompt)
            group = row.group if prompt and row.group else group_of(prompt or response)
            found.setdefault((prompt, response), Demonstration(prompt, response, group))
            bad.keep(row.where, prompt, [response])
    bad.check(found, source)
    if not any(demo.response.strip() for demo in found.values()):
        raise ValueError(f"{source}: every response is blank: give texts to learn")
    if answers == "all" and not any(isinstance(demo.prompt, Dialogue) for demo in found.values()):
        raise ValueError(
            f'{source}: data.turns = "all" has no effect because no row is a dialogue: leave it out, or '
            "give messages"
        )
    return list(found.values())


def taught(prompt: str, response: str, answers: Answers) -> list[tuple[str, str]]:
    """Each learned answer of a demonstration, with the prompt that it answers; the response comes last."""
    earlier = prompt.answered() if answers == "all" and isinstance(prompt, Dialogue) else []
    return [*((x.prompt, x.answer) for x in earlier), (prompt, response)]


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
    tokenizer: "transformers.PreTrainedTokenizerBase",
    prompts: Sequence[str],
    responses: Sequence[str],
    prompt_length: int,
    length: int,
    turns: Turns | None = None,
    answers: Answers = "last",
) -> Sequences:
    """Left-padded prompts [N, prompt_length], followed by right-padded responses [N, length].

    `mask` marks the response's tokens and the one that ends it: the chat template's end of an answer in a
    dialogue, otherwise EOS. A response truncated to `length` has no end token, so that nobody learns to
    stop there. Plain text is a list of empty prompts. With `turns`, responses are transcripts, and `mask`
    marks the policy's own turns, each with its EOS.

    With `answers` "all", `mask` is [N, prompt_length + length - 1] and marks the earlier answers of dialogues
    too. Their tokens are those that each has as a response.

    Raises ValueError where the lists differ in length, or a length is less than 1.
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
    rows = Sequences(
        tokens=np.concatenate([before.tokens, tokens], axis=1),
        attention_mask=np.concatenate([before.attention_mask, real], axis=1),
        mask=mask,
    )
    return rows if answers == "last" else _with_earlier(tokenizer, prompts, rows, prompt_length)


def _with_earlier(tokenizer, prompts: Sequence[str], rows: Sequences, prompt_length: int):
    """The rows, of whose dialogues the earlier answers are encoded as responses and marked too."""
    learned = np.zeros(rows.tokens.shape, bool)
    learned[:, prompt_length:] = rows.mask
    dialogues = {i: prompt for i, prompt in enumerate(prompts) if isinstance(prompt, Dialogue)}
    encoded = _fitted(tokenizer, list(dialogues.values()), prompt_length)
    for i, (ids, said) in zip(dialogues, encoded, strict=True):
        start = prompt_length - len(ids)
        rows.tokens[i, :start] = tokenizer.pad_token_id
        rows.tokens[i, start:prompt_length] = ids
        rows.attention_mask[i, :prompt_length] = np.arange(prompt_length) >= start
        learned[i, start:prompt_length] = said
    return rows._replace(mask=learned[:, 1:])


def _fitted(tokenizer, dialogues: list[Dialogue], length: int) -> list[tuple[list, list]]:
    """The ids of each dialogue, shortened to `length` where it is longer, and True for those of answers."""
    found, room = {}, dict.fromkeys(range(len(dialogues)), length)
    texts = list(dialogues)
    while room:
        encoded = _spoken(tokenizer, [texts[i] for i in room])
        found |= {i: row for i, row in zip(room, encoded, strict=True) if len(row[0]) <= length}
        room = {i: n for i, n in room.items() if i not in found}
        for i, n in room.items():
            texts[i] = shortened(tokenizer, dialogues[i], n)
        # answers encoded apart may have a token more than the text as a whole
        room = {i: n - 1 for i, n in room.items()}
    return [found[i] for i in range(len(dialogues))]


def _spoken(tokenizer, dialogues: list[Dialogue]) -> list[tuple[list[int], list[bool]]]:
    """The ids of each dialogue, and True for those of answers: parts by others and answers take turns."""
    answers = [dialogue.answered() for dialogue in dialogues]
    flat = [x for some in answers for x in some]
    first = [x[0].prompt.whole if x else d.whole for x, d in zip(answers, dialogues, strict=True)]
    heard = iter(tokenizers.encode_written(tokenizer, first))
    said = iter(answer_ids(tokenizer, [x.prompt for x in flat], [x.answer for x in flat]))
    # after its end token, as in the whole text: some tokenizers put a mark at the beginning of a text
    written = [x.prompt.turn.close + x.follows for x in flat]
    then = iter(tokenizers.encode_written(tokenizer, written))
    rows = []
    for some in answers:
        parts = [next(heard)]
        for x in some:
            after = next(then)
            parts += [next(said), after[after.index(x.prompt.turn.end) + 1 :]]
        learned = [n % 2 == 1 for n, part in enumerate(parts) for _ in part]
        rows.append(([id for part in parts for id in part], learned))
    return rows


def _check_turns(where: str, prompt: str) -> None:
    """Raises BadRecord, naming path and line, where a dialogue's earlier answers cannot be learned."""
    try:
        taught(prompt, "", "all")
    except ValueError as error:
        raise BadRecord(where, str(error)) from None


def answer_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase",
    prompts: Sequence[str],
    responses: Sequence[str],
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
        return turn.written(response)
    if not prompt and tokenizers.has_bos(tokenizer, response):
        return "", response.lstrip().removeprefix(str(tokenizer.bos_token))
    return "", tokenizers.at_seam(prompt, response)
