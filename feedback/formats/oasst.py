"""Open Assistant: trees of messages, whose sibling answers people ranked (Köpf et al., 2023)."""

from collections.abc import Iterator, Mapping

from feedback.formats.found import Found, Said, ranks_of, response, source, take
from feedback.store.records import RESPONSES

NAME = "oasst"
ROLES = {"prompter": "user", "assistant": "assistant"}


def fits(row: Mapping) -> bool:
    """True for a tree."""
    return "message_tree_id" in row and isinstance(row.get("prompt"), Mapping)


def read(row: Mapping) -> Iterator[Found]:
    """An item for each question of the tree that has several answers; ranks where all of them have one."""
    yield from _below(take(row, "prompt", dict), [], row)


def _below(message: Mapping, before: list[dict], row: Mapping) -> Iterator[Found]:
    role = ROLES.get(take(message, "role"), take(message, "role"))
    told = [*before, {"role": role, "content": take(message, "text")}]
    replies = message.get("replies") or []
    answers = [x for x in replies if take(x, "role") == "assistant"]
    ranks = [x.get("rank") for x in answers]
    if known := all(type(x) is int for x in ranks):
        answers.sort(key=lambda x: x["rank"])
    answers = answers[: RESPONSES["ranking"][1]]  # of more, the best ones
    if role == "user" and len(answers) > 1:
        yield _item(answers, told, known, row)
    for reply in replies:
        yield from _below(reply, told, row)


def _item(answers: list[Mapping], told: list[dict], known: bool, row: Mapping) -> Found:
    item = {
        "kind": "pair" if len(answers) == 2 else "ranking",
        "prompt": told,
        "responses": [response(take(x, "text"), x.get("model_name")) for x in answers],
        "metadata": source(NAME, row, "message_tree_id"),
    }
    ranks = ranks_of([x["rank"] for x in answers], best=-1) if known else []
    if known and len(answers) == 2:
        return Found(item, [Said(preference="a" if ranks[0] < ranks[1] else "tie")])
    return Found(item, [Said(ranks=ranks)] if known else [])
