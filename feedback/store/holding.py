"""Slots in people's hands: a lease gives a slot a holder, and its token finds it again."""

import base64
import dataclasses
import hmac
import random
import secrets
from collections.abc import Mapping

import sqlalchemy as sa

from feedback.store import schema, tokens


def token_of(state: dict, nonce: str) -> str:
    """The token of a lease, the same whenever it is shown."""
    mac = hmac.digest(state["secret"].encode(), nonce.encode(), "sha256")
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")


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
        """A lease with a token of its own, for `seconds` from the moment `at`."""
        nonce = secrets.token_hex(16)
        return cls(annotator, nonce, tokens.hashed(token_of(state, nonce)), at, seconds)

    @property
    def values(self) -> dict:
        """Columns of the slot that it holds."""
        until = self.at + self.seconds
        return {"annotator": self.annotator, "lease": self.hash, "until": until}


def person(c: sa.Connection, annotator: int) -> sa.Row:
    """The row of an annotator, whose requests come one after the other from here on."""
    row = c.execute(_PERSON, {"annotator": annotator}).one_or_none()
    if row is None:
        raise LookupError(f"annotator {annotator} is unknown")
    return row


def record(c: sa.Connection, state: dict, new: New, slot: sa.Row, n: int) -> Mapping:
    """Notes the lease of a slot of an item with `n` responses, whose order is the person's own and stays."""
    shown = list(range(n))
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
    return row


def held(c: sa.Connection, annotator: int, item: int | None = None) -> sa.Row | None:
    """The lease of the slot that a person holds; of several the last one, or that of one item."""
    found = _HELD if item is None else _HELD.where(_lease.c.item == item)
    return c.execute(found, {"annotator": annotator}).first()


def find(c: sa.Connection, annotator: int, token: str, lock: bool = False) -> sa.Row:
    """A lease of this person with its item and its slot; a LookupError where there is none.

    With `lock`, item and slot stay as they are until the end of the transaction.
    """
    at = {"hash": tokens.hashed(token), "annotator": annotator}
    row = c.execute(_FIND_LOCKED if lock else _FIND, at).one_or_none()
    if row is None:
        raise LookupError("this lease is unknown: load the page again for a new one")
    return row


def renew(c: sa.Connection, slot: int, annotator: int, until: float) -> bool:
    """Holds a slot until a later moment; False where it is done, or no longer this person's."""
    at = {"at_slot": slot, "holder": annotator}
    return bool(c.execute(_RENEW, {**at, "until": until}).rowcount)


def free(c: sa.Connection, slot: int, annotator: int) -> bool:
    """Takes an undone slot from its holder; False where this person is not."""
    return bool(c.execute(_FREE, {"at_slot": slot, "holder": annotator}).rowcount)


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
_FIND = (
    sa.select(
        *(_lease.c.id, _lease.c.slot, _lease.c.item, _lease.c.shown, _lease.c.guidelines),
        *(_lease.c.annotator, _lease.c.nonce),
        *(_lease.c.at, _slot.c.annotator.label("holder"), _slot.c.done),
        *(_item.c.kind, _item.c.scale, _item.c.purpose, _item.c.gold, _item.c.state),
        _item.c.reason.label("told"),
    )
    .select_from(_lease)
    .join(_slot, _slot.c.id == _lease.c.slot)
    .join(_item, _item.c.id == _lease.c.item)
    .where(_lease.c.hash == sa.bindparam("hash"), _lease.c.annotator == _ANNOTATOR)
)
_FIND_LOCKED = _FIND.with_for_update(of=[_item, _slot], key_share=True)
