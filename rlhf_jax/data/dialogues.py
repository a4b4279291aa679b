"""Dialogues, which are lists of messages {"role": ..., "content": ...}, as the texts that policies see.

The chat template of a tokenizer makes a text of the messages before an answer; it ends where the
assistant's turn begins. The answer itself is its content, and EOS ends it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data import tokenizer
from rlhf_jax.data.sources import Row
from rlhf_jax.data.splits import group_of

USER, ASSISTANT = "user", "assistant"
ROLES = {
    "human": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
"""What ShareGPT and others call the roles."""
HISTORY = {"messages", "conversations"}
"""Fields that hold a dialogue, with its last answer or without."""

Chat = Callable[[list[dict]], str]
"""Messages to the text of a prompt."""


def template(name: str) -> Chat:
    """The chat template of the tokenizer called `name`, which is loaded when it is first asked.

    BOS is left out of what it writes: every prompt begins with it anyway. Raises ValueError, then, where
    the tokenizer has no template, or the template refuses the messages.
    """

    @functools.cache
    def words():
        loaded = tokenizer.load(name) if name else None
        if loaded is None or not loaded.chat_template:
            whose = (
                f'the tokenizer "{name}" has' if name else "a tokenizer that is trained here has"
            )
            raise ValueError(
                f"{whose} no chat template: name the model or tokenizer of a chat model"
            )
        return loaded

    def chat(messages: list[dict]) -> str:
        try:
            text = words().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except ValueError:
            raise
        except Exception as error:  # of jinja2's, whatever the template raises
            raise ValueError(f"the chat template refuses it: {error}") from error
        return str(text).removeprefix(str(words().bos_token or ""))

    return chat


NO_TEMPLATE = template("")
"""Refuses every dialogue."""


def plain(
    row: Row,
    chat: Chat,
    prompt: Sequence[str] = ("prompt",),
    answers: Sequence[str] = ("chosen", "rejected", "response"),
    several: str = "responses",
) -> Row:
    """The row with texts in the place of dialogues; one that has none comes back as it is.

        {"messages": [..., an answer]}                     "prompt" and "response"
        {"messages": [..., a question]}                    "prompt"
        {"prompt": [...], ...}                             the same field
        {"chosen": [..., an answer], "rejected": ...}      "prompt" is what both begin with

    `prompt` and `answers` name the fields that may hold a prompt and an answer, `several` one that holds a
    list of answers. The last message of an answer is the answer, and those before it are what it answers.
    An answer that begins with the assistant follows the prompt of its row, which the user said where it is
    a text; any other is a whole dialogue, and a text or "messages" beside it are not needed.
    "conversations" of {"from", "value"} are messages too, and content may be a list of texts.

    The text of the prompt goes into the first field of `prompt`. `group` is the key of the first thing that
    the user said, so that what begins alike stays on one side of a split. Raises ValueError that names path
    and line for a message without a text, for an answer that is not the assistant's, for answers to
    different dialogues, and where a template is missing or refuses the dialogue.
    """
    asked = _messages(row, prompt[0], row.get(prompt[0])) if len(prompt) == 1 else []
    whole = next(
        (_messages(row, name, row[name]) for name in sorted(HISTORY & row.keys(), reverse=True)), []
    )
    items: dict[tuple, Any] = {
        (name, None): row[name] for name in answers if row.get(name) is not None
    }
    if isinstance(row.get(several), list):
        items |= {(several, at): item for at, item in enumerate(row[several])}
    sides = {place: _messages(row, place[0], item) for place, item in items.items()}
    if not (asked or whole or any(sides.values())):
        return row
    if asked and asked[-1]["role"] == ASSISTANT:
        raise ValueError(
            f"{row.where}: the dialogue in {prompt[0]!r} ends with the assistant: it must end with what is "
            "answered"
        )
    fields: dict[str, Any] = {}
    if not items and whole:
        answered = whole[-1]["role"] == ASSISTANT
        history = whole[:-1] if answered else whole
        fields = {answers[-1]: whole[-1]["content"]} if answered else {}
    elif not items:
        history = asked
    else:
        said = "\n".join(x for x in (row.get(name) for name in prompt) if isinstance(x, str) and x)
        before = asked or (whole[:-1] if whole and whole[-1]["role"] == ASSISTANT else whole)
        before = before or ([{"role": USER, "content": said}] if said.strip() else [])
        history = _answered(row, before, asked, sides)
        told = {
            place: side[-1]["content"] if side else items[place] for place, side in sides.items()
        }
        fields = {name: text for (name, at), text in told.items() if at is None}
        if (several, 0) in told:
            fields[several] = [text for (name, _), text in told.items() if name == several]
    if not history:
        return Row(dict(row) | fields, row.where)
    fields |= dict.fromkeys(prompt, "")
    try:
        fields[prompt[0]] = chat(history)
    except ValueError as error:
        raise ValueError(f"{row.where}: this is a dialogue, and {error}") from None
    first = [x["content"] for x in history if x["role"] == USER]
    return Row(dict(row) | fields, row.where, group=group_of(first[0]) if first else None)


def _answered(row: Row, before: list[dict], asked: list[dict], sides: dict) -> list[dict]:
    """What all answers of a row answer; `before` is its prompt, of which `asked` is what messages say."""
    found = {}
    for (name, _), side in sides.items():
        if not side:  # a text
            found[name] = before
            continue
        if side[-1]["role"] != ASSISTANT:
            raise ValueError(
                f"{row.where}: {name!r} ends with the role {side[-1]['role']!r}: it must end with an answer "
                "of the assistant"
            )
        found[name] = (before + side if side[0]["role"] == ASSISTANT else side)[:-1]
        if found[name][: len(asked)] != asked:
            raise ValueError(
                f"{row.where}: {name!r} does not begin with the dialogue in the prompt: it must answer that"
            )
    histories = [x for x in found.values() if x]
    if any(x != histories[0] for x in histories):
        raise ValueError(
            f"{row.where}: {' and '.join(map(repr, found))} differ before their last message: they must "
            "answer the same dialogue"
        )
    return histories[0] if histories else []


def _messages(row: Row, name: str, value: Any) -> list[dict]:
    """The messages of a dialogue, or of one message, with a role and a text each; [] for anything else."""
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not any(
        isinstance(x, dict) and {"role", "from"} & x.keys() for x in value
    ):
        return []
    found = []
    for number, message in enumerate(value, 1):
        message = message if isinstance(message, dict) else {}
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):
            parts = [x.get("text") if isinstance(x, dict) else x for x in content]
            texts = [x for x in parts if isinstance(x, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"{row.where}: message {number} of {name!r} needs a role and a text as its content (a call "
                "of a tool or a picture is not read): leave the row out, or give a text"
            )
        found.append({"role": ROLES.get(role, role), "content": content})
    return found
