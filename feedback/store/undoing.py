"""Undo: a row that points at a judgement, after which the person has the item again."""

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import answers, database, holding, leasing, outcomes, schema, standing
from feedback.store.leasing import Lease
from feedback.store.outcomes import Outcome

DEFAULTS = Settings()


def undo(
    c: sa.Connection,
    annotator: int,
    key: str,
    of_key: str,
    settings: Settings = DEFAULTS,
    session: int | None = None,
) -> Outcome:
    """Undoes this person's judgement, skip or surplus answer `of_key`: 201, with the item's new lease.

    The lease is None where the slot has gone to somebody else. 409 refuses what is undone already, training
    answers (the right answer was shown), and, where `session` is given, judgements of other sessions. A
    LookupError names a key that this person has not used.
    """
    holding.person(c, annotator)
    body = answers.digest(["undo", of_key])
    if (row := outcomes.kept(c, key)) is not None:
        first = outcomes.conflict(row, annotator, body)
        return first or Outcome(200, "undo", lease=leasing.held(c, annotator, row.item, settings))
    old = outcomes.kept(c, of_key)
    if old is None or old.annotator != annotator:
        raise LookupError("there is no judgement of yours with this key")
    if why := _refused(c, old, session):
        return Outcome(409, "", why)
    c.execute(_LOCK, {"at_item": old.item})
    now = database.now(c)
    row = {"kind": "undo", "item": old.item, "slot": old.slot, "lease": old.lease, "undoes": old.id}
    outcomes.keep(c, annotator, key, body, {**row, "session": session, "at": now})
    if old.kind == "judge":
        c.execute(_UNDONE, {"of": old.id})
    else:
        standing.include(c, old.item, annotator, old.kind)
    standing.reopen(c, old.item, old.kind, settings.park_after)
    return Outcome(201, "undo", lease=_take(c, annotator, old, now, settings))


def history(
    c: sa.Connection, annotator: int, session: int | None = None, most: int = 50, start: int = 0
) -> list[sa.Row]:
    """A person's judgements that are not undone, the last one first, of one session or of all.

    There are `most` of them at most, without the first `start`. Each has key, kind (judge, skip, surplus),
    choice as said on the screen, reason (of a skip), prompt and scale of its item, and `fixed`: True for
    training answers, which stand.
    """
    return list(c.execute(_of(session).limit(most).offset(start), {"me": annotator}))


def last(c: sa.Connection, annotator: int, session: int | None = None) -> str:
    """The key of a person's last judgement that can be undone; empty where there is none."""
    return c.scalar(_of(session).where(~_FIXED).limit(1), {"me": annotator}) or ""


def _of(session: int | None) -> sa.Select:
    return _HISTORY if session is None else _HISTORY.where(_judgement.c.session == session)


def _refused(c: sa.Connection, old: sa.Row, session: int | None) -> str:
    """The reason why a judgement cannot be undone; empty where it can."""
    if old.kind == "undo":
        return "An undo cannot be undone: judge the item again."
    if c.scalar(_UNDOER, {"of": old.id}) is not None:
        return "This judgement is undone already."
    if old.purpose == "training" and old.kind == "judge":
        return "The right answer of a training item has been shown, so its answer stands."
    if session is not None and old.session != session:
        return "This judgement is of an earlier session, and stands."
    return ""


def _take(
    c: sa.Connection, annotator: int, old: sa.Row, now: float, settings: Settings
) -> Lease | None:
    """Leases the old slot to the person again, or another free one of the item."""
    if old.kind != "judge" and standing.excluded(c, old.item, annotator):
        return leasing.held(c, annotator, old.item, settings)
    state = database.state(c)
    new = holding.New.of(state, annotator, now, settings.lease_seconds)
    at = {"me": annotator, "now": now, "at_item": old.item, "old": old.slot, **new.values}
    slot = c.execute(_TAKE, at).first()
    return None if slot is None else leasing.give(c, state, new, slot, settings)


_judgement, _slot, _item = schema.judgement, schema.slot, schema.item
_ME = sa.bindparam("me")
_undo = _judgement.alias("undo")
_OF = sa.bindparam("of")
_LOCK = (
    sa.select(_item.c.id)
    .where(_item.c.id == sa.bindparam("at_item"))
    .with_for_update(key_share=True)
)
_UNDOER = sa.select(_judgement.c.id).where(_judgement.c.undoes == _OF)
_UNDONE = sa.update(_slot).where(_slot.c.done == _OF).values(done=None)
_FIXED = sa.and_(_item.c.purpose == "training", _judgement.c.kind == "judge")
_HISTORY = (
    sa.select(
        *(_judgement.c.key, _judgement.c.kind, _judgement.c.choice, _judgement.c.reason),
        *(_item.c.prompt, _item.c.scale, _FIXED.label("fixed")),
    )
    .join(_item, _item.c.id == _judgement.c.item)
    .where(
        *(_judgement.c.annotator == _ME, _judgement.c.kind != "undo"),
        ~sa.exists().where(_undo.c.undoes == _judgement.c.id),
    )
    .order_by(_judgement.c.id.desc())
)
_pick = _slot.alias("pick")
_TAKE = (
    sa.update(_slot)
    .where(
        _slot.c.id
        == sa.select(_pick.c.id)
        .where(
            *(_pick.c.item == sa.bindparam("at_item"), _pick.c.done.is_(None)),
            sa.or_(_pick.c.only.is_(None), _pick.c.only == _ME),
            sa.or_(
                *(_pick.c.annotator == _ME, _pick.c.until.is_(None)),
                _pick.c.until < sa.bindparam("now"),
            ),
        )
        .order_by(
            sa.case((_pick.c.annotator == _ME, 0), (_pick.c.id == sa.bindparam("old"), 1), else_=2),
            _pick.c.number,
        )
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )
    .returning(_slot.c.id, _slot.c.item)
)
