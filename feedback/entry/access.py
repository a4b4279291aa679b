"""Who may come in: invitations, sessions, the owner's password, and people from Prolific.

An invitation is a token: a browser exchanges it for a session, a script sends it with every request. The
database has hashes of tokens alone. What was revoked, blocked or has expired ends sessions at once.
"""

from typing import NamedTuple

import sqlalchemy as sa

from feedback.store import asking, database, events, schema, tokens

DAYS = {"annotator": 30, "owner": 7}
"""Days that a session lasts."""
DAY = 86_400.0
NAME = 100
"""Characters that a name may have."""


class Session(NamedTuple):
    """Who is asking: a browser's session, or a script with a token (`id` is None, `csrf` is empty).

    `annotator` is 0 for the owner; `began` is in seconds since 1970, and 0.0 for scripts.
    """

    id: int | None
    role: str
    annotator: int
    csrf: str
    blocked: bool
    began: float
    invitation: int | None


class Link(NamedTuple):
    """An invitation that somebody opens, and what speaks against it: "", revoked, expired or blocked."""

    id: int
    role: str
    annotator: int | None
    expires: float | None
    refusal: str


def invite(
    c: sa.Connection,
    name: str = "",
    *,
    kind: str = "person",
    days: float | None = None,
    simulated: bool = False,
    annotator: int | None = None,
) -> str:
    """The token of a new invitation: of kind person, prolific (a study) or owner.

    A person is a new annotator, unless the number of a known one is given. The invitation ends after `days`;
    None: never. Raises ValueError for a name that is taken, or cannot be shown.
    """
    if not name.isprintable() or len(name) > NAME:
        raise ValueError(f"name is {name!r:.120}: use at most {NAME} letters, digits and spaces")
    if kind == "person" and annotator is None:
        annotator = add_annotator(c, name, simulated=simulated)
    now, token = database.now(c), tokens.new()
    new = {"hash": tokens.hashed(token), "kind": kind, "label": name or None, "at": now}
    new |= {"annotator": annotator, "expires": None if days is None else now + DAY * days}
    number = c.scalars(sa.insert(schema.invitation).returning(schema.invitation.c.id), new).one()
    events.note(c, "invite", annotator, link=number, who=kind)
    return token


def named(c: sa.Connection, name: str) -> int:
    """The annotator of a name; a LookupError where there is none."""
    x = schema.annotator
    found = c.scalar(sa.select(x.c.id).where(x.c.name == name))
    if found is None:
        raise LookupError(f"there is no annotator named {name!r}")
    return found


def add_annotator(c: sa.Connection, name: str = "", **values) -> int:
    """The id of a new annotator; without a name it is called by its number.

    Raises ValueError where the name is taken.
    """
    people = schema.annotator
    taken = lambda x: c.scalar(sa.select(people.c.id).where(people.c.name == x)) is not None
    if not name:
        number = 1 + (c.scalar(sa.select(sa.func.max(people.c.id))) or 0)
        while taken(name := f"person {number}"):
            number += 1
    return asking.add_annotator(c, name, **values)


def count(c: sa.Connection) -> int:
    """The number of people who were invited by a link of their own, and not blocked."""
    x, people = schema.invitation, schema.annotator
    query = sa.select(sa.func.count(sa.distinct(x.c.annotator))).join(people)
    return c.scalar(query.where(x.c.revoked.is_(None), people.c.blocked.is_(None))) or 0


def link(c: sa.Connection, token: str, *kinds: str) -> Link | None:
    """The invitation of a token, if it is one of these kinds."""
    x, people = schema.invitation, schema.annotator
    row = c.execute(
        sa.select(x, people.c.blocked)
        .outerjoin(people, x.c.annotator == people.c.id)
        .where(x.c.hash == tokens.hashed(token), x.c.kind.in_(kinds))
    ).first()
    if row is None:
        return None
    ended = row.expires is not None and row.expires <= database.now(c)
    refusal = "revoked" if row.revoked else "expired" if ended else "blocked" if row.blocked else ""
    role = "owner" if row.kind == "owner" else "annotator"
    return Link(row.id, role, row.annotator, row.expires, refusal)


def begin(c: sa.Connection, role: str, opened: Link | None, annotator: int | None = None) -> str:
    """The token of a new session, by an invitation or (the owner alone) by password."""
    now, token = database.now(c), tokens.new()
    until = now + DAY * DAYS[role]
    if role != "owner" and opened and opened.expires is not None:
        until = min(until, opened.expires)
    c.execute(
        sa.insert(schema.session).values(
            hash=tokens.hashed(token),
            owner=role == "owner",
            annotator=annotator or (opened and opened.annotator),
            invitation=opened and opened.id,
            expires=until,
            at=now,
        )
    )
    return token


def session(c: sa.Connection, token: str, role: str) -> Session | None:
    """The session of a browser's token; None where it is none of this role, has expired or was revoked."""
    x, people, link = schema.session, schema.annotator, schema.invitation
    row = c.execute(
        sa.select(x.c.id, x.c.annotator, x.c.invitation, x.c.at, x.c.expires, people.c.blocked)
        .outerjoin(people, x.c.annotator == people.c.id)
        .outerjoin(link, x.c.invitation == link.c.id)
        .where(x.c.hash == tokens.hashed(token), x.c.owner == (role == "owner"))
        .where(x.c.revoked.is_(None), link.c.revoked.is_(None))
    ).first()
    if row is None or row.expires <= database.now(c):
        return None
    blocked = row.blocked is not None
    return Session(
        row.id, role, row.annotator or 0, tokens.csrf(token), blocked, row.at, row.invitation
    )


def script(c: sa.Connection, token: str, role: str) -> Session | None:
    """The holder of a token that a script sends; None where it opens nothing, or not for this role."""
    opened = link(c, token, "owner" if role == "owner" else "person")
    if opened is None or opened.refusal in ("revoked", "expired"):
        return None
    return Session(
        None, role, opened.annotator or 0, "", opened.refusal == "blocked", 0.0, opened.id
    )


def end(c: sa.Connection, session: int) -> None:
    """Ends a session."""
    x = schema.session
    c.execute(sa.update(x).where(x.c.id == session).values(revoked=database.now(c)))


def revoke(c: sa.Connection, invitation: int) -> bool:
    """Ends an invitation with the sessions that came from it; False where there is none of that id."""
    x = schema.invitation
    row = c.execute(sa.select(x.c.annotator, x.c.kind).where(x.c.id == invitation)).first()
    this = sa.update(x).where(x.c.id == invitation, x.c.revoked.is_(None))
    if row and c.execute(this.values(revoked=database.now(c))).rowcount:
        events.note(c, "revoke", row.annotator, link=invitation, who=row.kind)
    return row is not None


def block(c: sa.Connection, annotator: int, blocked: bool = True) -> bool:
    """Shuts an annotator out, or lets them in again; False where there is none of that id."""
    x = schema.annotator
    at = database.now(c) if blocked else None
    known = c.execute(sa.update(x).where(x.c.id == annotator).values(blocked=at)).rowcount == 1
    if known:
        events.note(c, "block" if blocked else "unblock", annotator)
    return known


def has_finished(c: sa.Connection, annotator: int) -> bool:
    """True where an annotator has judged all there was to judge, and may see the completion code."""
    x = schema.annotator
    return c.scalar(sa.select(x.c.finished).where(x.c.id == annotator)) is not None
