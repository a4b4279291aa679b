"""Rows with a chosen and a rejected response: beside a prompt, or whole dialogues as HH has them."""

from collections.abc import Iterator, Mapping

from feedback.formats.dialogues import ASK, messages, split_messages, split_texts, transcript
from feedback.formats.found import Found, Said, response, source, take

NAME = "chosen"


def fits(row: Mapping) -> bool:
    """True for a row of this format."""
    return {"chosen", "rejected"} <= row.keys()


def read(row: Mapping) -> Iterator[Found]:
    """A pair of which the first is the chosen one; a margin, or scores, stay in the metadata."""
    a, b = (take(row, x, (str, list)) for x in ("chosen", "rejected"))
    prompt = row.get("prompt") or ""
    if isinstance(a, list) and isinstance(b, list):
        if prompt and len(a) == len(b) == 1:
            texts = [transcript(messages(x)) for x in (a, b)]
        else:
            prompt, *texts = split_messages(a, b)
    elif isinstance(a, str) and isinstance(b, str):
        texts = [a, b]
        if not prompt and a.lstrip().startswith(ASK.strip()):
            prompt, *texts = split_texts(a, b)
    else:
        raise ValueError("'chosen' and 'rejected' must both be texts, or both lists of messages")
    item = {
        "kind": "pair",
        "prompt": prompt if isinstance(prompt, str) else messages(prompt),
        "responses": [*map(response, texts)],
        "metadata": source(NAME, row, "margin", "score_chosen", "score_rejected"),
    }
    yield Found(item, [Said(preference="a")])
