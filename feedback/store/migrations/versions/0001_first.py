"""The first tables: people, items, slots and judgements."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Boolean, Column, Float, ForeignKey, Integer, String, Text
from sqlalchemy import CheckConstraint as Check
from sqlalchemy import UniqueConstraint as Unique

from feedback.store.migrations.append_only import protect

revision = "0001"
down_revision = None
UNDONE, DONE = sa.text("done IS NULL"), sa.text("done IS NOT NULL")
# fmt: off


def upgrade() -> None:
    """Makes all tables, and the triggers that let judgements and shown texts only grow."""
    op.create_table(
        "annotator",
        Column("id", Integer, primary_key=True),
        Column("name", String, nullable=False, unique=True),
        Column("simulated", Boolean, nullable=False, server_default=sa.false()),
        Column("training", String), Column("blocked", Float(53)), Column("finished", Float(53)),
        Column("prolific_id", String, unique=True), Column("prolific_study", String),
        Column("prolific_session", String), Column("at", Float(53), nullable=False),
        Check("training IN ('passed', 'failed')", name="training"),
    )
    op.create_table(
        "guidelines",
        Column("version", String, primary_key=True), Column("text", Text, nullable=False),
        Column("at", Float(53), nullable=False),
    )
    op.create_table(
        "item",
        Column("id", Integer, primary_key=True),
        Column("external", String, nullable=False, unique=True),
        Column("hash", String, nullable=False), Column("kind", String, nullable=False),
        Column("scale", String), Column("question", Text), Column("prompt", Text, nullable=False),
        Column("wanted", Integer, nullable=False), Column("purpose", String, nullable=False),
        Column("gold", Text), Column("reason", Text), Column("metadata", Text),
        Column("rank", Integer, nullable=False),
        Column("repeats", Integer, ForeignKey("item.id")),
        Column("state", String, nullable=False, server_default="open"),
        Column("at", Float(53), nullable=False),
        Check("kind IN ('pair', 'single', 'ranking')", name="kind"),
        Check("purpose IN ('work', 'training', 'gold', 'repeat')", name="purpose"),
        Check("state IN ('open', 'parked', 'closed')", name="state"),
    )
    op.create_index("item_purpose_state_index", "item", ["purpose", "state"])
    op.create_table(
        "round",
        Column("id", Integer, primary_key=True),
        Column("name", String, nullable=False, unique=True), Column("detail", Text),
        Column("at", Float(53), nullable=False),
    )
    op.create_table(
        "state",
        Column("name", String, primary_key=True), Column("value", Text),
    )
    op.create_table(
        "choice",
        Column("id", Integer, primary_key=True),
        Column("round", Integer, ForeignKey("round.id"), nullable=False),
        Column("item", Integer, ForeignKey("item.id"), nullable=False),
        Column("strategy", String, nullable=False), Column("score", Float(53)),
        Column("probability", Float(53)), Column("model_version", String),
        Column("at", Float(53), nullable=False),
    )
    op.create_index("choice_item_index", "choice", ["item"])
    op.create_table(
        "draft",
        Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
        Column("item", Integer, ForeignKey("item.id"), primary_key=True),
        Column("comment", Text, nullable=False), Column("better", Text, nullable=False),
        Column("at", Float(53), nullable=False),
    )
    op.create_table(
        "event",
        Column("id", Integer, primary_key=True), Column("at", Float(53), nullable=False),
        Column("kind", String, nullable=False),
        Column("annotator", Integer, ForeignKey("annotator.id")),
        Column("item", Integer, ForeignKey("item.id")), Column("detail", Text),
    )
    op.create_table(
        "exclusion",
        Column("item", Integer, ForeignKey("item.id"), primary_key=True),
        Column("annotator", Integer, ForeignKey("annotator.id"), primary_key=True),
        Column("why", String, primary_key=True), Check("why IN ('skip', 'surplus')", name="why"),
    )
    op.create_index("exclusion_annotator_index", "exclusion", ["annotator"])
    op.create_table(
        "invitation",
        Column("id", Integer, primary_key=True),
        Column("hash", String, nullable=False, unique=True),
        Column("kind", String, nullable=False, server_default="person"), Column("label", Text),
        Column("annotator", Integer, ForeignKey("annotator.id")), Column("expires", Float(53)),
        Column("revoked", Float(53)), Column("at", Float(53), nullable=False),
        Check("kind IN ('person', 'prolific', 'owner')", name="kind"),
    )
    op.create_table(
        "response",
        Column("id", Integer, primary_key=True),
        Column("item", Integer, ForeignKey("item.id"), nullable=False),
        Column("position", Integer, nullable=False), Column("text", Text, nullable=False),
        Column("hash", String, nullable=False), Column("policy", Text), Column("sampling", Text),
        Unique("item", "position"),
    )
    op.create_table(
        "slot",
        Column("id", Integer, primary_key=True),
        Column("item", Integer, ForeignKey("item.id"), nullable=False),
        Column("number", Integer, nullable=False), Column("rank", Integer, nullable=False),
        Column("only", Integer, ForeignKey("annotator.id")),
        Column("annotator", Integer, ForeignKey("annotator.id")),
        Column("lease", String, unique=True), Column("until", Float(53)), Column("done", Integer),
        Unique("item", "annotator"), Unique("item", "number"),
    )
    op.create_index("slot_annotator_index", "slot", ["annotator"])
    op.create_index("slot_done", "slot", ["done"], unique=True, sqlite_where=DONE, postgresql_where=DONE)
    op.create_index("slot_free", "slot", ["rank", "number"], sqlite_where=UNDONE, postgresql_where=UNDONE)
    op.create_table(
        "lease",
        Column("id", Integer, primary_key=True),
        Column("hash", String, nullable=False, unique=True),
        Column("nonce", String, nullable=False),
        Column("slot", Integer, ForeignKey("slot.id"), nullable=False),
        Column("item", Integer, ForeignKey("item.id"), nullable=False),
        Column("annotator", Integer, ForeignKey("annotator.id"), nullable=False),
        Column("shown", Text, nullable=False), Column("guidelines", String),
        Column("at", Float(53), nullable=False),
    )
    op.create_index("lease_annotator_index", "lease", ["annotator"])
    op.create_table(
        "session",
        Column("id", Integer, primary_key=True),
        Column("hash", String, nullable=False, unique=True),
        Column("annotator", Integer, ForeignKey("annotator.id")),
        Column("owner", Boolean, nullable=False, server_default=sa.false()),
        Column("invitation", Integer, ForeignKey("invitation.id")), Column("expires", Float(53)),
        Column("revoked", Float(53)), Column("at", Float(53), nullable=False),
    )
    op.create_index("session_annotator_index", "session", ["annotator"])
    op.create_table(
        "judgement",
        Column("id", Integer, primary_key=True),
        Column("key", String, nullable=False, unique=True),
        Column("body", String, nullable=False), Column("kind", String, nullable=False),
        Column("item", Integer, ForeignKey("item.id"), nullable=False),
        Column("slot", Integer, ForeignKey("slot.id")),
        Column("annotator", Integer, ForeignKey("annotator.id"), nullable=False),
        Column("session", Integer, ForeignKey("session.id")),
        Column("lease", Integer, ForeignKey("lease.id")),
        Column("undoes", Integer, ForeignKey("judgement.id"), unique=True), Column("shown", Text),
        Column("choice", Text), Column("preference", String), Column("degree", Integer),
        Column("rating", Integer), Column("ranks", Text), Column("reason", String),
        Column("comment", Text, nullable=False, server_default=""),
        Column("better", Text, nullable=False, server_default=""),
        Column("differences", Boolean, nullable=False, server_default=sa.false()),
        Column("server_ms", Integer), Column("visible_ms", Integer), Column("guidelines", String),
        Column("page_version", String), Column("at", Float(53), nullable=False),
        Check("kind IN ('judge', 'undo', 'skip', 'surplus')", name="kind"),
    )
    op.create_index("judgement_annotator_kind_index", "judgement", ["annotator", "kind"])
    op.create_index("judgement_item_index", "judgement", ["item"])
    protect("judgement")
    protect("response")
    protect("guidelines")
    protect("item", ("external", "hash", "kind", "scale", "question", "prompt", "purpose", "gold"))
