"""Label Studio's JSON: tasks with annotations by its tags Pairwise, Ranker and Rating."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feedback.formats.dialogues import messages
from feedback.formats.found import Found, Said, response, source, take

NAME = "label_studio"
PROMPTS = ("prompt", "instruction", "question", "input", "dialog", "dialogue")
"""Fields of a task that may hold the prompt; other texts are responses."""


def fits(row: Mapping) -> bool:
    """True for an exported task."""
    return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations"), list)


def read(row: Mapping) -> Iterator[Found]:
    """The item of a task, with what each annotator said in one of the three tags."""
    data = take(row, "data", dict)
    prompt = next((data[x] for x in PROMPTS if data.get(x)), "")
    listed = next((x for x in data.values() if _is_items(x)), None)
    if listed is not None:
        names, texts = [str(x["id"]) for x in listed], [_body(x) for x in listed]
    else:
        names = [x for x, y in data.items() if isinstance(y, str) and x not in PROMPTS]
        texts = [data[x] for x in names]
    kind = "ranking" if listed is not None or len(texts) > 2 else ("single", "pair")[len(texts) - 1]
    item = {
        "kind": kind,
        "prompt": prompt if isinstance(prompt, str) else messages(prompt),
        "responses": [response(x) for x in texts],
        "metadata": source(NAME, row, "id"),
    }
    if kind == "single":
        item["scale"] = "stars"
    yield Found(item, [x for y in row["annotations"] for x in _said(y, kind, names)])


def _is_items(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all("id" in x and _body(x) for x in value)


def _body(x: Mapping) -> str:
    return str(x.get("body") or x.get("html") or x.get("title") or "")


def _said(annotation: Mapping, kind: str, names: Sequence[str]) -> Iterator[Said]:
    """The judgement of one annotation: the first result that answers an item of this kind."""
    who = annotation.get("completed_by")
    who = who.get("email", who.get("id")) if isinstance(who, Mapping) else who
    by = f"{NAME}: {who}" if who is not None else ""
    if annotation.get("was_cancelled"):
        return
    for result in take(annotation, "result", list):
        value = take(result, "value", dict)
        if kind == "pair" and value.get("selected") in ("left", "right"):
            yield Said(by, "a" if value["selected"] == "left" else "b")
        elif kind == "single" and value.get("rating") in range(1, 6):
            yield Said(by, rating=int(value["rating"]))
        elif kind == "ranking" and "ranker" in value:
            order = value["ranker"]
            if isinstance(order, Mapping):
                order = next(iter(order.values())) if len(order) == 1 else []
            if sorted(map(str, order)) != sorted(names):
                continue  # sorted into buckets, or in part
            places = [*map(str, order)]
            yield Said(by, ranks=[1 + places.index(x) for x in names])
        else:
            continue
        return
