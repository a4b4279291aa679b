"""Drafts: what a person has typed about an item and not sent, which nothing destroys."""

import sqlalchemy as sa

from feedback.store import database, schema


def save(c: sa.Connection, annotator: int, item: int, comment: str, better: str) -> None:
    """Keeps a comment and a better response, in the place of the draft that was kept."""
    keys = {"annotator": annotator, "item": item}
    values = {"comment": comment, "better": better, "at": database.now(c)}
    database.upsert(c, schema.draft, keys, values)


def read(c: sa.Connection, annotator: int, item: int) -> dict | None:
    """The draft about an item: {"comment", "better"}; None where nothing was typed."""
    row = c.execute(_READ, {"by": annotator, "of": item}).one_or_none()
    return dict(row._mapping) if row else None


_draft = schema.draft
_READ = sa.select(_draft.c.comment, _draft.c.better).where(
    _draft.c.annotator == sa.bindparam("by"), _draft.c.item == sa.bindparam("of")
)
