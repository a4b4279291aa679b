"""People who come from Prolific, each known by the id that Prolific gave."""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from feedback.entry import access
from feedback.store import schema


def annotator(c: sa.Connection, pid: str, study: str, visit: str) -> int:
    """The annotator of a Prolific id; a new one at the first visit."""
    if (found := known(c, pid)) is not None:
        return found
    more = {"prolific_id": pid, "prolific_study": study, "prolific_session": visit}
    try:
        with c.begin_nested():
            return access.add_annotator(c, f"prolific {pid}", **more)
    except IntegrityError:  # the same person, at the same time, on PostgreSQL
        return known(c, pid) or 0


def known(c: sa.Connection, pid: str) -> int | None:
    """The annotator of a Prolific id; None before the first visit."""
    x = schema.annotator
    return c.scalar(sa.select(x.c.id).where(x.c.prolific_id == pid))


def is_blocked(c: sa.Connection, annotator: int) -> bool:
    """True where an annotator is shut out."""
    x = schema.annotator
    return c.scalar(sa.select(x.c.blocked).where(x.c.id == annotator)) is not None
