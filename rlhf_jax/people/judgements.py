"""Judgements of pairs as arrays, from the raw export of the labelling page.

judged = from_raw(rows)             # rows: the lines of `python -m feedback export --kind raw`
work(judged), repeats(judged)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rlhf_jax.people.aggregation import Votes

SIDES = {"a": 1.0, "tie": 0.5, "b": 0.0, "both_bad": np.nan}
"""What a preference says about the item's first response."""


class Judgements(NamedTuple):
    """N judgements of pairs, that stand, in the order in which they were made."""

    item: Int[np.ndarray, " N"]
    person: Int[np.ndarray, " N"]
    first: Float[np.ndarray, " N"]
    """1 where the item's first response, a, was preferred, 0 where b was, 1/2 for a tie; NaN: both bad."""
    degree: Float[np.ndarray, " N"]
    """From -2 to 2, positive where a is better; NaN where it was not asked."""
    a_shown_first: Float[np.ndarray, " N"]
    """1 where a was shown first, 0 where b was, NaN where the order is not known."""
    words: Int[np.ndarray, " N"]
    """Words of a less those of b."""
    seconds: Float[np.ndarray, " N"]
    """Seconds for which the page was visible, or else the server's; NaN where neither is known."""
    at: Float[np.ndarray, " N"]
    """Seconds since 1970."""
    gold: Float[np.ndarray, " N"]
    """The known answer, as in `first`, of a hidden item; NaN elsewhere, and where both are bad."""
    hidden: Bool[np.ndarray, " N"]
    """True for hidden items, whose answer is known."""
    repeats: Int[np.ndarray, " N"]
    """The item that this one repeats; -1 for none."""
    training: Bool[np.ndarray, " N"]
    items: tuple[str, ...]
    people: tuple[str, ...]

    def where(self, rows: Bool[np.ndarray, " N"]) -> "Judgements":
        """Some of the judgements, under the numbers and names of all."""
        arrays = {name: getattr(self, name)[rows] for name in self._fields[:-2]}
        return self._replace(**arrays)

    @property
    def chosen_first(self) -> Float[np.ndarray, " N"]:
        """1 where the response that was shown first was preferred; 1/2 for a tie, NaN where there is none."""
        chosen = np.where(self.a_shown_first == 1, self.first, 1 - self.first)
        return np.where(np.isnan(self.a_shown_first), np.nan, chosen)

    @property
    def votes(self) -> Votes:
        """The judgements that say which response is better, or that neither is."""
        said = ~np.isnan(self.first)
        return Votes(self.item[said], self.person[said], self.first[said])


def work(judged: Judgements) -> Judgements:
    """The judgements from which one learns: without training, hidden gold and repeats."""
    return judged.where(~judged.training & ~judged.hidden & (judged.repeats < 0))


def from_raw(rows: Iterable[Mapping[str, Any]]) -> Judgements:
    """The judgements of pairs, that stand, of people who are not blocked, in the rows of a raw export.

    Raises ValueError for rows that are no raw export.
    """
    found = []
    for n, row in enumerate(rows, 1):
        if not {"kind", "stands", "item", "annotator"} <= row.keys():
            raise ValueError(
                f"row {n} has no kind, stands, item and annotator: give a raw export "
                "(python -m feedback export --kind raw)"
            )
        counts = row["kind"] == "judge" and row["stands"] and not row.get("blocked")
        if counts and row["item"]["kind"] == "pair":
            found.append(row)
    found.sort(key=lambda row: (row["at"], row["key"]))
    names = {row["item"]["id"] for row in found}
    items = sorted(names | {row["item"]["repeats"] for row in found if row["item"]["repeats"]})
    people = sorted({row["annotator"] for row in found})
    item_at, person_at = _numbers(items), _numbers(people)
    columns = [*zip(*(_columns(row, item_at, person_at) for row in found), strict=True)]
    kinds = (int, int, float, float, float, int, float, float, float, bool, int, bool)
    arrays = [np.array(x, kind) for x, kind in zip(columns or [()] * 12, kinds, strict=True)]
    named = dict(zip(Judgements._fields, arrays, strict=False))
    return Judgements(**named, items=tuple(items), people=tuple(people))


def _numbers(names) -> dict[str, int]:
    return {name: n for n, name in enumerate(names)}


def _columns(row: Mapping[str, Any], items: dict[str, int], people: dict[str, int]) -> tuple:
    item = row["item"]
    a, b = (len(x["text"].split()) for x in item["responses"])
    ms = row["visible_ms"] if row["visible_ms"] is not None else row["server_ms"]
    hidden = item["purpose"] == "gold"
    shown = row["shown"]  # which imported judgements do not know
    return (
        items[item["id"]],
        people[row["annotator"]],
        SIDES[row["preference"]],
        np.nan if row["degree"] is None else row["degree"],
        np.nan if not shown else float(shown[0] == 0),
        a - b,
        np.nan if ms is None else ms / 1000,
        row["at"],
        SIDES[item["gold"]] if hidden else np.nan,
        hidden,
        -1 if not item["repeats"] else items[item["repeats"]],
        item["purpose"] == "training",
    )
