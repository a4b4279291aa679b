"""Dialogues, which are lists of messages {"role": ..., "content": ...}, as the texts that policies see.

The chat template of a tokenizer makes a text of the messages before an answer; it ends where the assistant's
turn begins. The answer itself is its content, and EOS ends it.
"""

import functools
from collections.abc import Callable
from typing import Any

from rlhf_jax.data import tokenizer
from rlhf_jax.data.sources import Row

Chat = Callable[[list[dict]], str]
"""Messages to the text of a prompt."""


def template(name: str) -> Chat:
    """The chat template of the tokenizer called `name`, which is loaded when it is first asked.

    BOS is left out of what it writes: every prompt begins with it anyway. Raises ValueError, then, where the
    tokenizer has no template, or the template refuses the messages.
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


def is_dialogue(value: Any) -> bool:
    """Whether it is a list of messages, of which there is at least one."""
    is_message = lambda x: isinstance(x, dict) and {"role", "content"} <= x.keys()
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def plain(row: Row, chat: Chat) -> Row:
    """The row with texts in the place of dialogues; one that has none comes back as it is.

        {"messages": [..., an answer]}                     "prompt" and "response"
        {"messages": [..., a question]}                    "prompt"
        {"prompt": [...], ...}                             the same field
        {"chosen": [..., an answer], "rejected": ...}      "prompt" is what both begin with

    In "chosen", "rejected" and "responses" the last message of a dialogue is the answer. `group` is the first
    thing that the user said, so that what begins alike stays on one side of a split. Raises ValueError that
    names path and line where a template is missing or refuses it.
    """
    answer = lambda x: x[-1]["content"] if is_dialogue(x) else x
    fields = {k: answer(x) for k, x in row.items() if k in ("chosen", "rejected", "response")}
    if isinstance(row.get("responses"), list):
        fields["responses"] = [answer(x) for x in row["responses"]]
    messages = row.get("messages", row.get("prompt", []))
    if is_dialogue(row.get("messages")) and messages[-1]["role"] == "assistant":
        messages, fields["response"] = messages[:-1], answer(messages)
    elif not messages and is_dialogue(row.get("chosen")) and is_dialogue(row.get("rejected")):
        messages = row["chosen"][:-1]
        if row["rejected"][:-1] != messages:
            raise ValueError(
                f"{row.where}: 'chosen' and 'rejected' differ before their last message: they must "
                "answer the same dialogue"
            )
    if not is_dialogue(messages):
        return row
    try:
        fields["prompt"] = chat(messages)
    except ValueError as error:
        raise ValueError(f"{row.where}: this is a dialogue, and {error}") from None
    asked = [x["content"] for x in messages if x["role"] == "user"]
    return Row(dict(row) | fields, row.where, group=asked[0] if asked else None)
