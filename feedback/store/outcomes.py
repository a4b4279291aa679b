"""The result of what a person sent, and the rows of judgements that hold it."""

import dataclasses
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from feedback.store import schema

if TYPE_CHECKING:
    from feedback.store.leasing import Lease

SURPLUS = (
    "This answer came after the item had got its answer or had gone to somebody else. "
    "It is kept, beside the one that counts."
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a judgement, a skip or an undo."""

    status: int
    """201 new, 200 the same again, 202 kept as surplus, 409 refused."""
    kind: str
    """One of judge, surplus, skip and undo; empty where refused."""
    why: str = ""
    """A sentence for the person, for 202 and 409."""
    right: bool | None = None
    """Right or not; after a training item alone."""
    gold: Any = None
    """The right answer of a training item, in screen order and in the form of a choice."""
    reason: str | None = None
    """The reason that the owner gave for the right answer of a training item."""
    training: str | None = None
    """State of the training after a training item: going, passed or failed."""
    lease: "Lease | None" = None
    """After an undo: the item again; None where it has gone to somebody else."""


def kept(c: sa.Connection, key: str) -> sa.Row | None:
    """The judgement that has this key, with its item."""
    return c.execute(_KEPT, {"of_key": key}).one_or_none()


def conflict(row: sa.Row, annotator: int, body: str) -> Outcome | None:
    """A refusal, where the key of `row` comes from another person or with other contents."""
    if row.annotator == annotator and row.body == body:
        return None
    return Outcome(409, "", "This key was used for another answer: send this one under a new key.")


def keep(c: sa.Connection, annotator: int, key: str, body: str, row: dict) -> int:
    """Appends a judgement; its number."""
    values = {"key": key, "body": body, "annotator": annotator, **row}
    return c.scalars(_KEEP, values).one()


_judgement, _item = schema.judgement, schema.item
_KEPT = (
    sa.select(
        _judgement, *(_item.c.purpose, _item.c.scale, _item.c.gold, _item.c.reason.label("told"))
    )
    .join(_item, _item.c.id == _judgement.c.item)
    .where(_judgement.c.key == sa.bindparam("of_key"))
)
_KEEP = sa.insert(_judgement).returning(_judgement.c.id)
