"""Tables of items and judgements. Migrations make them, with the triggers of tables that only grow."""

import sqlalchemy as sa
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
)

from feedback.store.accounts import annotator, event, guidelines, invitation, session, state
from feedback.store.columns import Exact, Json, at, metadata, number, one_of, to

__all__ = [
    "annotator",
    "choice",
    "draft",
    "event",
    "exclusion",
    "guidelines",
    "invitation",
    "item",
    "judgement",
    "lease",
    "metadata",
    "response",
    "rounds",
    "session",
    "slot",
    "state",
]

UNDONE, DONE = sa.text("done IS NULL"), sa.text("done IS NOT NULL")

rounds = Table(
    "round",
    metadata,
    number(),
    Column("name", String, nullable=False, unique=True),
    Column("detail", Json),
    at(),
)
item = Table(
    "item",
    metadata,
    number(),
    Column("external", String, nullable=False, unique=True),
    Column("hash", String, nullable=False),  # SHA-256 of what was put
    Column("kind", String, nullable=False),
    Column("scale", String),
    Column("question", Exact),
    Column("prompt", Json, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("purpose", String, nullable=False),
    Column("gold", Json),
    Column("reason", Exact),
    Column("metadata", Json),
    Column("rank", Integer, nullable=False),  # random place in the common order
    to("item", "repeats", nullable=True),
    Column("state", String, nullable=False, server_default="open"),
    at(),
    one_of("kind", "pair", "single", "ranking"),
    one_of("purpose", "work", "training", "gold", "repeat"),
    one_of("state", "open", "parked", "closed"),
    Index(None, "purpose", "state"),
)
response = Table(
    "response",
    metadata,
    number(),
    to("item"),
    Column("position", Integer, nullable=False),
    Column("text", Exact, nullable=False),
    Column("hash", String, nullable=False),
    Column("policy", Exact),
    Column("sampling", Json),
    UniqueConstraint("item", "position"),
)
choice = Table(
    "choice",
    metadata,
    number(),
    to("round"),
    to("item", index=True),
    Column("strategy", String, nullable=False),
    Column("score", Float(53)),
    Column("probability", Float(53)),
    Column("model_version", String),
    at(),
)
slot = Table(
    "slot",
    metadata,
    number(),
    to("item"),
    Column("number", Integer, nullable=False),
    Column("rank", Integer, nullable=False),  # the item's
    to("annotator", "only", nullable=True),  # for one person: training, gold, repeats
    to("annotator", nullable=True),  # who holds it, or judged it
    Column("lease", String, unique=True),  # hash of the token that holds it
    at("until", nullable=True),
    Column("done", Integer),  # the judgement that stands
    UniqueConstraint("item", "number"),
    UniqueConstraint("item", "annotator"),
    Index("slot_free", "rank", "number", sqlite_where=UNDONE, postgresql_where=UNDONE),
    Index("slot_done", "done", unique=True, sqlite_where=DONE, postgresql_where=DONE),
    Index(None, "annotator"),
)  # fmt: skip
lease = Table(  # every lease ever given, so that a late answer finds its item
    "lease",
    metadata,
    number(),
    Column("hash", String, nullable=False, unique=True),
    Column("nonce", String, nullable=False),
    to("slot"),
    to("item"),
    to("annotator"),
    Column("shown", Json, nullable=False),  # positions of responses in screen order
    Column("guidelines", String),
    at(),
    Index(None, "annotator"),
)
exclusion = Table(  # people who do not get an item again
    "exclusion",
    metadata,
    Column("item", Integer, ForeignKey("item.id"), primary_key=True),
    Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
    Column("why", String, primary_key=True),
    one_of("why", "skip", "surplus"),
    Index(None, "annotator"),
)
draft = Table(
    "draft",
    metadata,
    Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
    Column("item", Integer, ForeignKey("item.id"), primary_key=True),
    Column("comment", Exact, nullable=False),
    Column("better", Exact, nullable=False),
    at(),
)
judgement = Table(  # append-only: the database refuses UPDATE and DELETE
    "judgement",
    metadata,
    number(),
    Column("key", String, nullable=False, unique=True),  # made by the client
    Column("body", String, nullable=False),  # SHA-256 of what the client sent
    Column("kind", String, nullable=False),
    to("item"),
    to("slot", nullable=True),
    to("annotator"),
    to("session", nullable=True),
    to("lease", nullable=True),
    to("judgement", "undoes", nullable=True, unique=True),
    Column("shown", Json),  # positions of responses in screen order
    Column("choice", Json),  # as said on the screen
    Column("preference", String),  # a, b, tie, both_bad
    Column("degree", Integer),  # positive: a is better
    Column("rating", Integer),
    Column("ranks", Json),  # of the item's responses; 1 is best
    Column("reason", String),  # of a skip
    Column("comment", Exact, nullable=False, server_default=""),
    Column("better", Exact, nullable=False, server_default=""),
    Column("differences", Boolean, nullable=False, server_default=sa.false()),
    Column("server_ms", Integer),
    Column("visible_ms", Integer),
    Column("guidelines", String),
    Column("page_version", String),
    at(),
    one_of("kind", "judge", "undo", "skip", "surplus"),
    Index(None, "annotator", "kind"),
    Index(None, "item"),
)
