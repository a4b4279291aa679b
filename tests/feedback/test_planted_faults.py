"""Faults planted in the server on purpose: the checks of the storm must notice each of them."""

import shutil
import threading

import pytest
import sqlalchemy as sa
import storm
import world

from feedback.store import database, holding, outcomes, picking, schema
from feedback.store.database import Database

REPLY_BEFORE_COMMIT = """
import contextlib, threading
from feedback.store import database, judging

first = judging.judge
judged = set()

def judge(c, *more, **named):
    judged.add(c)
    return first(c, *more, **named)

@contextlib.contextmanager
def write(self):
    self._lock.__enter__()
    c = self._writers.connect()
    def end(how):
        how()
        c.close()
        self._lock.__exit__()
    transaction = c.begin()
    try:
        yield c
    except BaseException:
        end(transaction.rollback)
        raise
    if c in judged:
        threading.Timer(0.15, end, [transaction.commit]).start()
    else:
        end(transaction.commit)

judging.judge = judge
database.Database.write = write
"""
KEYS_FORGOTTEN = """
from feedback.store import outcomes
outcomes.kept = lambda c, key: None
"""
SELECT_THEN_UPDATE = """
import sqlalchemy as sa
from feedback.store import picking, schema

def work(c, values, now):
    given = {**values, "me": values["annotator"], "now": now}
    free = sa.select(schema.slot.c.id, schema.slot.c.item).where(
        *picking._unseen(schema.slot), *picking._free(schema.slot)
    )
    found = c.execute(free.order_by(schema.slot.c.id).limit(1), given).first()
    c.execute(sa.text("SELECT pg_sleep(0.02)"))
    if found:
        c.execute(sa.update(schema.slot).where(schema.slot.c.id == found.id).values(**values))
    return found

picking.work = work
"""


def blow(tmp_path, url: str, fault: str, size: storm.Size) -> None:
    """A storm over a server with a fault, and its checks."""
    faults = tmp_path / "faults"
    faults.mkdir()
    (faults / "sitecustomize.py").write_text(fault)
    with storm.blowing(tmp_path, size, 3, str(faults), database=url) as blown:
        db = Database(url)
        try:
            storm.verify(db, blown)
        finally:
            db.close()


def without_unique_key(tmp_path):
    """Migrations whose judgements may have the same key."""
    folder = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, folder)
    first = folder / "versions/0001_first.py"
    text = first.read_text()
    column = 'Column("key", String, nullable=False, unique=True)'
    assert column in text
    first.write_text(text.replace(column, 'Column("key", String, nullable=False)'))
    return folder


def test_a_reply_before_the_commit_is_noticed(new_url, tmp_path):
    size = storm.Size(clients=6, judgements=40, kills=3, dropped=0, walkers=0, undone=0)
    with pytest.raises(AssertionError, match="acknowledged keys are lost"):
        blow(tmp_path, new_url("sqlite"), REPLY_BEFORE_COMMIT, size)


def test_keys_that_may_repeat_are_noticed(new_url, tmp_path):
    url = new_url("sqlite")
    db = Database(url, without_unique_key(tmp_path))
    db.upgrade()
    db.close()
    size = storm.Size(clients=6, judgements=60, kills=0, dropped=0.2, walkers=0, undone=0)
    with pytest.raises(AssertionError, match="keys are double"):
        blow(tmp_path, url, KEYS_FORGOTTEN, size)


def test_a_lease_by_select_then_update_is_noticed(new_url, tmp_path):
    size = storm.Size(clients=6, judgements=60, kills=0, dropped=0, walkers=0, undone=0)
    with pytest.raises(AssertionError, match=r"put aside|somebody else|not its number|\(500, "):
        blow(tmp_path, new_url("postgresql"), SELECT_THEN_UPDATE, size)


def test_the_database_refuses_a_second_row_where_the_program_forgets_its_keys(db, monkeypatch):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann)
    world.judge(db, ann, held, key_="k")
    monkeypatch.setattr(outcomes, "kept", lambda c, key: None)
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
        world.judge(db, ann, held, key_="k")


def test_the_database_refuses_one_person_twice_on_an_item_where_the_program_forgets(
    db, monkeypatch
):
    world.put(db, world.pairs(1, wanted=2))
    (ann,) = world.people(db, "ann")
    world.judge(db, ann, world.lease(db, ann))

    def any_slot(c, values, now):
        slot = sa.select(schema.slot.c.id, schema.slot.c.item).where(schema.slot.c.done.is_(None))
        found = c.execute(slot).first()
        c.execute(sa.update(schema.slot).where(schema.slot.c.id == found.id).values(**values))
        return found

    monkeypatch.setattr(picking, "work", any_slot)
    with pytest.raises(sa.exc.IntegrityError, match=r"(?i)unique"):
        world.lease(db, ann)


def test_one_slot_is_never_given_twice_but_by_select_then_update(db):
    """Two people look at once, then both take: what the one statement makes impossible."""
    world.put(db, world.pairs(1))
    people = world.people(db, "ann", "bob")
    looked = threading.Barrier(2)

    def naive(who: int) -> None:
        free = sa.select(schema.slot.c.id).where(schema.slot.c.until.is_(None))
        with db.read() as c:
            slot = c.scalar(free)
        looked.wait()
        with db.write() as c:
            new = holding.New.of(database.state(c), who, database.now(c), 900)
            at = sa.update(schema.slot).where(schema.slot.c.id == slot)
            given.append(c.execute(at.values(**new.values)).rowcount)

    given: list[int] = []
    assert world.together(*(lambda who=who: naive(who) for who in people)) == []
    assert given == [1, 1]
    with db.write() as c:
        c.execute(sa.update(schema.slot).values(annotator=None, lease=None, until=None))
    got = []
    calls = (lambda who=who: got.append(world.lease(db, who)) for who in people)
    assert world.together(*calls) == []
    assert sorted(type(x).__name__ for x in got) == ["Lease", "Waiting"]
