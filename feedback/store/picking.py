"""The choice of the slot that a person gets next, and its lease, in one statement each."""

import hashlib
from collections.abc import Sequence

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import items, schema

WINDOW = 64
"""Number of free slots, first in the common order, among which a person's own order chooses."""

_slot, _item, _exclusion = schema.slot, schema.item, schema.exclusion


def work(c: sa.Connection, values: dict, now: float) -> sa.Row | None:
    """Leases a free slot to a person who has not seen its item; None where there is none.

    Everybody works on the same part of the common order, so that items begun get finished; within it
    each person has an order of their own.
    """
    factor = 1 + int(_unit("order", values["annotator"]) * (items.RANKS - 2))
    given = {**values, "me": values["annotator"], "now": now, "factor": factor}
    found = c.execute(_LEASE, given).first()
    if found or c.dialect.name == "sqlite":  # where nobody else writes meanwhile
        return found
    return c.execute(_LEASE_ANY, given).first()  # others are taking all that were near


def own(c: sa.Connection, item: int, values: dict) -> sa.Row | None:
    """Leases a person's own slot of a training or gold item, made when it is due; None where it is done."""
    me = values["annotator"]
    slots = c.execute(sa.select(_slot.c.id).where(_slot.c.item == item, _slot.c.only == me))
    slot = slots.scalar_one_or_none()
    if slot is None:
        rank = items.get(c, item).rank
        row = {"item": item, "number": me, "rank": rank, "only": me}
        slot = c.scalars(sa.insert(_slot).returning(_slot.c.id), row).one()
    return c.execute(_OWN, {**values, "at_slot": slot}).first()


def hidden(c: sa.Connection, seed: str, values: dict, settings: Settings) -> sa.Row | None:
    """Leases a gold item or a repeat, if the person's next item is to be one."""
    if settings.gold_share + settings.repeat_share == 0:
        return None
    me = values["annotator"]
    n = c.scalar(_JUDGED, {"me": me}) or 0
    at = _unit("hidden", seed, me, n)
    if at < settings.gold_share:
        gold = c.scalars(_GOLD, {"me": me}).all()
        return own(c, _one(gold, seed, me, n), values) if gold else None
    if at < settings.gold_share + settings.repeat_share:
        begun = c.scalars(_BEGUN, {"me": me}).first()
        if begun is not None:
            return own(c, begun, values)
        old = c.scalars(_OLD.offset(settings.repeat_after), {"me": me}).all()
        again = set(c.scalars(_REPEATED, {"me": me}))
        old = [x for x in old if x not in again]
        return own(c, items.repeat(c, _one(old, seed, me, n), me), values) if old else None
    return None


def more(c: sa.Connection, annotator: int) -> bool:
    """True where others hold the last slots that this person could still get."""
    return bool(c.scalar(_ANY, {"me": annotator}))


def _unit(*key) -> float:
    """A number from 0 to 1 that depends on the key alone."""
    return int(hashlib.sha256(repr(key).encode()).hexdigest()[:13], 16) / 16**13


def _one(those: Sequence, *key) -> int:
    return those[int(_unit("one", *key) * len(those))]


_ME = sa.bindparam("me")
_mine = _slot.alias("mine")


def _unseen(slot: sa.FromClause) -> tuple:
    """Conditions on a slot whose item is open work that the person neither has nor had."""
    excluded = sa.exists().where(_exclusion.c.item == slot.c.item, _exclusion.c.annotator == _ME)
    mine = sa.exists().where(_mine.c.item == slot.c.item, _mine.c.annotator == _ME)
    # a value, so that databases look at slots in their order, and at their items then
    state = sa.select(_item.c.state).where(_item.c.id == slot.c.item, _item.c.purpose == "work")
    open = state.scalar_subquery() == "open"
    return (slot.c.done.is_(None), ~mine, ~excluded, open)


def _free(slot: sa.FromClause) -> tuple:
    until = sa.or_(slot.c.until.is_(None), slot.c.until < sa.bindparam("now"))
    return (slot.c.done.is_(None), until)


def _lease(window: int | None) -> sa.Update:
    """UPDATE slot ... WHERE id = (the first free slot of the person's order) RETURNING it.

    It waits for no lock, so that two of them can never wait for each other.
    """
    seen = _slot.alias("seen")
    near = (
        sa.select(seen.c.id, seen.c.rank, seen.c.number)
        .where(*_unseen(seen), *_free(seen))
        .order_by(seen.c.rank, seen.c.number)
        .limit(window)
        .subquery("near")
    )
    place = (sa.cast(near.c.rank, sa.BigInteger) * sa.bindparam("factor")) % items.RANKS
    free = _slot.alias("free")
    pick = (
        sa.select(free.c.id)
        .join(near, near.c.id == free.c.id)
        .where(*_free(free))
        .order_by(place, near.c.number)
        .limit(1)
        .with_for_update(of=free, key_share=True, skip_locked=True)
    )
    return (
        sa.update(_slot)
        .where(_slot.c.id == pick.scalar_subquery(), *_free(_slot))
        .returning(_slot.c.id, _slot.c.item)
    )


_LEASE = _lease(WINDOW)
_LEASE_ANY = _lease(None)
_ANY = sa.select(_slot.c.id).where(*_unseen(_slot)).limit(1)
_OWN = (
    sa.update(_slot)
    .where(_slot.c.id == sa.bindparam("at_slot"), _slot.c.done.is_(None))
    .returning(_slot.c.id, _slot.c.item)
)
_JUDGED = (
    sa.select(sa.func.count())
    .select_from(_slot)
    .join(_item)
    .where(_slot.c.annotator == _ME, _slot.c.done.isnot(None), _item.c.purpose != "training")
)
_GOLD = (  # neither answered nor skipped
    sa.select(_item.c.id)
    .where(
        *(_item.c.purpose == "gold", _item.c.state == "open"),
        ~sa.exists().where(
            _slot.c.item == _item.c.id, _slot.c.annotator == _ME, _slot.c.done.isnot(None)
        ),
        ~sa.exists().where(_exclusion.c.item == _item.c.id, _exclusion.c.annotator == _ME),
    )
    .order_by(_item.c.id)
)
_BEGUN = (  # a repeat that was made and not answered
    sa.select(_item.c.id)
    .join(_slot, _slot.c.item == _item.c.id)
    .where(
        *(_slot.c.only == _ME, _slot.c.done.is_(None)),
        *(_item.c.purpose == "repeat", _item.c.state == "open"),
        ~sa.exists().where(_exclusion.c.item == _item.c.id, _exclusion.c.annotator == _ME),
    )
    .order_by(_item.c.id)
    .limit(1)
)
_OLD = (
    sa.select(_slot.c.item)
    .join(_item)
    .where(_slot.c.annotator == _ME, _slot.c.done.isnot(None), _item.c.purpose == "work")
    .order_by(_slot.c.done.desc())
)
_REPEATED = (
    sa.select(_item.c.repeats)
    .join(_slot, _slot.c.item == _item.c.id)
    .where(_slot.c.only == _ME, _item.c.purpose == "repeat")
)
