"""Judgements: kept once each under the client's key, undone by rows that point at them, never changed."""

import dataclasses
from collections.abc import Mapping

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import answers, database, drafts, holding, outcomes, schema, standing, training
from feedback.store.answers import Answer
from feedback.store.outcomes import Outcome
from feedback.store.undoing import history, last, undo

__all__ = ["Answer", "Outcome", "history", "judge", "last", "skip", "undo"]

DEFAULTS = Settings()


def judge(
    c: sa.Connection,
    annotator: int,
    key: str,
    answer: Answer,
    settings: Settings = DEFAULTS,
    session: int | None = None,
) -> Outcome:
    """Keeps an answer: 201, or 202 as surplus where the item has gone to somebody else.

    The same key with the same answer gives 200 and the first result, with another one 409. A LookupError
    names an unknown lease, a ValueError a choice that the item does not take.
    """
    who = holding.person(c, annotator)
    if (row := outcomes.kept(c, key)) is not None:
        first = outcomes.conflict(row, annotator, answer.body)
        return first or dataclasses.replace(told(c, who, row._mapping, settings), status=200)
    at = holding.find(c, annotator, answer.lease, lock=True)
    said = answers.meaning(at.kind, at.scale, at.shown, answer.choice)
    counts = counted(c, at, annotator)
    now = database.now(c)
    row = {
        "kind": "judge" if counts else "surplus",
        "item": at.item,
        "slot": at.slot,
        "lease": at.id,
        "session": session,
        "shown": at.shown,
        "choice": answer.choice,
        **said,
        "comment": answer.comment,
        "better": answer.better,
        "at": now,
        "differences": answer.differences,
        "server_ms": round(1000 * (now - at.at)),
        "visible_ms": answer.visible_ms,
        "page_version": answer.page_version,
        "guidelines": at.guidelines,
    }
    id = outcomes.keep(c, annotator, key, answer.body, row)
    if answer.comment or answer.better:
        drafts.save(c, annotator, at.item, answer.comment, answer.better)
    if counts:
        c.execute(_DONE, {"at_slot": at.slot, "annotator": annotator, "done": id})
        standing.close(c, at.item)
    else:
        standing.exclude(c, at.item, annotator, "surplus")
    return told(c, who, {**at._mapping, **row}, settings)


def counted(c: sa.Connection, at: sa.Row, annotator: int) -> bool:
    """True where an answer under a lease counts: its slot is this person's, or is still free."""
    if at.done is not None:
        return False
    if at.holder is not None:
        return at.holder == annotator
    return not standing.excluded(c, at.item, annotator)


def told(c: sa.Connection, who: sa.Row, row: Mapping, settings: Settings) -> Outcome:
    """The reply to a judgement that is kept; after a training item with the right answer, and why.

    `row` has the judgement's columns, and purpose, scale, gold and reason (as `told`) of its item.
    """
    kind = row["kind"]
    if kind == "surplus":
        return Outcome(202, kind, outcomes.SURPLUS)
    if row["purpose"] != "training":
        return Outcome(201, kind)
    due = training.due(c, who, settings)
    state = due if isinstance(due, str) else "going"
    if kind != "judge":
        return Outcome(201, kind, training=state)
    return Outcome(
        *(201, kind),
        right=answers.is_right(row["scale"], row["gold"], row),
        gold=answers.on_screen(row["gold"], row["shown"]),
        reason=row["told"],
        training=state,
    )


def skip(
    c: sa.Connection,
    annotator: int,
    key: str,
    lease: str,
    reason: str,
    comment: str = "",
    settings: Settings = DEFAULTS,
    session: int | None = None,
) -> Outcome:
    """Gives an item back for good, with a reason of `answers.REASONS`; after three people it is parked."""
    if reason not in answers.REASONS:
        raise ValueError(
            f"reason is {reason!r:.80}, and must be one of {', '.join(answers.REASONS)}"
        )
    who = holding.person(c, annotator)
    body = answers.digest([lease, reason, comment])
    if (row := outcomes.kept(c, key)) is not None:
        first = outcomes.conflict(row, annotator, body)
        return first or dataclasses.replace(told(c, who, row._mapping, settings), status=200)
    at = holding.find(c, annotator, lease, lock=True)
    judged = at.holder == annotator and at.done is not None
    if judged or standing.skipped(c, at.item, annotator):
        return Outcome(409, "", "This item is answered or skipped already: undo that first.")
    now = database.now(c)
    row = {
        "kind": "skip",
        "item": at.item,
        "slot": at.slot,
        "lease": at.id,
        "session": session,
        "reason": reason,
        "comment": comment,
        "shown": at.shown,
        "at": now,
        "server_ms": round(1000 * (now - at.at)),
        "guidelines": at.guidelines,
    }
    outcomes.keep(c, annotator, key, body, row)
    if comment:
        old = drafts.read(c, annotator, at.item) or {"better": ""}
        drafts.save(c, annotator, at.item, comment, old["better"])
    holding.free(c, at.slot, annotator)
    standing.exclude(c, at.item, annotator, "skip")
    standing.park(c, at.item, settings.park_after)
    return told(c, who, {**at._mapping, **row}, settings)


_DONE = sa.update(schema.slot).where(schema.slot.c.id == sa.bindparam("at_slot"))
