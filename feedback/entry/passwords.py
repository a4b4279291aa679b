"""The owner's password, of which the database keeps a hash."""

import sqlalchemy as sa

from feedback.store import asking, database, events, schema, tokens


def keep(c: sa.Connection, password: str) -> None:
    """Keeps the owner's password, as a hash; a changed one ends the sessions that the old one began."""
    if tokens.opens(password, kept(c)):
        return
    asking.set_state(c, "owner_password", tokens.locked(password))
    events.note(c, "password")
    x = schema.session
    begun = x.c.owner, x.c.invitation.is_(None), x.c.revoked.is_(None)
    c.execute(sa.update(x).where(*begun).values(revoked=database.now(c)))


def kept(c: sa.Connection) -> str:
    """The hash of the owner's password; "" where there is none, which no password opens."""
    return database.state(c).get("owner_password", "")
