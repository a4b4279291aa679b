"""The owner's overview: how far the work is, who did what and how fast, and judgements as they come.

A judgement stands where its slot names it; those undone since, skips and surplus are counted apart.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from feedback.store import answers, schema

_item, _slot, _said, _people = schema.item, schema.slot, schema.judgement, schema.annotator
_COUNT = sa.func.count()
STANDS = _slot.c.done == _said.c.id
GROUP = 10
"""Judgements for each point of a speed over time."""


def totals(c: sa.Connection) -> dict[str, Any]:
    """Numbers for the whole: items by state, judgements wanted and done, rows by kind."""
    work = _item.c.purpose == "work"
    states = sa.select(_item.c.state, _COUNT).where(work).group_by(_item.c.state)
    slots = sa.select(_COUNT, sa.func.count(_slot.c.done)).select_from(_slot).join(_item)
    wanted, done = c.execute(slots.where(work, _item.c.state != "parked")).one()
    kinds = sa.select(_said.c.kind, _COUNT).group_by(_said.c.kind)
    purposes = sa.select(_item.c.purpose, _COUNT).group_by(_item.c.purpose)
    return {
        "items": _counts(c, states, "open", "closed", "parked"),
        "purposes": _counts(c, purposes, "work", "training", "gold", "repeat"),
        "wanted": wanted,
        "done": done,
        "rows": _counts(c, kinds, "judge", "skip", "undo", "surplus"),
        "annotators": c.scalar(sa.select(_COUNT).select_from(_people)),
    }


def _counts(c: sa.Connection, query: sa.Select, *names: str) -> dict[str, int]:
    return dict.fromkeys(names, 0) | {name: n for name, n in c.execute(query)}


def annotators(c: sa.Connection) -> list[dict[str, Any]]:
    """Each annotator: numbers of judgements that stand, skips and surplus, speed, gold, and state."""
    kinds: dict[int, dict[str, int]] = {}
    rows = sa.select(_said.c.annotator, _said.c.kind, _COUNT, sa.func.max(_said.c.at))
    last: dict[int, float] = {}
    for who, kind, n, at in c.execute(rows.group_by(_said.c.annotator, _said.c.kind)):
        kinds.setdefault(who, {})[kind] = n
        last[who] = max(at, last.get(who, 0.0))
    stand = sa.select(_said.c.annotator, _said.c.server_ms).join(_slot, STANDS)
    times: dict[int, list[int]] = {}
    for who, ms in c.execute(stand):
        times.setdefault(who, []).append(ms or 0)
    right = gold(c)
    return [
        {
            "id": x.id,
            "name": x.name,
            "training": x.training,
            "blocked": bool(x.blocked),
            "finished": bool(x.finished),
            "judged": len(times.get(x.id, [])),
            "skipped": kinds.get(x.id, {}).get("skip", 0),
            "undone": kinds.get(x.id, {}).get("undo", 0),
            "surplus": kinds.get(x.id, {}).get("surplus", 0),
            "seconds": statistics.median(times[x.id]) / 1000 if x.id in times else None,
            "gold": right.get(x.id, [0, 0]),
            "last": last.get(x.id),
        }
        for x in c.execute(sa.select(_people).order_by(_people.c.id))
    ]


def gold(c: sa.Connection) -> dict[int, list[int]]:
    """For each annotator the right answers and all answers to hidden gold."""
    found: dict[int, list[int]] = {}
    columns = (_said.c.annotator, _said.c.preference, _said.c.rating, _said.c.ranks)
    rows = sa.select(*columns, _item.c.gold, _item.c.scale).join(_slot, STANDS)
    for x in c.execute(
        rows.join(_item, _item.c.id == _slot.c.item).where(_item.c.purpose == "gold")
    ):
        said: Mapping = {"preference": x.preference, "rating": x.rating, "ranks": x.ranks}
        tally = found.setdefault(x.annotator, [0, 0])
        tally[0] += answers.is_right(x.scale, x.gold, said)
        tally[1] += 1
    return found


def items(c: sa.Connection, state: str = "", after: int = 0, most: int = 100) -> list[sa.Row]:
    """Items after one of that number, of one state where it is named: with slots, and those done."""
    done = sa.func.count(_slot.c.done)
    columns = (_item.c.id, _item.c.external, _item.c.kind, _item.c.purpose, _item.c.state)
    query = sa.select(
        *columns, _item.c.wanted, sa.func.count(_slot.c.id).label("slots"), done.label("done")
    )
    query = query.outerjoin(_slot).where(_item.c.id > after).group_by(*columns, _item.c.wanted)
    if state:
        query = query.where(_item.c.state == state)
    return [*c.execute(query.order_by(_item.c.id).limit(most))]


def latest(c: sa.Connection, most: int = 50, **where: int) -> list[sa.Row]:
    """The last rows of judgements, the newest first: all, or those of an `annotator` or an `item`."""
    stands = sa.exists().where(STANDS).label("stands")
    query = sa.select(
        _said, stands, _people.c.name, _item.c.external, _item.c.purpose, _item.c.kind.label("of")
    )
    query = query.join(_people, _people.c.id == _said.c.annotator)
    query = query.join(_item, _item.c.id == _said.c.item)
    for name, value in where.items():
        query = query.where(_said.c[name] == value)
    return [*c.execute(query.order_by(_said.c.id.desc()).limit(most))]


def speed(c: sa.Connection, annotator: int, most: int = 1000) -> list[float]:
    """Median seconds of each ten judgements in turn, of the last `most` that stand."""
    query = sa.select(_said.c.server_ms).join(_slot, STANDS)
    query = query.where(_said.c.annotator == annotator, _said.c.server_ms.isnot(None))
    ms = [*c.scalars(query.order_by(_said.c.id.desc()).limit(most))][::-1]
    groups = [ms[i : i + GROUP] for i in range(0, len(ms), GROUP)]
    return [statistics.median(x) / 1000 for x in groups]


def questions(c: sa.Connection) -> list[str]:
    """The questions that items ask; an empty one is the page's own."""
    return sorted({x or "" for x in c.scalars(sa.select(_item.c.question).distinct())})
