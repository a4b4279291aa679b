"""Slots for judgements that come from elsewhere: a free one of the item, or one more than it had."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from feedback.store import asking, database, schema

if TYPE_CHECKING:
    from feedback.formats.importing import One

_slot, _item, _judgement = schema.slot, schema.item, schema.judgement
BODY = "imported"
"""The body of a judgement that no client sent."""


def people(c: sa.Connection) -> dict[str, int]:
    """Everybody's number, by name."""
    people = schema.annotator.c
    return {name: id for name, id in c.execute(sa.select(people.name, people.id))}


def fill(c: sa.Connection, new: "list[One]") -> None:
    """Keeps these judgements, each that counts in a slot of its own, and then what undoes them.

    A second one of a person that would count on one item is kept as surplus.
    """
    who = people(c)
    for one in new:
        if one.by not in who:
            blocked = database.now(c) if one.blocked else None
            person = {"simulated": one.simulated, "blocked": blocked}
            who[one.by] = asking.add_annotator(c, one.by, **person)
    held = _Slots(c)
    rows: list[dict[str, Any]] = []
    for one in new:
        if one.undoes:
            continue
        row = one.row | {"item": one.item, "annotator": who[one.by], "body": BODY, "slot": None}
        if one.counts:
            row["slot"] = held.take(one.item, who[one.by], one.own)
            row["kind"] = "judge" if row["slot"] is not None else "surplus"
        rows.append(row)
    held.write()
    for row in rows:
        row["slot"] = held.number(row["slot"])
    ids: dict[str, int] = {}
    made = sa.insert(_judgement).returning(_judgement.c.id, sort_by_parameter_order=True)
    for at in range(0, len(rows), 500):
        part = rows[at : at + 500]
        keys = [row["key"] for row in part]
        ids |= zip(keys, c.scalars(made, part).all(), strict=True)
    done = [
        {"of": row["slot"], "by": row["annotator"], "is": ids[row["key"]]}
        for row in rows
        if row["slot"] is not None
    ]
    if done:
        c.execute(_DONE, done)
    _undo(c, [x for x in new if x.undoes], who, ids)


def _undo(c: sa.Connection, new: "list[One]", who: dict[str, int], ids: dict[str, int]) -> None:
    """Keeps the rows that undo others, which are here by now."""
    wanted = {x.undoes for x in new} - ids.keys()
    if wanted:
        stored = sa.select(_judgement.c.key, _judgement.c.id).where(_judgement.c.key.in_(wanted))
        ids |= {key: id for key, id in c.execute(stored)}
    for one in new:
        if one.undoes not in ids:
            raise ValueError(
                f"judgement {one.row['key']!r} undoes {one.undoes!r}, which is in no row: give the "
                "whole export"
            )
        row = one.row | {"item": one.item, "annotator": who[one.by], "body": BODY}
        c.execute(sa.insert(_judgement), row | {"undoes": ids[one.undoes]})


class _Slots:
    """The slots of all items, and those to be made."""

    def __init__(self, c: sa.Connection) -> None:
        self.c = c
        self.items = {x.id: x for x in c.execute(sa.select(_item))}
        self.wanted = {id: x.wanted for id, x in self.items.items()}
        self.of: dict[int, list] = defaultdict(list)
        for slot in c.execute(sa.select(_slot).order_by(_slot.c.number)):
            self.of[slot.item].append(slot)
        self.taken: set[int] = set()
        self.people = {(x.item, x.annotator) for slots in self.of.values() for x in slots}
        self.new: list[dict] = []
        self.made: list[int] = []

    def take(self, item: int, annotator: int, own: bool) -> tuple[str, int] | None:
        """A slot for one more judgement of a person, ("old", id) or ("new", place); None for a second one."""
        if (item, annotator) in self.people:
            return None
        self.people.add((item, annotator))
        free = (x for x in self.of[item] if x.id not in self.taken)
        free = [x for x in free if x.annotator is None and x.done is None and x.only is None]
        if free and own:
            self.taken.add(free[0].id)
            return "old", free[0].id
        work = self.items[item].purpose == "work"
        self.wanted[item] += work
        number = self.wanted[item] if work else annotator
        row = {"item": item, "number": number, "rank": self.items[item].rank}
        self.new.append(row | {"only": None if work else annotator})
        return "new", len(self.new) - 1

    def write(self) -> None:
        """Makes the new slots, and writes how many judgements each item is wanted to have now."""
        made = sa.insert(_slot).returning(_slot.c.id, sort_by_parameter_order=True)
        for at in range(0, len(self.new), 500):
            self.made += self.c.scalars(made, self.new[at : at + 500]).all()
        more = [x for x in self.items.values() if self.wanted[x.id] != x.wanted]
        if more:
            self.c.execute(_WANTED, [{"of": x.id, "n": self.wanted[x.id]} for x in more])

    def number(self, slot: tuple[str, int] | None) -> int | None:
        """The id of a slot that `take` gave."""
        if slot is None:
            return None
        return slot[1] if slot[0] == "old" else self.made[slot[1]]


_OF = sa.bindparam("of")
_WANTED = sa.update(_item).where(_item.c.id == _OF).values(wanted=sa.bindparam("n"))
_DONE = (
    sa.update(_slot)
    .where(_slot.c.id == _OF)
    .values(annotator=sa.bindparam("by"), done=sa.bindparam("is"), lease=None, until=None)
)
