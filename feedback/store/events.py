"""The log in the database: what the owner did and the server decided, without texts, names and tokens."""

import sqlalchemy as sa

from feedback.store import database, schema

KINDS = {
    "pause": "Paused the work",
    "resume": "Let the work go on",
    "invite": "Made a link",
    "revoke": "Withdrew a link",
    "block": "Blocked a person",
    "unblock": "Let a person in again",
    "ask": "Asked one more person",
    "open": "Offered an item again",
    "put aside": "Put an item aside",
    "parked": "Skips put an item aside",
    "training": "A training ended",
    "guidelines": "Published guidelines",
    "items": "Put items",
    "import": "Imported judgements",
    "password": "Set the owner's password",
}
"""What each kind of event is called."""


def note(
    c: sa.Connection,
    kind: str,
    annotator: int | None = None,
    item: int | None = None,
    **detail: str | int,
) -> None:
    """Writes an event of one of `KINDS` down; `detail` has numbers and words of the program alone."""
    about = {"annotator": annotator, "item": item, "detail": detail or None}
    c.execute(sa.insert(schema.event), {"at": database.now(c), "kind": kind, **about})


def latest(c: sa.Connection, most: int = 200) -> list[sa.Row]:
    """The last events, the newest first, with the names of their people and the ids of their items."""
    x, people, item = schema.event, schema.annotator, schema.item
    query = sa.select(x, people.c.name, item.c.external)
    query = query.outerjoin(people, people.c.id == x.c.annotator)
    query = query.outerjoin(item, item.c.id == x.c.item)
    return [*c.execute(query.order_by(x.c.id.desc()).limit(most))]
