"""Answers that people give: what is allowed, what it means in the item's own order, and when it is right."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

REASONS = ("same_text", "broken", "cannot_tell", "expertise", "upsetting")
"""Reasons to skip an item."""
PREFERENCES = ("a", "b", "tie", "both_bad")
"""What a pair's answer comes to, in the item's order."""
TOP = {"thumbs": (0, 1), "stars": (1, 5)}
"""Least and greatest rating of each scale."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to an item, as a client sends it."""

    lease: str
    choice: dict
    comment: str = ""
    better: str = ""
    differences: bool = False
    visible_ms: int | None = None
    page_version: str | None = None

    @property
    def body(self) -> str:
        """SHA-256 of what was said, without what was measured."""
        said = [self.lease, self.choice, self.comment, self.better, bool(self.differences)]
        return digest(said)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _is_number(x: Any, least: int, most: int) -> bool:
    return type(x) is int and least <= x <= most


def meaning(kind: str, scale: str | None, shown: list[int], choice: Any) -> dict:
    """Columns of a judgement in the item's order, from a choice in screen order.

    A ValueError says which choices the kind of item takes.
    """
    if not isinstance(choice, dict):
        raise ValueError(f"choice is {choice!r:.80}, and must be an object")
    if kind == "pair":
        if choice == {"both_bad": True} and choice["both_bad"] is True:
            return {"preference": "both_bad"}
        if set(choice) == {"degree"} and _is_number(choice["degree"], -2, 2):
            degree = choice["degree"] * (-1 if shown[0] == 0 else 1)
            return {"degree": degree, "preference": sign(degree)}
        expected = '{"degree": -2 to 2} or {"both_bad": true}'
    elif kind == "single":
        least, most = TOP[scale or "thumbs"]
        if set(choice) == {"rating"} and _is_number(choice["rating"], least, most):
            return {"rating": choice["rating"]}
        expected = f'{{"rating": {least} to {most}}}'
    else:
        n = len(shown)
        ranks = choice.get("ranks")
        if set(choice) == {"ranks"} and ranks and is_ranking(ranks, n):
            return {"ranks": [ranks[shown.index(i)] for i in range(n)]}
        expected = f'{{"ranks": {n} numbers from 1 to {n}, of which one is 1}}'
    raise ValueError(f"choice is {json.dumps(choice):.80}, and a {kind} takes {expected}")


def is_ranking(ranks: Any, n: int) -> bool:
    """True for `n` ranks from 1 to n, ties allowed, with a best one."""
    return (
        isinstance(ranks, list | tuple)
        and len(ranks) == n
        and all(_is_number(x, 1, n) for x in ranks)
        and 1 in ranks
    )


def sign(degree: int) -> str:
    """The preference that a degree comes to."""
    return "a" if degree > 0 else "b" if degree < 0 else "tie"


def check_gold(kind: str, scale: str | None, n: int, gold: Any) -> None:
    """Refuses a gold answer that nobody could give: a, b, tie, both_bad; a rating; or a list of ranks."""
    if kind == "pair":
        fine = isinstance(gold, str) and gold in PREFERENCES
        expected = "one of " + ", ".join(PREFERENCES)
    elif kind == "single":
        least, most = TOP[scale or "thumbs"]
        fine, expected = _is_number(gold, least, most), f"a rating from {least} to {most}"
    else:
        fine, expected = is_ranking(gold, n), f"{n} ranks from 1 to {n}, of which one is 1"
    if not fine:
        raise ValueError(f"gold is {gold!r:.80}, and for this {kind} must be {expected}")


def on_screen(gold: Any, shown: list[int]) -> dict | None:
    """A gold answer as a choice in screen order."""
    if gold is None:
        return None
    if isinstance(gold, str):
        if gold == "both_bad":
            return {"both_bad": True}
        first = {"a": -1, "b": 1, "tie": 0}[gold]
        return {"degree": first if shown[0] == 0 else -first}
    return {"rating": gold} if isinstance(gold, int) else {"ranks": [gold[i] for i in shown]}


def is_right(scale: str | None, gold: Any, said: Mapping) -> bool:
    """True where an answer in the item's order agrees with the gold one.

    Stars may be one off, and a ranking is right unless it reverses two responses that gold orders.
    """
    if isinstance(gold, str):
        return said.get("preference") == gold
    if isinstance(gold, int):
        return abs((said["rating"]) - gold) <= (1 if scale == "stars" else 0)
    ranks = said["ranks"]
    return not any(
        a < b and ranks[i] > ranks[j] for i, a in enumerate(gold) for j, b in enumerate(gold)
    )
