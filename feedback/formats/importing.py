"""Judgements that were made elsewhere, put into the database with their items and their source."""

import dataclasses
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from feedback.formats import Found, Said, filling, without_repeats
from feedback.settings import Settings
from feedback.store import database, events, items, schema, standing
from feedback.store.records import Item

DEFAULTS = Settings()
COLUMNS = (
    *("shown", "choice", "preference", "degree", "rating", "ranks", "reason", "differences"),
    *("server_ms", "visible_ms", "guidelines", "page_version", "comment", "better"),
)
"""Columns of a judgement that a raw row holds by their names."""


class One(NamedTuple):
    """A judgement to be kept: its columns, whether it counts, and the key of the one that it undoes."""

    item: int
    by: str
    row: dict[str, Any]
    counts: bool
    undoes: str = ""
    simulated: bool = False
    blocked: bool = False
    own: bool = False
    """True for one of a raw export, which takes a place that its item has; others get one more."""


def bring(
    c: sa.Connection,
    found: Iterable[Found],
    judgements: bool = True,
    settings: Settings = DEFAULTS,
) -> dict[str, int]:
    """Puts items, and the judgements of them: {"created", "unchanged", "judgements", "known"}.

    What is there already is left as it is, so that a file may come twice; a judgement is known by its key.
    Somebody whom a source does not name is a person called after the source. A ValueError names an item
    that is known with other contents.
    """
    found = list(found)
    counts = _items(c, [x.item for x in found], {x.source for x in found})
    if not judgements:
        return counts
    external = _external(c)
    ones = [*_ones(found, external, database.now(c))]
    keys = {x.row["key"] for x in ones}
    known = keys & set(c.scalars(sa.select(schema.judgement.c.key)))
    new = [x for x in ones if x.row["key"] not in known]
    filling.fill(c, new)
    _follow(c, new, settings)
    if found:
        events.note(c, "import", sources=", ".join(sorted({x.source for x in found})), new=len(new))
    return counts | {"judgements": len(new), "known": len(known)}


def _items(c: sa.Connection, raw: list[dict], sources: set[str]) -> dict[str, int]:
    """Puts the items: those without an id of their own once for all that say the same.

    Those of raw exports that are known may have been asked more often since.
    """
    known, every, new = _external(c).keys(), {}, []
    for one in raw:
        item = _item(one)
        if item.id in known and sources == {"raw"}:
            if item.id not in every:
                _check_same(c, item)
        elif one.get("id") or item.id not in every.keys() | known:
            new.append(item)
        every[item.id] = item
    done = items.put(c, new)
    repeats = {x["id"]: x["repeats"] for x in raw if x.get("repeats")}
    if repeats:
        of = _external(c)
        both = [{"this": of[x], "that": of[y]} for x, y in repeats.items() if y in of]
        c.execute(_REPEATS, both)
    return {"created": done["created"], "unchanged": len(every) - done["created"]}


def _external(c: sa.Connection) -> dict[str, int]:
    """Every item's number, by its id."""
    return {x: id for x, id in c.execute(sa.select(schema.item.c.external, schema.item.c.id))}


def _item(raw: dict) -> Item:
    """The item of a row; one that was put as a repeat stays one."""
    item = Item.of(without_repeats(raw))
    return dataclasses.replace(item, purpose=raw["purpose"]) if raw.get("repeats") else item


def _check_same(c: sa.Connection, item: Item) -> None:
    """Refuses an item whose prompt or texts are not those that are stored under its id."""
    row = c.execute(sa.select(schema.item).where(schema.item.c.external == item.id)).one()
    texts = [x.text for x in items.responses(c, row.id)]
    if (row.prompt, texts) != (item.prompt, [x.text for x in item.responses]):
        raise items.Known(
            f"item {item.id!r} is known with other contents: give the changed one another id"
        )


def _ones(found: list[Found], external: dict[str, int], now: float) -> Iterator[One]:
    """The judgements as rows; equal ones of one file are as many judgements."""
    seen, unnamed = Counter(), Counter()
    for one in found:
        id = _item(one.item).id
        for said in one.said:
            if said.raw is not None:
                yield _from_raw(said, external[id])
                continue
            by = said.by
            if not by:
                unnamed[id, one.source] += 1
                n = unnamed[id, one.source]
                by = one.source if n == 1 else f"{one.source} {n}"
            values = dataclasses.asdict(said) | {"by": by}
            seen[json.dumps([id, values])] += 1
            key = said.key or _key(one.source, id, values, seen[json.dumps([id, values])])
            kept = {x: values[x] for x in COLUMNS if x in values}
            row = kept | {"key": key, "kind": "judge", "at": now}
            yield One(external[id], by, row, counts=True)


def _from_raw(said: Said, item: int) -> One:
    raw = said.raw or {}
    row = {x: raw.get(x) for x in COLUMNS} | {x: raw[x] for x in ("key", "kind", "at")}
    row |= {x: row[x] or "" for x in ("comment", "better")}
    row["differences"] = bool(row["differences"])
    counts = raw["kind"] == "judge" and raw["stands"]
    person = [bool(raw.get(x)) for x in ("simulated", "blocked")]
    return One(item, said.by, row, counts, raw.get("undoes") or "", *person, own=True)


def _key(source: str, id: str, values: dict, n: int) -> str:
    """The key of a judgement from elsewhere, the same each time its file comes."""
    text = json.dumps([source, id, values, n], sort_keys=True)
    return str(uuid.UUID(hashlib.sha256(text.encode()).hexdigest()[:32]))


def _follow(c: sa.Connection, new: list[One], settings: Settings) -> None:
    """The states of items, and who does not get them again, after these judgements."""
    undone = {x.undoes for x in new}
    people = filling.people(c)
    for one in new:
        if one.row["kind"] in ("skip", "surplus") and one.row["key"] not in undone:
            standing.exclude(c, one.item, people[one.by], one.row["kind"])
            standing.park(c, one.item, settings.park_after)
    for item in dict.fromkeys(x.item for x in new):
        standing.close(c, item)


_REPEATS = (
    sa.update(schema.item)
    .where(schema.item.c.id == sa.bindparam("this"))
    .values(repeats=sa.bindparam("that"))
)
