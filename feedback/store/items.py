"""Items that people judge, put into the database once each, with one slot for each judgement wanted."""

import hashlib
from collections.abc import Iterable, Mapping

import sqlalchemy as sa

from feedback.store import database, events, schema
from feedback.store.records import Item, Response, Selection, hash_of

__all__ = ["Item", "Known", "Response", "get", "put", "rank", "repeat", "responses"]

RANKS = 2**31 - 1
"""A prime; an item's place in the common order is below it."""


class Known(ValueError):
    """An item is known under this id with other contents."""


def rank(seed: str, external: str) -> int:
    """The random place of an item in the order in which items are offered."""
    return int(hashlib.sha256(f"{seed}:{external}".encode()).hexdigest()[:15], 16) % RANKS


def put(c: sa.Connection, items: Iterable[Item | Mapping]) -> dict[str, int]:
    """Puts items that are new, and counts those that are there: {"created": n, "unchanged": n}.

    `Known` names a known id that comes with other contents; nothing is put then.
    """
    if c.dialect.name == "postgresql":  # one at a time, so that two may put the same
        c.execute(sa.text("SELECT pg_advisory_xact_lock(19)"))
    batch = [x if isinstance(x, Item) else Item.of(x) for x in items]
    known: dict[str, str] = {}
    for at in range(0, len(batch), 500):
        ids = [x.id for x in batch[at : at + 500]]
        stored = sa.select(schema.item.c.external, schema.item.c.hash)
        known |= {k: v for k, v in c.execute(stored.where(schema.item.c.external.in_(ids)))}
    new = []
    for item in batch:
        contents = hash_of(item)
        if item.id not in known:
            known[item.id] = contents
            new.append((item, contents))
        elif known[item.id] != contents:
            raise Known(
                f"item {item.id!r} is known with other contents: give the changed one another id"
            )
    for at in range(0, len(new), 500):
        _insert(c, new[at : at + 500])
    if new:
        events.note(c, "items", new=len(new))
    return {"created": len(new), "unchanged": len(batch) - len(new)}


def _insert(c: sa.Connection, new: list[tuple[Item, str]]) -> None:
    seed, now = database.state(c)["seed"], database.now(c)
    rows = [
        {
            "external": x.id,
            "hash": contents,
            **{k: getattr(x, k) for k in ("kind", "scale", "question", "prompt", "wanted")},
            **{k: getattr(x, k) for k in ("purpose", "gold", "reason", "metadata")},
            "rank": rank(seed, x.id),
            "at": now,
        }
        for x, contents in new
    ]
    made = sa.insert(schema.item).returning(schema.item.c.id, sort_by_parameter_order=True)
    ids = c.scalars(made, rows).all()
    texts, slots = [], []
    for id, row, (item, _) in zip(ids, rows, new, strict=True):
        texts += [_text(id, i, x.text, x.policy, x.sampling) for i, x in enumerate(item.responses)]
        if item.purpose == "work":  # training and gold get a slot for each person, when it is due
            slots += [
                {"item": id, "number": n + 1, "rank": row["rank"]} for n in range(item.wanted)
            ]
    c.execute(sa.insert(schema.response), texts)
    if slots:
        c.execute(sa.insert(schema.slot), slots)
    both = [(id, x.selection) for id, (x, _) in zip(ids, new, strict=True)]
    _keep_selections(c, [(id, x) for id, x in both if x], now)


def _keep_selections(c: sa.Connection, selected: list[tuple[int, Selection]], now: float) -> None:
    """Keeps how items were chosen, in rounds that are new or known by their names."""
    if not selected:
        return
    table = schema.rounds
    names = dict.fromkeys(x.round for _, x in selected)
    known = {name: id for id, name in c.execute(sa.select(table.c.id, table.c.name))}
    for name in names.keys() - known.keys():
        made = sa.insert(table).values(name=name, at=now).returning(table.c.id)
        known[name] = c.scalars(made).one()
    rows = [
        {
            "item": id,
            "round": known[x.round],
            **{k: getattr(x, k) for k in ("strategy", "score", "probability")},
            "model_version": x.model,
            "at": now,
        }
        for id, x in selected
    ]
    c.execute(sa.insert(schema.choice), rows)


def _text(item: int, position: int, text: str, policy: str | None, sampling: dict | None) -> dict:
    exact = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "item": item,
        "position": position,
        "text": text,
        "hash": exact,
        "policy": policy,
        "sampling": sampling,
    }


def repeat(c: sa.Connection, item: int, annotator: int) -> int:
    """Puts an item once more, for one person who has judged it; the id of the new one."""
    old = c.execute(sa.select(schema.item).where(schema.item.c.id == item)).one()
    same = ("kind", "scale", "question", "prompt", "hash", "rank", "metadata")
    new = {k: old._mapping[k] for k in same} | {
        "external": f"{old.external}#again-{annotator}",
        "wanted": 1,
        "purpose": "repeat",
        "repeats": item,
        "at": database.now(c),
    }
    id = c.scalars(sa.insert(schema.item).returning(schema.item.c.id), new).one()
    c.execute(
        sa.insert(schema.response),
        [_text(id, x.position, x.text, x.policy, x.sampling) for x in responses(c, item)],
    )
    c.execute(
        sa.insert(schema.slot),
        {"item": id, "number": 1, "rank": old.rank, "only": annotator},
    )
    return id


def get(c: sa.Connection, item: int) -> sa.Row:
    """The row of an item."""
    return c.execute(_ITEM, {"item": item}).one()


def responses(c: sa.Connection, item: int) -> list[sa.Row]:
    """The rows of an item's responses, in the order in which they were put."""
    return list(c.execute(_RESPONSES, {"item": item}))


_ITEM = sa.select(schema.item).where(schema.item.c.id == sa.bindparam("item"))
_RESPONSES = (
    sa.select(schema.response)
    .where(schema.response.c.item == sa.bindparam("item"))
    .order_by(schema.response.c.position)
)
