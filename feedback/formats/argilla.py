"""Argilla 2: records with fields, and the responses of its users to label, rating and ranking questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feedback.formats.dialogues import messages
from feedback.formats.found import Found, Said, response, source, take

NAME = "argilla"
PROMPTS = ("prompt", "instruction", "question", "input", "conversation")
"""Fields that may hold the prompt; other texts are responses."""


def fits(row: Mapping) -> bool:
    """True for an exported record."""
    return isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping)


def read(row: Mapping) -> Iterator[Found]:
    """The item of a record, once for each question that was answered: its name tells the questions apart."""
    fields = take(row, "fields", dict)
    prompt = next((fields[x] for x in PROMPTS if fields.get(x)), "")
    names = [x for x, y in fields.items() if isinstance(y, str) and x not in PROMPTS]
    if not 1 <= len(names) <= 8:
        raise ValueError(f"the record has {len(names)} responses in its fields, and takes 1 to 8")
    item: dict[str, Any] = {
        "kind": "single" if len(names) == 1 else "pair" if len(names) == 2 else "ranking",
        "prompt": prompt if isinstance(prompt, str) else messages(prompt),
        "responses": [response(fields[x]) for x in names],
        "metadata": source(NAME, row, "id"),
    }
    if len(names) == 1:
        item["scale"] = "stars"
    answered = {
        question: [x for one in given for x in _said(one, names)]
        for question, given in take(row, "responses", dict).items()
    }
    answered = {question: said for question, said in answered.items() if said}
    for question, said in answered.items():
        yield Found(item | ({"question": question} if len(answered) > 1 else {}), said)
    if not answered:
        yield Found(item)


def _said(one: Mapping, names: Sequence[str]) -> Iterator[Said]:
    """The judgement of one user, where the value is one of these responses."""
    value, who = one.get("value"), one.get("user_id")
    by = f"{NAME}: {who}" if who is not None else ""
    if len(names) == 1:
        if type(value) is int and 1 <= value <= 5:
            yield Said(by, rating=value)
    elif isinstance(value, list):
        of = {x.get("value"): x.get("rank") for x in value if isinstance(x, Mapping)}
        ranks = [x for x in map(of.get, names) if isinstance(x, int)]
        if len(ranks) == len(names):
            yield from _ranked(by, ranks)
    elif value in names:
        yield from _ranked(by, [1 if x == value else 2 for x in names])
    elif len(names) == 2 and value in ("tie", "both_bad"):
        yield Said(by, value)


def _ranked(by: str, ranks: list[int]) -> Iterator[Said]:
    if len(ranks) == 2:
        yield Said(by, "a" if ranks[0] < ranks[1] else "b" if ranks[1] < ranks[0] else "tie")
    else:
        yield Said(by, ranks=[1 + sum(x < mine for x in ranks) for mine in ranks])
