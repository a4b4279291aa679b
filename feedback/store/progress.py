"""Counts of what is done and what is left, for the person who judges and for the owner."""

import dataclasses

import sqlalchemy as sa

from feedback.store import schema


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


def _of(table: sa.Table, column: sa.Column) -> sa.ColumnElement:
    """A column of a row's item, as a value, so that databases look at the rows first."""
    return sa.select(column).where(_item.c.id == table.c.item).scalar_subquery()


def _items(purpose: str) -> sa.ColumnElement:
    open = (_item.c.purpose == purpose, _item.c.state == "open")
    return _count.select_from(_item).where(*open).scalar_subquery()


_mine = (_slot.c.annotator == _ME, _slot.c.done.isnot(None))
_done = _count.select_from(_slot).where(*_mine)
_TRAINING = sa.select(
    _done.where(_of(_slot, _item.c.purpose) == "training").scalar_subquery(),
    _items("training"),
)
_seen = sa.union(  # open items that this person does not get again
    *(
        sa.select(table.c.item).where(
            *which,
            _of(table, _item.c.state) == "open",
            _of(table, _item.c.purpose) == "work",
        )
        for table, which in ((_slot, _mine), (_exclusion, (_exclusion.c.annotator == _ME,)))
    )
).subquery()
_WORK = sa.select(
    _done.where(_of(_slot, _item.c.purpose) != "training").scalar_subquery(),
    _items("work"),
    _count.select_from(_seen).scalar_subquery(),
)
