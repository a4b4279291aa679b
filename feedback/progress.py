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
    if purpose == "training":
        trained, there = c.execute(_TRAINING, {"me": annotator}).one()
        return Counts(trained + 1, max(trained + 1, min(there, training or there)))
    judged, open, seen = c.execute(_WORK, {"me": annotator}).one()
    return Counts(judged + 1, max(judged + 1, judged + open - seen))


_item, _slot, _exclusion = schema.item, schema.slot, schema.exclusion
_ME = sa.bindparam("me")
_count = sa.select(sa.func.count())
_open = (_item.c.purpose == "work", _item.c.state == "open")
_done = _count.select_from(_slot).join(_item)
_done = _done.where(_slot.c.annotator == _ME, _slot.c.done.isnot(None))
_training = (_item.c.purpose == "training", _item.c.state == "open")
_TRAINING = sa.select(
    _done.where(_item.c.purpose == "training").scalar_subquery(),
    _count.select_from(_item).where(*_training).scalar_subquery(),
)
_seen = sa.union(  # open items that this person does not get again
    sa.select(_slot.c.item)
    .join(_item)
    .where(_slot.c.annotator == _ME, _slot.c.done.isnot(None), *_open),
    sa.select(_exclusion.c.item).join(_item).where(_exclusion.c.annotator == _ME, *_open),
).subquery()
_WORK = sa.select(
    _done.where(_item.c.purpose != "training").scalar_subquery(),
    _count.select_from(_item).where(*_open).scalar_subquery(),
    _count.select_from(_seen).scalar_subquery(),
)
