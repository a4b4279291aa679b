"""Leases: which item a person gets next, and for how long it is theirs."""

import dataclasses
from collections.abc import Mapping

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import database, drafts, holding, items, picking, progress, schema, training

DEFAULTS = Settings()


@dataclasses.dataclass(frozen=True)
class Waiting:
    """No item now, and why."""

    why: str
    """One of done, waiting (others hold the last items), paused and training (not passed)."""
    judged: int = 0
    """Number of the person's judgements."""
    of: int = 0
    """Number of judgements that the person has given and could still give."""


@dataclasses.dataclass(frozen=True)
class Lease:
    """An item that one person may judge until `seconds` from now."""

    token: str
    seconds: float
    item: int
    """Internal number of the item, which stays on the server."""
    kind: str
    scale: str | None
    question: str | None
    prompt: str | list[dict]
    responses: tuple[str, ...]
    """Texts in screen order."""
    number: int
    of: int
    purpose: str
    draft: dict | None
    guidelines_version: str | None

    def as_json(self) -> dict:
        """The lease as the person may see it: no ids, no policies, no gold."""
        shown = ("kind", "scale", "question", "prompt")
        return {
            "lease": self.token,
            "seconds": self.seconds,
            "item": {name: getattr(self, name) for name in shown}
            | {"responses": [{"text": x} for x in self.responses]},
            "number": self.number,
            "of": self.of,
            "purpose": self.purpose,
            "draft": self.draft,
            "guidelines_version": self.guidelines_version,
        }


def lease(
    c: sa.Connection, annotator: int, seconds: float, settings: Settings = DEFAULTS
) -> Lease | Waiting:
    """The item that this person holds, or else the next one for `seconds`, or why there is none.

    Training comes first; hidden gold and repeats come among the work, at the shares of `settings`.
    """
    who, state, now = holding.person(c, annotator), database.state(c), database.now(c)
    if state.get("paused"):
        return _waiting(c, who, "paused")
    row = holding.held(c, annotator)
    if row is not None and holding.renew(c, row.slot, annotator, now + seconds):
        return _show(c, state, row._mapping, seconds, settings)
    due = training.due(c, who, settings)
    if due == "failed":
        return _waiting(c, who, "training")
    new = holding.New.of(state, annotator, now, seconds)
    if isinstance(due, int):
        slot = picking.own(c, due, new.values)
    else:
        slot = picking.hidden(c, state["seed"], new.values, settings)
        slot = slot or picking.work(c, new.values, now)
    if slot is None:
        return _waiting(c, who, "waiting" if picking.more(c, annotator) else "done")
    if who.finished is not None:
        c.execute(_FINISHED, {"by": annotator, "finished": None})
    return give(c, state, new, slot, settings)


def give(
    c: sa.Connection, state: dict, new: holding.New, slot: sa.Row, settings: Settings
) -> Lease:
    """The lease of a slot that has just got its holder."""
    texts = _texts(c, slot.item)
    row = holding.record(c, state, new, slot, len(texts))
    return _show(c, state, row, new.seconds, settings, texts)


def held(c: sa.Connection, annotator: int, item: int, settings: Settings) -> Lease | None:
    """The lease of one item that this person holds, for as long again."""
    seconds = settings.lease_seconds
    row = holding.held(c, annotator, item)
    if row is None or not holding.renew(c, row.slot, annotator, database.now(c) + seconds):
        return None
    return _show(c, database.state(c), row._mapping, seconds, settings)


def shown(
    c: sa.Connection, annotator: int, token: str, settings: Settings = DEFAULTS
) -> Lease | None:
    """The item as a lease of this person showed it, judged or expired too; None for others' tokens."""
    try:
        row = holding.find(c, annotator, token)
    except LookupError:
        return None
    return _show(c, database.state(c), row._mapping, 0.0, settings)


def extend(c: sa.Connection, annotator: int, token: str, seconds: float) -> float | None:
    """Holds the item for `seconds` from now; None where it is no longer this person's."""
    slot = holding.find(c, annotator, token).slot
    return seconds if holding.renew(c, slot, annotator, database.now(c) + seconds) else None


def _waiting(c: sa.Connection, who: sa.Row, why: str) -> Waiting:
    """The reason why there is no item; who has judged and is done has finished."""
    counts = progress.counts(c, who.id)
    judged = counts.number - 1
    if why == "done" and who.finished is None and judged:
        c.execute(_FINISHED, {"by": who.id, "finished": database.now(c)})
    return Waiting(why, judged, max(judged, counts.of))


def _texts(c: sa.Connection, item: int) -> list[str]:
    return [x.text for x in items.responses(c, item)]


def _show(
    c: sa.Connection,
    state: dict,
    row: Mapping,
    seconds: float,
    settings: Settings,
    texts: list[str] | None = None,
) -> Lease:
    annotator, item = row["annotator"], items.get(c, row["item"])
    texts = texts or _texts(c, item.id)
    counts = progress.counts(c, annotator, item.purpose, settings.training_count)
    return Lease(
        token=holding.token_of(state, row["nonce"]),
        seconds=seconds,
        item=item.id,
        kind=item.kind,
        scale=item.scale,
        question=item.question,
        prompt=item.prompt,
        responses=tuple(texts[i] for i in row["shown"]),
        number=counts.number,
        of=counts.of,
        purpose="training" if item.purpose == "training" else "work",
        draft=drafts.read(c, annotator, item.id),
        guidelines_version=row["guidelines"],
    )


_FINISHED = sa.update(schema.annotator).where(schema.annotator.c.id == sa.bindparam("by"))
