"""Pairs of dialogues: their common beginning is the prompt, and what follows are the responses."""

from collections.abc import Mapping, Sequence

from feedback.formats.found import take

ANSWER, ASK = "\n\nAssistant:", "\n\nHuman:"
NAMES = {"user": ASK, "human": ASK, "prompter": ASK, "assistant": ANSWER, "gpt": ANSWER}


def messages(value: Sequence) -> list[dict]:
    """The messages of a list, each a role and a text; parts of a text are joined, other parts refused."""
    found = []
    for turn in value:
        if isinstance(turn, Mapping) and isinstance(turn.get("content"), list):
            parts = [take(part, "text") for part in turn["content"]]
            turn = {**turn, "content": "".join(parts)}
        found.append({"role": take(turn, "role"), "content": take(turn, "content")})
    return found


def transcript(turns: Sequence[Mapping]) -> str:
    """The text of turns of which the first is the assistant's: its words alone, or a transcript."""
    said = [f"{NAMES.get(x['role'], chr(10) * 2 + x['role'] + ':')} {x['content']}" for x in turns]
    return "".join(said).removeprefix(f"{ANSWER} ")


def split_messages(a: Sequence, b: Sequence) -> tuple[list[dict], str, str]:
    """(the messages that two dialogues begin with, what follows in each); an answer comes first in both."""
    a, b = messages(a), messages(b)
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    while same and not all(x[same:] and x[same]["role"] == "assistant" for x in (a, b)):
        same -= 1
    if not same:
        raise ValueError("the two dialogues do not answer the same question")
    return a[:same], transcript(a[same:]), transcript(b[same:])


def split_texts(a: str, b: str) -> tuple[str, str, str]:
    """(the beginning of two transcripts up to the last common "Assistant:", what follows in each)."""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    end = a[:same].rfind(ANSWER) + len(ANSWER)
    if end < len(ANSWER):
        raise ValueError(f"the two dialogues do not begin with the same turns up to {ANSWER!r}")
    return a[:end], a[end:], b[end:]
