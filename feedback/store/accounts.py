"""Tables of people and their access, and of what stands for the whole database.

Tokens are stored as SHA-256 hashes alone.
"""

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, ForeignKey, Integer, String, Table, Text

from feedback.store.columns import Exact, Json, at, metadata, number, one_of, to

state = Table(  # seed, secret, paused, guidelines, owner_password
    "state", metadata, Column("name", String, primary_key=True), Column("value", Text)
)
guidelines = Table(
    "guidelines",
    metadata,
    Column("version", String, primary_key=True),  # SHA-256 of the text
    Column("text", Exact, nullable=False),
    at(),
)
annotator = Table(
    "annotator",
    metadata,
    number(),
    Column("name", String, nullable=False, unique=True),
    Column("simulated", Boolean, nullable=False, server_default=sa.false()),
    Column("training", String),  # none yet, passed or failed
    at("blocked", nullable=True),
    at("finished", nullable=True),
    Column("prolific_id", String, unique=True),
    Column("prolific_study", String),
    Column("prolific_session", String),
    at(),
    one_of("training", "passed", "failed"),
)
invitation = (
    Table(  # a link, whose token a program may send as well; of Prolific's, each use makes a person
        "invitation",
        metadata,
        number(),
        Column("hash", String, nullable=False, unique=True),
        Column("kind", String, nullable=False, server_default="person"),
        Column("label", Exact),
        to("annotator", nullable=True),
        at("expires", nullable=True),
        at("revoked", nullable=True),
        at(),
        one_of("kind", "person", "prolific", "owner"),
    )
)
session = Table(  # a browser's cookie
    "session",
    metadata,
    number(),
    Column("hash", String, nullable=False, unique=True),
    to("annotator", nullable=True, index=True),
    Column("owner", Boolean, nullable=False, server_default=sa.false()),
    to("invitation", nullable=True),
    at("expires", nullable=True),
    at("revoked", nullable=True),
    at(),
)
event = Table(  # what the owner did, and what the server decided
    "event",
    metadata,
    number(),
    at(),
    Column("kind", String, nullable=False),
    to("annotator", nullable=True),
    Column("item", Integer, ForeignKey("item.id")),
    Column("detail", Json),
)
