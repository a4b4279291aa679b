"""Counts of what is done and what is left, for the person who judges and for the owner."""

import dataclasses

import sqlalchemy as sa

from feedback import schema


@dataclasses.dataclass(frozen=True)
class Counts:
    """A person's place: item `number` of `of`."""

    number: int
    of: int


def counts(
    c: sa.Connection, annotator: int, purpose: str = "work", training: int | None = None
) -> Counts:
    """The number of a person's current item, and of how many: judged ones and those still to get.

    Of training items there are `training` at most.
    """
    me = {"me": annotator}
    if purpose == "training":
        number = 1 + (c.scalar(_TRAINED, me) or 0)
        there = c.scalar(_TRAINING) or 0
        return Counts(number, max(number, there if training is None else min(there, training)))
    number = 1 + (c.scalar(_JUDGED, me) or 0)
    left = (c.scalar(_OPEN) or 0) - (c.scalar(_SEEN, me) or 0)
    return Counts(number, max(number, number - 1 + left))


_item, _slot = schema.item, schema.slot
_ME = sa.bindparam("me")
_DONE = (
    sa.select(sa.func.count())
    .select_from(_slot)
    .join(_item)
    .where(_slot.c.annotator == _ME, _slot.c.done.isnot(None))
)
_TRAINED = _DONE.where(_item.c.purpose == "training")
_JUDGED = _DONE.where(_item.c.purpose != "training")
_TRAINING = (
    sa.select(sa.func.count())
    .select_from(_item)
    .where(_item.c.purpose == "training", _item.c.state == "open")
)
_OPEN = (
    sa.select(sa.func.count())
    .select_from(_item)
    .where(_item.c.purpose == "work", _item.c.state == "open")
)
_excluded = sa.exists().where(
    schema.exclusion.c.item == _item.c.id, schema.exclusion.c.annotator == _ME
)
_done_by_me = sa.exists().where(
    _slot.c.item == _item.c.id, _slot.c.annotator == _ME, _slot.c.done.isnot(None)
)
_SEEN = (
    sa.select(sa.func.count())
    .select_from(_item)
    .where(*(_item.c.purpose == "work", _item.c.state == "open"), sa.or_(_excluded, _done_by_me))
)
