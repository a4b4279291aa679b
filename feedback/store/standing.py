"""States of items: closed when all slots are done, parked after skips; and who does not get one again."""

import sqlalchemy as sa

from feedback.store import events, schema


def exclude(c: sa.Connection, item: int, annotator: int, why: str) -> None:
    """Offers an item to a person no more, because of a skip or a surplus answer."""
    if not _is_excluded(c, item, annotator, why):
        c.execute(_EXCLUDE, {"item": item, "annotator": annotator, "why": why})


def _is_excluded(c: sa.Connection, item: int, annotator: int, why: str) -> bool:
    at = {"at_item": item, "at_annotator": annotator, "at_why": why}
    return c.scalar(_EXCLUDED, at) is not None


def include(c: sa.Connection, item: int, annotator: int, why: str) -> None:
    """Lifts the exclusion for one reason, unless another judgement that stands gives it too."""
    c.execute(_INCLUDE, {"at_item": item, "at_annotator": annotator, "at_why": why})


def excluded(c: sa.Connection, item: int, annotator: int) -> bool:
    """True where a person does not get the item again, or has it already."""
    at = {"at_item": item, "at_annotator": annotator}
    return c.scalar(_BARRED, at) is not None or c.scalar(_HAS, at) is not None


def skipped(c: sa.Connection, item: int, annotator: int) -> bool:
    """True where a person has skipped the item."""
    return _is_excluded(c, item, annotator, "skip")


def close(c: sa.Connection, item: int) -> None:
    """Closes an open item whose slots are all done; training and gold stay open for the next person."""
    c.execute(_CLOSE, {"at_item": item})


def park(c: sa.Connection, item: int, after: int) -> None:
    """Puts an item aside for the owner after the skips of `after` people."""
    many = (c.scalar(_SKIPS, {"at_item": item}) or 0) >= after
    if many and c.execute(_PARK, {"at_item": item}).rowcount:
        events.note(c, "parked", item=item)


def reopen(c: sa.Connection, item: int, kind: str, after: int) -> None:
    """Opens an item after the undo of a judgement of a kind: a closed one, or one that skips had parked."""
    if kind == "skip" and c.scalar(_SKIPS, {"at_item": item}) == after - 1:
        c.execute(_UNPARK, {"at_item": item})
    c.execute(_OPEN, {"at_item": item})
    close(c, item)


_item, _slot, _exclusion, _judgement = schema.item, schema.slot, schema.exclusion, schema.judgement
_ITEM, _BY, _WHY = (sa.bindparam(f"at_{x}") for x in ("item", "annotator", "why"))
_WHO = (_exclusion.c.item == _ITEM, _exclusion.c.annotator == _BY)
_BARRED = sa.select(_exclusion.c.item).where(*_WHO).limit(1)
_EXCLUDED = _BARRED.where(_exclusion.c.why == _WHY)
_HAS = sa.select(_slot.c.id).where(_slot.c.item == _ITEM, _slot.c.annotator == _BY).limit(1)
_EXCLUDE = sa.insert(_exclusion)
_undo = _judgement.alias("undo")
_INCLUDE = sa.delete(_exclusion).where(
    *_WHO,
    _exclusion.c.why == _WHY,
    ~sa.exists().where(
        *(_judgement.c.item == _ITEM, _judgement.c.annotator == _BY, _judgement.c.kind == _WHY),
        ~sa.exists().where(_undo.c.undoes == _judgement.c.id).correlate(_judgement),
    ),
)
_SKIPS = (
    sa.select(sa.func.count())
    .select_from(_exclusion)
    .where(_exclusion.c.item == _ITEM, _exclusion.c.why == "skip")
)
_undone = sa.exists().where(_slot.c.item == _ITEM, _slot.c.done.is_(None))
_at = sa.update(_item).where(_item.c.id == _ITEM)
_CLOSE = _at.where(
    _item.c.state == "open", _item.c.purpose.in_(("work", "repeat")), ~_undone
).values(state="closed")
_OPEN = _at.where(_item.c.state == "closed", _undone).values(state="open")
_PARK = _at.where(_item.c.state == "open").values(state="parked")
_UNPARK = _at.where(_item.c.state == "parked").values(state="open")
