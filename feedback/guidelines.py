"""Guidelines for annotators, in Markdown; each version is kept, since judgements name the one they were made by."""

import hashlib

import sqlalchemy as sa

from feedback import database, schema

CURRENT = "guidelines"
"""Name of the state that holds the current version."""


def publish(c: sa.Connection, text: str) -> str:
    """Makes a text the current guidelines; gives its version, which is a hash of the text."""
    version = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    x, state = schema.guidelines, schema.state
    if c.scalar(sa.select(x.c.version).where(x.c.version == version)) is None:
        c.execute(sa.insert(x).values(version=version, text=text, at=database.now(c)))
    c.execute(sa.delete(state).where(state.c.name == CURRENT))
    c.execute(sa.insert(state).values(name=CURRENT, value=version))
    return version


def current(c: sa.Connection) -> tuple[str, str]:
    """The current version and its text; two empty ones where none was published."""
    version = database.state(c).get(CURRENT) or ""
    return version, at(c, version) or ""


def at(c: sa.Connection, version: str) -> str | None:
    """The text of a version; None for an unknown one."""
    x = schema.guidelines
    return c.scalar(sa.select(x.c.text).where(x.c.version == version))


def versions(c: sa.Connection) -> list[sa.Row]:
    """All versions with their times (seconds since 1970), the newest first."""
    x = schema.guidelines
    return [*c.execute(sa.select(x.c.version, x.c.at).order_by(x.c.at.desc()))]
