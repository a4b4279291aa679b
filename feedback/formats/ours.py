"""Our own rows: items as they are put, and all layouts that rlhf_jax learns from, exports included."""

from collections.abc import Iterator, Mapping
from typing import Any

from feedback.formats.dialogues import messages, transcript
from feedback.formats.found import Found, Said, ranks_of, take
from feedback.store import answers

NAME = "ours"
OF_ITEM = (
    *("id", "kind", "scale", "wanted", "purpose", "gold", "reason", "question", "metadata"),
    "selection",
)
OF_ROW = ("policy", "model")
"""Fields that stay in the metadata of an item from a row without any."""
MOST_VOTES = 1000
SCORES = ("rating", "score", "label")


def fits(row: Mapping) -> bool:
    """True for an item, and for a row of comparisons, ranks, ratings or labelled texts."""
    alone = "response" in row or "text" in row
    return "responses" in row or (alone and bool({*SCORES} & row.keys()))


def read(row: Mapping) -> Iterator[Found]:
    """The item of a row, and the votes that it holds."""
    if "responses" in row:
        given = take(row, "responses", list)
        responses = [_text(x) if isinstance(x, list | bool | int | float) else x for x in given]
    else:
        responses = [_text(row["response"] if "response" in row else take(row, "text"))]
    prompt = row.get("prompt") or ""
    item = {x: row[x] for x in OF_ITEM if row.get(x) is not None} | {
        "prompt": prompt if isinstance(prompt, str) else messages(prompt),
        "responses": responses,
    }
    if "metadata" not in item and (known := {x: row[x] for x in OF_ROW if x in row}):
        item["metadata"] = known
    many = len(responses) > 2 or "ranks" in row
    item.setdefault("kind", "ranking" if many else "pair" if len(responses) == 2 else "single")
    if item["kind"] == "single":
        item.setdefault("scale", _scale(row))
    yield Found(item, [*_said(row, item)])


def _text(value: Any) -> str:
    """A response: a text, messages of the assistant, or a number that stands for its word."""
    if isinstance(value, list):
        return transcript(messages(value))
    return value if isinstance(value, str) else str(value)


def _scale(row: Mapping) -> str:
    """The scale of a rating: thumbs for labels, and for 0, true and false; else stars."""
    value = next((row[x] for x in SCORES if x in row), None)
    return "thumbs" if "label" in row or isinstance(value, bool) or value == 0 else "stars"


def _said(row: Mapping, item: Mapping) -> Iterator[Said]:
    by, n = str(row.get("annotator") or ""), len(item["responses"])
    if item["kind"] == "single":
        yield from _ratings(row, item["scale"], by)
    elif item["kind"] == "pair":
        yield from _pair(row, by)
    elif isinstance(row.get("ranks"), list):
        ranks = row["ranks"]
        yield Said(by, ranks=ranks if answers.is_ranking(ranks, n) else ranks_of(ranks, best=-1))
    elif type(row.get("preference")) is int and 0 <= row["preference"] < n:
        yield Said(by, ranks=[1 if x == row["preference"] else 2 for x in range(n)])


def _pair(row: Mapping, by: str) -> Iterator[Said]:
    """The vote of a preference or of ranks, or the votes that a probability and a weight are a share of."""
    weight = row.get("weight", 1)
    if "probability" in row:
        share = take(row, "probability", (int, float))
        if not 0 <= share <= 1 or weight not in range(1, MOST_VOTES + 1):
            return
        halves = round(2 * share * weight)
        votes = ["a"] * (halves // 2) + ["tie"] * (halves % 2)
        votes += ["b"] * (int(weight) - len(votes))
        yield from (Said(preference=x) for x in votes)
    elif row.get("preference") in ("tie", "both_bad"):
        yield Said(by, row["preference"])
    elif row.get("preference") in (0, 1):
        yield Said(by, "ab"[int(row["preference"])])


def _ratings(row: Mapping, scale: str, by: str) -> Iterator[Said]:
    """The rating of a row, or the ratings that it is the mean of, by its weight; none on other scales."""
    value = next((row[x] for x in SCORES if x in row), None)
    weight, (least, most) = row.get("weight", 1), answers.TOP[scale]
    if not isinstance(value, int | float) or weight not in range(1, MOST_VOTES + 1):
        return
    n, total = int(weight), round(value * weight)
    if abs(total - value * weight) > 1e-3 or not least * n <= total <= most * n:
        return
    for k in range(n):
        yield Said(by if n == 1 else "", rating=total // n + (k < total % n))
