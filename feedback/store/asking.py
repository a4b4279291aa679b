"""The owner's say over items and people: pause, ask again, put items aside and take them up."""

import sqlalchemy as sa

from feedback.store import database, events, schema, standing


def add_annotator(c: sa.Connection, name: str, **columns) -> int:
    """Puts a new person; the number. A ValueError names a name that is taken."""
    taken = sa.select(schema.annotator.c.id).where(schema.annotator.c.name == name)
    if c.scalar(taken) is not None:
        raise ValueError(f"there is an annotator {name!r} already: take another name")
    new = sa.insert(schema.annotator).returning(schema.annotator.c.id)
    return c.scalars(new, {"name": name, "at": database.now(c), **columns}).one()


def pause(c: sa.Connection, paused: bool) -> None:
    """Stops or resumes the giving of items; answers are always taken."""
    if bool(database.state(c).get("paused")) != paused:
        set_state(c, "paused", "yes" if paused else None)
        events.note(c, "pause" if paused else "resume")


def set_state(c: sa.Connection, name: str, value: str | None) -> None:
    """Sets a value that stands in the database; None removes it."""
    if value is None:
        c.execute(sa.delete(schema.state).where(schema.state.c.name == name))
    else:
        database.upsert(c, schema.state, {"name": name}, {"value": value})


def ask_again(c: sa.Connection, item: int, more: int = 1) -> int:
    """Wants `more` judgements of an item, and offers it again if it was parked; the number wanted now."""
    if more < 1:
        raise ValueError(f"more is {more}, and must be 1 or more")
    table, slot = schema.item, schema.slot
    row = c.execute(sa.select(table).where(table.c.id == item).with_for_update()).one_or_none()
    if row is None or row.purpose != "work":
        raise LookupError(f"item {item} is no item of work")
    wanted = row.wanted + more
    numbers = range(row.wanted + 1, wanted + 1)
    c.execute(sa.insert(slot), [{"item": item, "number": n, "rank": row.rank} for n in numbers])
    c.execute(sa.update(table).where(table.c.id == item).values(wanted=wanted, state="open"))
    events.note(c, "ask", item=item, more=more)
    return wanted


def take_up(c: sa.Connection, item: int) -> None:
    """Offers a parked item again, to people who have not skipped it."""
    table = schema.item
    parked = (table.c.id == item, table.c.state == "parked")
    if c.execute(sa.update(table).where(*parked).values(state="open")).rowcount:
        events.note(c, "open", item=item)
    standing.close(c, item)


def put_aside(c: sa.Connection, item: int) -> None:
    """Offers an item no more until it is taken up; answers to it that are under way still count."""
    c.execute(sa.update(schema.item).where(schema.item.c.id == item).values(state="parked"))
    events.note(c, "put aside", item=item)
