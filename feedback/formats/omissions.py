"""Judgements that are in no rows to learn from, and why."""

import sqlalchemy as sa

from feedback.store import schema

_item, _slot, _said, _people = schema.item, schema.slot, schema.judgement, schema.annotator
WHY = (
    *("both bad", "training", "gold", "repeat", "surplus", "skip", "undone"),
    "by blocked people",
)
"""Reasons for which rows to learn from leave judgements out."""


def counts(c: sa.Connection) -> dict[str, int]:
    """Numbers of judgements that the exports to learn from leave out, by reason."""
    why = sa.case(
        (_said.c.kind != "judge", _said.c.kind),
        (_slot.c.done.is_(None), "undone"),
        (_item.c.purpose != "work", _item.c.purpose),
        (_people.c.blocked.isnot(None), "by blocked people"),
        (_said.c.preference == "both_bad", "both bad"),
        else_="",
    )
    query = sa.select(why.label("why"), sa.func.count()).select_from(_said)
    query = query.join(_item, _item.c.id == _said.c.item)
    query = query.join(_people, _people.c.id == _said.c.annotator)
    query = query.outerjoin(_slot, _slot.c.done == _said.c.id).group_by("why")
    found = {name: n for name, n in c.execute(query)}
    return {name: found.get(name, 0) for name in WHY}


def told(c: sa.Connection) -> str:
    """The numbers in words; empty where nothing is left out."""
    return ", ".join(f"{n} {why}" for why, n in counts(c).items() if n)
