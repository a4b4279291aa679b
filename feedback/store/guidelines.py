"""Versions of the guidelines for annotators, all of which are kept, since judgements name theirs."""

import hashlib

import sqlalchemy as sa

from feedback.store import asking, database, events, schema


def publish(c: sa.Connection, text: str) -> str:
    """Makes a text the guidelines from now on; its version, which is a hash of the text."""
    version = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    if at(c, version) is None:
        new = {"version": version, "text": text, "at": database.now(c)}
        c.execute(sa.insert(schema.guidelines), new)
    if current(c)[0] != version:
        asking.set_state(c, "guidelines", version)
        events.note(c, "guidelines", version=version)
    return version


def current(c: sa.Connection) -> tuple[str, str]:
    """The current version and its text; two empty ones where none was published."""
    version = database.state(c).get("guidelines") or ""
    return version, at(c, version) or ""


def at(c: sa.Connection, version: str) -> str | None:
    """The text of a version; None for an unknown one."""
    x = schema.guidelines
    return c.scalar(sa.select(x.c.text).where(x.c.version == version))


def versions(c: sa.Connection) -> list[sa.Row]:
    """All versions with their times (seconds since 1970), the newest first."""
    x = schema.guidelines
    return [*c.execute(sa.select(x.c.version, x.c.at).order_by(x.c.at.desc()))]
