"""Tables of the database. Migrations make them, with the triggers of tables that only grow.

Times are seconds since 1970 (UTC), by the database's clock. Tokens are stored as SHA-256 hashes alone.
"""

import json

import sqlalchemy as sa
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

MARK = "\x01json "
"""Head of a stored text that a database could not hold as it is."""


class Exact(sa.types.TypeDecorator):
    """Text that comes back byte for byte, NUL and lone surrogates included."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        """The text, or its JSON behind a mark where a database would refuse it."""
        if value is None:
            return None
        awkward = "\x00" in value or any("\ud800" <= x <= "\udfff" for x in value)
        return MARK + json.dumps(value) if awkward or value.startswith(MARK) else value

    def process_result_value(self, value, dialect):
        """The text as it was given."""
        return json.loads(value[len(MARK) :]) if value and value.startswith(MARK) else value


class Json(sa.types.TypeDecorator):
    """A JSON value as ASCII text with the keys in the order in which they were given."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value, dialect):
        """The value as text; NaN is refused."""
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value, dialect):
        """The value."""
        return None if value is None else json.loads(value)


metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)


def _one_of(column: str, *values: str) -> CheckConstraint:
    """A column that takes these values alone."""
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


def _id() -> Column:
    return Column("id", Integer, primary_key=True)


def _at(name: str = "at", nullable: bool = False) -> Column:
    return Column(name, Float(53), nullable=nullable)


def _to(table: str, name: str | None = None, nullable: bool = False, **more) -> Column:
    return Column(name or table, ForeignKey(f"{table}.id"), nullable=nullable, **more)


state = Table(  # seed, secret, paused, guidelines
    "state", metadata, Column("name", String, primary_key=True), Column("value", Text)
)
guidelines = Table(
    "guidelines",
    metadata,
    Column("version", String, primary_key=True),  # SHA-256 of the text
    Column("text", Exact, nullable=False),
    _at(),
)
annotator = Table(
    "annotator",
    metadata,
    _id(),
    Column("name", String, nullable=False, unique=True),
    Column("simulated", Boolean, nullable=False, server_default=sa.false()),
    Column("training", String),  # none yet, passed or failed
    _at("blocked", nullable=True),
    _at("finished", nullable=True),
    Column("prolific_id", String, unique=True),
    Column("prolific_study", String),
    Column("prolific_session", String),
    _at(),
    _one_of("training", "passed", "failed"),
)
invitation = Table(  # a link; without an annotator each use makes a new one
    "invitation",
    metadata,
    _id(),
    Column("hash", String, nullable=False, unique=True),
    Column("kind", String, nullable=False, server_default="person"),
    Column("label", Exact),
    _to("annotator", nullable=True),
    _at("expires", nullable=True),
    _at("revoked", nullable=True),
    _at(),
    _one_of("kind", "person", "prolific"),
)
session = Table(  # a browser's cookie
    "session",
    metadata,
    _id(),
    Column("hash", String, nullable=False, unique=True),
    Column("csrf_hash", String),
    _to("annotator", nullable=True, index=True),
    Column("owner", Boolean, nullable=False, server_default=sa.false()),
    _to("invitation", nullable=True),
    _at("expires", nullable=True),
    _at("seen", nullable=True),
    _at("revoked", nullable=True),
    _at(),
)
bearer = Table(  # a program's token
    "bearer",
    metadata,
    _id(),
    Column("hash", String, nullable=False, unique=True),
    Column("label", Exact),
    _to("annotator", nullable=True, index=True),
    Column("owner", Boolean, nullable=False, server_default=sa.false()),
    _at("expires", nullable=True),
    _at("revoked", nullable=True),
    _at(),
)
event = Table(  # what the owner did, and what the server decided
    "event",
    metadata,
    _id(),
    _at(),
    Column("kind", String, nullable=False),
    _to("annotator", nullable=True),
    Column("item", Integer, ForeignKey("item.id")),
    Column("detail", Json),
)
round_ = Table(
    "round",
    metadata,
    _id(),
    Column("name", String, nullable=False, unique=True),
    Column("detail", Json),
    _at(),
)

item = Table(
    "item",
    metadata,
    _id(),
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
    _to("item", "repeats", nullable=True),
    Column("state", String, nullable=False, server_default="open"),
    _at(),
    _one_of("kind", "pair", "single", "ranking"),
    _one_of("purpose", "work", "training", "gold", "repeat"),
    _one_of("state", "open", "parked", "closed"),
    Index(None, "purpose", "state"),
)
response = Table(
    "response",
    metadata,
    _id(),
    _to("item"),
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
    _id(),
    _to("round"),
    _to("item", index=True),
    Column("strategy", String, nullable=False),
    Column("score", Float(53)),
    Column("probability", Float(53)),
    Column("model_version", String),
    _at(),
)
slot = Table(
    "slot",
    metadata,
    _id(),
    _to("item"),
    Column("number", Integer, nullable=False),
    Column("rank", Integer, nullable=False),  # the item's
    _to("annotator", "only", nullable=True),  # for one person: training, gold, repeats
    _to("annotator", nullable=True),  # who holds it, or judged it
    Column("lease", String, unique=True),  # hash of the token that holds it
    _at("until", nullable=True),
    Column("done", Integer, unique=True),  # the judgement that stands
    UniqueConstraint("item", "number"),
    UniqueConstraint("item", "annotator"),
    Index("slot_free", "rank", sqlite_where=sa.text("done IS NULL"),
          postgresql_where=sa.text("done IS NULL")),
    Index(None, "annotator"),
)  # fmt: skip
lease = Table(  # every lease ever given, so that a late answer finds its item
    "lease",
    metadata,
    _id(),
    Column("hash", String, nullable=False, unique=True),
    Column("nonce", String, nullable=False),
    _to("slot"),
    _to("item"),
    _to("annotator"),
    Column("shown", Json, nullable=False),  # positions of responses in screen order
    Column("guidelines", String),
    _at(),
    Column("ended", String),
    _one_of("ended", "judged", "skipped", "given_back"),
    Index(None, "annotator"),
)
exclusion = Table(  # people who do not get an item again
    "exclusion",
    metadata,
    Column("item", Integer, ForeignKey("item.id"), primary_key=True),
    Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
    Column("why", String, primary_key=True),
    _one_of("why", "skip", "surplus"),
)
draft = Table(
    "draft",
    metadata,
    Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
    Column("item", Integer, ForeignKey("item.id"), primary_key=True),
    Column("comment", Exact, nullable=False),
    Column("better", Exact, nullable=False),
    _at(),
)
judgement = Table(  # append-only: the database refuses UPDATE and DELETE
    "judgement",
    metadata,
    _id(),
    Column("key", String, nullable=False, unique=True),  # made by the client
    Column("body", String, nullable=False),  # SHA-256 of what the client sent
    Column("kind", String, nullable=False),
    _to("item"),
    _to("slot", nullable=True),
    _to("annotator"),
    _to("session", nullable=True),
    _to("lease", nullable=True),
    _to("judgement", "undoes", nullable=True, unique=True),
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
    _at(),
    _one_of("kind", "judge", "undo", "skip", "surplus"),
    Index(None, "annotator", "kind"),
    Index(None, "item"),
)
