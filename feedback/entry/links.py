"""Links of invitations: how they are written, and which invitation one is."""

import re

import sqlalchemy as sa

from feedback.store import schema, tokens

NAMES = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")
"""What Prolific adds to a link."""


def link(url: str, kind: str, token: str) -> str:
    """The link of an invitation; one for Prolific has places that Prolific fills in."""
    if kind != "prolific":
        return f"{url}/i/{token}"
    return f"{url}/p/{token}?" + "&".join(f"{x}={{{{%{x}%}}}}" for x in NAMES)


def find(c: sa.Connection, who: str) -> list[int]:
    """Invitations that a link (or its token) names, or a person, or a label."""
    x, people = schema.invitation, schema.annotator
    token = re.search(r"([\w-]{43})(?:\?|/?$)", who)
    named = sa.or_(people.c.name == who, x.c.label == who)
    if token:
        named = sa.or_(named, x.c.hash == tokens.hashed(token[1]))
    query = sa.select(x.c.id).outerjoin(people, people.c.id == x.c.annotator)
    return [*c.scalars(query.where(named, x.c.revoked.is_(None)).order_by(x.c.id))]
