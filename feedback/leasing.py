"""Leases: which item a person gets next, and for how long it is theirs."""

import base64
import dataclasses
import hashlib
import hmac
import random
import secrets

import sqlalchemy as sa

from feedback import database, drafts, items, picking, progress, schema, training
from feedback.settings import Settings

DEFAULTS = Settings()


@dataclasses.dataclass(frozen=True)
class Waiting:
    """No item now, and why: done, waiting (others hold the last ones), paused, or training (not passed)."""

    why: str


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


def hash_of(token: str) -> str:
    """SHA-256 of a token, which is all that the database keeps of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def person(c: sa.Connection, annotator: int) -> sa.Row:
    """The row of an annotator, whose requests come one after the other from here on."""
    row = c.execute(_PERSON, {"annotator": annotator}).one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator} is unknown")
    return row


def lease(
    c: sa.Connection, annotator: int, seconds: float, settings: Settings = DEFAULTS
) -> Lease | Waiting:
    """The item that this person holds, or else the next one for `seconds`, or why there is none.

    Training comes first; hidden gold and repeats come among the work, at the shares of `settings`.
    """
    who, state, now = person(c, annotator), database.state(c), database.now(c)
    if state.get("paused"):
        return Waiting("paused")
    if (found := held(c, annotator, None, settings, seconds)) is not None:
        return found
    due = training.due(c, who, settings)
    if due == "failed":
        return Waiting("training")
    new = New.of(state, annotator, now, seconds)
    if isinstance(due, int):
        slot = picking.own(c, due, new.values)
    else:
        slot = picking.hidden(c, state["seed"], new.values, settings)
        slot = slot or picking.work(c, new.values, now)
    if slot is None:
        return Waiting("waiting" if picking.more(c, annotator) else "done")
    return record(c, state, new, slot, settings)


def held(
    c: sa.Connection,
    annotator: int,
    item: int | None,
    settings: Settings = DEFAULTS,
    seconds: float | None = None,
) -> Lease | None:
    """The item that this person holds, of several the one got last, for `seconds` from now on."""
    found = _HELD if item is None else _HELD.where(_lease.c.item == item)
    row = c.execute(found, {"annotator": annotator}).first()
    seconds = settings.lease_seconds if seconds is None else seconds
    if row is None or not _renew(c, row.slot, annotator, seconds):
        return None
    return _show(c, database.state(c), row, seconds, settings)


@dataclasses.dataclass(frozen=True)
class New:
    """A lease about to be given."""

    annotator: int
    nonce: str
    hash: str
    at: float
    seconds: float

    @classmethod
    def of(cls, state: dict, annotator: int, at: float, seconds: float) -> "New":
        """A lease with a token of its own."""
        nonce = secrets.token_hex(16)
        return cls(annotator, nonce, hash_of(_token(state, nonce)), at, seconds)

    @property
    def values(self) -> dict:
        """Columns of the slot that it holds."""
        until = self.at + self.seconds
        return {"annotator": self.annotator, "lease": self.hash, "until": until}


def record(c: sa.Connection, state: dict, new: New, slot: sa.Row, settings: Settings) -> Lease:
    """Notes the lease of a slot; the order of the responses is the person's own, and stays."""
    shown = list(range(len(items.responses(c, slot.item))))
    random.Random(f"{state['seed']}:{new.annotator}:{slot.item}").shuffle(shown)
    row = {
        "hash": new.hash,
        "nonce": new.nonce,
        "slot": slot.id,
        "item": slot.item,
        "annotator": new.annotator,
        "shown": shown,
        "at": new.at,
        "guidelines": state.get("guidelines"),
    }
    c.execute(_NEW, row)
    held = c.execute(_HELD, {"annotator": new.annotator}).first()
    assert held
    return _show(c, state, held, new.seconds, settings)


def _token(state: dict, nonce: str) -> str:
    """The same token for the same lease, so that a reload shows it again; only its hash is stored."""
    mac = hmac.digest(state["secret"].encode(), nonce.encode(), "sha256")
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def _show(c: sa.Connection, state: dict, held: sa.Row, seconds: float, settings: Settings) -> Lease:
    item = items.get(c, held.item)
    texts = [x.text for x in items.responses(c, held.item)]
    counts = progress.counts(c, held.annotator, item.purpose, settings.training_count)
    return Lease(
        token=_token(state, held.nonce),
        seconds=seconds,
        item=held.item,
        kind=item.kind,
        scale=item.scale,
        question=item.question,
        prompt=item.prompt,
        responses=tuple(texts[i] for i in held.shown),
        number=counts.number,
        of=counts.of,
        purpose="training" if item.purpose == "training" else "work",
        draft=drafts.read(c, held.annotator, held.item),
        guidelines_version=held.guidelines,
    )


def extend(c: sa.Connection, annotator: int, token: str, seconds: float) -> float | None:
    """Holds the item for `seconds` from now; None where it is no longer this person's."""
    return seconds if _renew(c, find(c, annotator, token).slot, annotator, seconds) else None


def _renew(c: sa.Connection, slot: int, annotator: int, seconds: float) -> bool:
    until = database.now(c) + seconds
    return bool(c.execute(_RENEW, {**_held(slot, annotator), "until": until}).rowcount)


def give_back(c: sa.Connection, annotator: int, token: str) -> bool:
    """Frees the item for others; False where it was no longer this person's."""
    found = find(c, annotator, token)
    given = free(c, found.slot, annotator)
    if given:
        end(c, found.id, "given_back")
    return given


def find(c: sa.Connection, annotator: int, token: str, lock: bool = False) -> sa.Row:
    """A lease of this person with its item and its slot; a LookupError where there is none.

    With `lock`, item and slot stay as they are until the end of the transaction.
    """
    at = {"hash": hash_of(token), "annotator": annotator}
    row = c.execute(_FIND_LOCKED if lock else _FIND, at).one_or_none()
    if row is None:
        raise LookupError("this lease is unknown: load the page again for a new one")
    return row


def free(c: sa.Connection, slot: int, annotator: int) -> bool:
    """Takes an undone slot from its holder; False where this person is not."""
    return bool(c.execute(_FREE, _held(slot, annotator)).rowcount)


def end(c: sa.Connection, lease: int, how: str | None) -> None:
    """Notes how a lease ended."""
    c.execute(_END, {"at_lease": lease, "ended": how})


def _held(slot: int, annotator: int) -> dict:
    return {"at_slot": slot, "holder": annotator}


_slot, _lease, _item = schema.slot, schema.lease, schema.item
_ANNOTATOR = sa.bindparam("annotator")
_PERSON = (
    sa.select(schema.annotator)
    .where(schema.annotator.c.id == _ANNOTATOR)
    .with_for_update(key_share=True)
)
_HELD = (  # of several, the one given last
    sa.select(
        *(_lease.c.nonce, _lease.c.shown, _lease.c.guidelines, _lease.c.item),
        *(_lease.c.annotator, _slot.c.id.label("slot")),
    )
    .join(_lease, _lease.c.hash == _slot.c.lease)
    .where(_slot.c.annotator == _ANNOTATOR, _slot.c.done.is_(None))
    .order_by(_lease.c.id.desc())
    .limit(1)
)
_RENEW = sa.update(_slot).where(  # sets what its parameters name besides
    _slot.c.id == sa.bindparam("at_slot"),
    _slot.c.annotator == sa.bindparam("holder"),
    _slot.c.done.is_(None),
)
_FREE = _RENEW.values(annotator=None, lease=None, until=None)
_NEW = sa.insert(_lease)
_END = sa.update(_lease).where(_lease.c.id == sa.bindparam("at_lease"))
_FIND = (
    sa.select(
        *(_lease.c.id, _lease.c.slot, _lease.c.item, _lease.c.shown, _lease.c.guidelines),
        *(_lease.c.at, _lease.c.ended, _slot.c.annotator.label("holder"), _slot.c.done),
        *(_item.c.kind, _item.c.scale, _item.c.purpose, _item.c.gold, _item.c.reason),
        _item.c.state,
    )
    .select_from(_lease)
    .join(_slot, _slot.c.id == _lease.c.slot)
    .join(_item, _item.c.id == _lease.c.item)
    .where(_lease.c.hash == sa.bindparam("hash"), _lease.c.annotator == _ANNOTATOR)
)
_FIND_LOCKED = _FIND.with_for_update(of=[_item, _slot], key_share=True)
