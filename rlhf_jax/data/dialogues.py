"""Dialogues, lists of messages {"role": ..., "content": ...}, as the texts that policies see.

A tokenizer's chat template turns the messages before an answer into a text that ends where the assistant's
turn begins. The template also decides what comes between this text and the answer, and which token ends the
answer.
"""

import bisect
import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rlhf_jax.data import tokenizer
from rlhf_jax.data.bad_records import BadRecord
from rlhf_jax.data.sources import Row
from rlhf_jax.data.splits import group_of

if TYPE_CHECKING:
    import transformers  # which takes a second

USER, ASSISTANT = "user", "assistant"
ROLES = {
    "human": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
"""Role names of ShareGPT and others, and their usual names."""
HISTORY = {"messages", "conversations"}
"""Fields that hold a dialogue, with or without its last answer."""

_ANSWER = "\ue000answer\ue000"  # stands for an answer, to see what a template writes round it


_REFUSES = "the chat template refuses it"


class Refused(ValueError):
    """A chat template refuses the messages of a dialogue."""


class Turn(NamedTuple):
    """Text that a template writes around an answer: opening, before, after, and the end token."""

    opening: str
    """Text up to the last special token before the answer."""
    before: str
    """Plain text between the opening and the answer."""
    after: str
    """Plain text between the answer and the end token."""
    end: int
    """The first special token after the answer; EOS where there is none."""
    trims: bool
    """True where white space around the answer is removed."""
    close: str = ""
    """The end token, as the template writes it; empty where it writes none."""

    def written(self, answer: str) -> tuple[str, str]:
        """(opening, plain text) of the answer, up to its end token."""
        answer = answer.strip() if self.trims else answer
        if self.opening and answer.lstrip().startswith(self.opening.split()[0]):
            return "", answer + self.after  # an answer that brings its own, as `<think>`
        return self.opening, self.before + answer + self.after


class Answered(NamedTuple):
    """An answer within a dialogue."""

    prompt: "Dialogue"
    answer: str
    follows: str
    """Text of the template from the answer's end token to the next answer."""


class Dialogue(str):
    """The text of a chat template for messages, up to the start of the answer, without BOS.

    `whole` is the text with BOS, where the template writes one; `turn` is its text around an answer.
    """

    whole: str
    turn: Turn
    messages: list[dict]
    chat: Callable[[list[dict]], "Dialogue"]

    def __reduce__(self):
        return str, (str(self),)

    def answered(self) -> list[Answered]:
        """The assistant's answers in these messages, without any before the first question.

        Raises ValueError where the text up to the end of an answer, as `turn` writes it, does not begin the
        text of all messages.
        """
        asked = next((i for i, x in enumerate(self.messages) if x["role"] == USER), 0)
        roles = [x["role"] for x in self.messages]
        places = [i for i, role in enumerate(roles) if i > asked and role == ASSISTANT]
        befores = [self.chat(self.messages[:i]) for i in places]
        found = []
        for place, before, then in zip(places, befores, [*befores[1:], self], strict=False):
            answer, turn = self.messages[place]["content"], before.turn
            whole = "".join((before.whole, *turn.written(answer), turn.close))
            if not (turn.close and then.whole.startswith(whole)):
                why = (
                    "otherwise once another follows it"
                    if turn.close
                    else "without a token at its end"
                )
                raise ValueError(
                    f"the chat template writes message {place + 1}, an answer, {why}, so that it cannot be "
                    'learned there: leave data.turns at "last"'
                )
            found.append(Answered(before, answer, then.whole.removeprefix(whole)))
        return found

    def fitting(self, fits: Callable[["Dialogue"], bool]) -> "Dialogue | None":
        """The dialogue without as many of its oldest messages as needed to fit; None where it never fits.

        The shortened dialogue begins with a question and keeps system messages. Where even the last
        question does not fit, words at its end are dropped; where not one word fits beside the system
        messages, these are dropped.
        """
        first = next((i for i, x in enumerate(self.messages) if x["role"] != "system"), None)
        if first is None:
            return None
        system, rest = self.messages[:first], self.messages[first:]
        asked = [i for i, x in enumerate(rest) if x["role"] == "user"] or [len(rest) - 1]
        for i in asked:
            if fits(fewer := self.chat([*system, *rest[i:]])):
                return fewer
        question, *others = rest[asked[-1] :]
        if not isinstance(question["content"], str):
            return None
        words = re.findall(r"\s*\S+", question["content"])
        for head in (system, []) if system else ([],):
            cut = lambda n, head=head: self.chat(
                [*head, question | {"content": "".join(words[:n])}, *others]
            )
            sizes = range(1, len(words) + 1)
            n = bisect.bisect_left(sizes, True, key=lambda n, cut=cut: not fits(cut(n)))
            if n:
                return cut(n)
        return None


Chat = Callable[[list[dict]], str]
"""Function from messages to the text of a prompt, a Dialogue."""


def template(name: str) -> Chat:
    """The chat template of the tokenizer called `name`, which is loaded at the first call.

    That call raises ValueError where the tokenizer has no template, or the template refuses the messages.
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

    turns: dict[str, Turn] = {}  # by the role that spoke last

    def chat(messages: list[dict]) -> Dialogue:
        whole = _render(words(), messages, add_generation_prompt=True)
        last = str(messages[-1].get("role"))
        if last not in turns:
            turns[last] = turn_of(words(), messages)
        made = Dialogue(whole.removeprefix(str(words().bos_token or "")))
        made.whole, made.turn, made.messages, made.chat = whole, turns[last], messages, chat
        return made

    return chat


def turn_of(words: "transformers.PreTrainedTokenizerBase", messages: list[dict]) -> Turn:
    """Text of the chat template around an answer to the messages.

    Raises ValueError where the template refuses an answer or leaves it out.
    """
    prompt = _render(words, messages, add_generation_prompt=True)
    answered = lambda text: _render(words, [*messages, {"role": "assistant", "content": text}])
    before, found, after = answered(_ANSWER).partition(_ANSWER)
    if not found:
        raise ValueError("the chat template leaves the assistant's answer out")
    marks = sorted((str(x) for x in words.added_tokens_decoder.values()), key=len, reverse=True)
    own = re.compile("|".join(re.escape(mark) for mark in marks if mark.strip()) or r"(?!)")
    header = before.removeprefix(prompt) if before.startswith(prompt) else ""
    cut = max((mark.end() for mark in own.finditer(header)), default=0)
    end = own.search(after)
    return Turn(
        opening=header[:cut],
        before=header[cut:],
        after=after[: end.start()] if end else "",
        end=cast(int, words.convert_tokens_to_ids(end[0]) if end else words.eos_token_id),
        trims=f" {_ANSWER} " not in answered(f" {_ANSWER} "),
        close=end[0] if end else "",
    )


def ends(words: "transformers.PreTrainedTokenizerBase") -> tuple[int, ...]:
    """The token that ends an answer in the tokenizer's chat template; none without a template."""
    if not words.chat_template:
        return ()
    try:
        return (turn_of(words, [{"role": "user", "content": "?"}]).end,)
    except ValueError:  # the template needs other messages; an accepted dialogue will give its end
        return ()


def _render(words: "transformers.PreTrainedTokenizerBase", messages: list[dict], **settings) -> str:
    try:
        return str(words.apply_chat_template(messages, tokenize=False, **settings))
    except ValueError:
        raise
    except Exception as error:  # templates raise any exception of jinja2
        raise Refused(f"{_REFUSES}: {error}") from error


NO_TEMPLATE = template("")
"""The `Chat` that refuses every dialogue."""


def plain(
    row: Row,
    chat: Chat,
    prompt: Sequence[str] = ("prompt",),
    answers: Sequence[str] = ("chosen", "rejected", "response"),
    several: str = "responses",
) -> Row:
    """The row with texts in place of dialogues; a row without dialogues is returned unchanged.

        {"messages": [..., an answer]}                     "prompt" and "response"
        {"messages": [..., a question]}                    "prompt"
        {"prompt": [...], ...}                             "prompt"
        {"chosen": [..., an answer], "rejected": ...}      "prompt", their common beginning

    `prompt` and `answers` name the fields that may hold a prompt and an answer, and `several` one that
    holds a list of answers. The last message of an answer is the answer, and the messages before it are
    what it answers. An answer that begins with the assistant follows the prompt of its row (a user message
    where that is a text); any other answer is a whole dialogue, and needs no text or "messages" beside it.
    "conversations" of {"from", "value"} are messages too, and content may be a list of texts.

    The text of the prompt goes into the first field of `prompt`. `group` is the key of the user's first
    message, so that dialogues with the same beginning stay on one side of a split. Raises BadRecord, naming
    path and line, for a message without a text, for an answer that is not the assistant's, for answers to
    different dialogues, and where the template refuses the dialogue; ValueError where there is no template.
    """
    parts = _parts(row, prompt, answers, several)
    if parts is None:
        return row
    history, fields = parts
    if not history:
        return Row(dict(row) | fields, row.where)
    fields |= dict.fromkeys(prompt, "")
    try:
        fields[prompt[0]] = chat(history)
    except Refused as error:
        more = str(error).removeprefix(_REFUSES)
        raise BadRecord(row.where, f"this is a dialogue, and {_REFUSES}", more) from None
    except ValueError as error:  # no record's fault: there is no template
        raise ValueError(f"{row.where}: this is a dialogue, and {error}") from None
    first = [x["content"] for x in history if x["role"] == USER]
    return Row(dict(row) | fields, row.where, group=group_of(first[0]) if first else None)


def _parts(row: Row, prompt: Sequence[str], answers: Sequence[str], several: str):
    """(messages that are answered, texts of the answers by field); None for a row without dialogues."""
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
        return None
    if asked and asked[-1]["role"] == ASSISTANT:
        reason = f"the dialogue in {prompt[0]!r} ends with the assistant"
        raise BadRecord(row.where, reason, ": it must end with what is answered")
    before, answer = whole, {}
    if whole and whole[-1]["role"] == ASSISTANT:
        before, answer = whole[:-1], {answers[-1]: whole[-1]["content"]}
    if not items:
        return (before, answer) if whole else (asked, {})
    said = "\n".join(x for x in (row.get(name) for name in prompt) if isinstance(x, str) and x)
    before = asked or before or ([{"role": USER, "content": said}] if said.strip() else [])
    told = {place: side[-1]["content"] if side else items[place] for place, side in sides.items()}
    fields: dict[str, Any] = {name: text for (name, at), text in told.items() if at is None}
    if (several, 0) in told:
        fields[several] = [text for (name, _), text in told.items() if name == several]
    return _answered(row, before, asked, sides), fields


def _answered(row: Row, before: list[dict], asked: list[dict], sides: dict) -> list[dict]:
    """The messages that all answers of a row answer; `before` is its prompt, `asked` the part given as
    messages."""
    found = {}
    for (name, _), side in sides.items():
        if not side:  # a text
            found[name] = before
            continue
        if side[-1]["role"] != ASSISTANT:
            reason = f"{name!r} ends with the role {side[-1]['role']!r}"
            raise BadRecord(row.where, reason, ": it must end with an answer of the assistant")
        found[name] = (before + side if side[0]["role"] == ASSISTANT else side)[:-1]
        if found[name][: len(asked)] != asked:
            reason = f"{name!r} does not begin with the dialogue in the prompt"
            raise BadRecord(row.where, reason, ": it must answer that")
    histories = [x for x in found.values() if x]
    if any(x != histories[0] for x in histories):
        reason = f"{' and '.join(map(repr, found))} differ before their last message"
        raise BadRecord(row.where, reason, ": they must answer the same dialogue")
    return histories[0] if histories else []


def _messages(row: Row, name: str, value: Any) -> list[dict]:
    """Messages of a dialogue, or of one message, each with a role and a text; [] for anything else."""
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
            raise BadRecord(
                row.where,
                f"message {number} of {name!r} needs a role and a text as its content",
                " (a call of a tool or a picture is not read): leave the row out, or give a text",
            )
        found.append({"role": ROLES.get(role, role), "content": content})
    return found
