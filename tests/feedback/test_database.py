"""The database: its tables, its versions, its transactions, and what it refuses."""

import contextlib
import pathlib
import shutil
import sqlite3
import threading

import pytest
import sqlalchemy as sa
import world
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from feedback.store import database, engines, items, schema
from feedback.store.database import Database
from feedback.store.fair_lock import FairLock


def rows(db: Database) -> dict[str, list]:
    """All rows of all tables."""
    with db.read() as c:
        return {
            name: [tuple(x) for x in c.execute(sa.text(f'SELECT * FROM "{name}" ORDER BY 1, 2'))]
            for name in schema.metadata.tables
        }


def test_migrations_make_the_tables_of_the_schema(db):
    with db.read() as c:
        context = MigrationContext.configure(c, opts={"target_metadata": schema.metadata})
        assert compare_metadata(context, schema.metadata) == []


CHANGES = (
    "DELETE FROM judgement",
    "UPDATE judgement SET comment = comment",
    "UPDATE judgement SET choice = NULL WHERE id = 1",
    "DELETE FROM response",
    "UPDATE response SET text = 'another'",
    "UPDATE item SET prompt = '\"another\"'",
    "UPDATE item SET gold = NULL",
    "DELETE FROM item",
    "TRUNCATE judgement CASCADE",
)


def test_the_database_itself_refuses_to_change_what_was_said_and_shown(db):
    world.judged(db, 3)
    before = rows(db)
    for change in CHANGES:
        if change.startswith("TRUNCATE") and db.sqlite:
            continue  # SQLite has none
        with pytest.raises(sa.exc.DBAPIError, match="only grows"), db.write() as c:
            c.execute(sa.text(change))
        assert rows(db) == before, change


def test_an_older_schema_is_upgraded_with_all_its_rows_and_a_newer_one_is_refused_by_name(
    db, tmp_path
):
    world.judged(db, 3)
    before = rows(db)
    newer = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, newer)
    (newer / "versions/0002_mood.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision, down_revision = '0002', '0001'\n"
        "def upgrade():\n"
        "    op.add_column('judgement', sa.Column('mood', sa.Text))\n"
    )
    later = Database(db.url.render_as_string(hide_password=False), newer)
    later.upgrade()
    assert later.version == "0002"
    after = rows(later)
    assert [x[:-1] for x in after.pop("judgement")] == before.pop("judgement")
    assert after == before
    world.judged(later, 1, person="another")  # still as before
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), later.write() as c:
        c.execute(sa.text("UPDATE judgement SET mood = 'good'"))
    later.close()
    with pytest.raises(database.SchemaError, match=r"schema 0002, .* knows 0001 at most"):
        db.upgrade()


def test_a_failed_migration_leaves_the_old_schema(db, tmp_path):
    world.judged(db, 2)
    before = rows(db)
    newer = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, newer)
    (newer / "versions/0002_broken.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision, down_revision = '0002', '0001'\n"
        "def upgrade():\n"
        "    op.add_column('judgement', sa.Column('mood', sa.Text))\n"
        "    raise RuntimeError('the power went')\n"
    )
    later = Database(db.url.render_as_string(hide_password=False), newer)
    with pytest.raises(RuntimeError, match="the power went"):
        later.upgrade()
    later.close()
    assert db.version == "0001"
    assert rows(db) == before


def test_several_servers_may_make_the_tables_at_once(url):
    dbs = [Database(url) for _ in range(4)]
    failed = world.together(*(db.upgrade for db in dbs))
    assert failed == []
    assert {db.version for db in dbs} == {"0001"}
    with dbs[0].read() as c:
        assert sorted(database.state(c)) == ["secret", "seed"]
    for db in dbs:
        db.close()


def test_an_exception_takes_all_back_and_the_next_writer_writes(db):
    with pytest.raises(RuntimeError, match="no"), db.write() as c:
        items.put(c, world.pairs(2))
        raise RuntimeError("no")
    with db.write() as c:
        assert items.put(c, world.pairs(1)) == {"created": 1, "unchanged": 0}


def test_readers_do_not_wait_for_a_writer_and_cannot_write(db):
    count = sa.select(sa.func.count()).select_from(schema.item)
    with db.write() as writer:
        items.put(writer, world.pairs(2))
        with db.read() as c:
            assert c.scalar(count) == 0
        assert writer.scalar(count) == 2
    with pytest.raises(sa.exc.DBAPIError), db.read() as c:
        c.execute(sa.insert(schema.state), {"name": "x", "value": "y"})


def test_writers_get_their_turn_in_the_order_in_which_they_came():
    lock, order, came = FairLock(), [], threading.Semaphore(0)

    class Queue(type(lock._queue)):
        def append(self, x):
            super().append(x)
            came.release()

    lock._queue = Queue()

    def work(i):
        with lock:
            order.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    with lock:
        for thread in threads:
            thread.start()
            came.acquire()  # it stands in the queue before the next one comes
        assert lock.waiting == 20
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [*range(20)]
    with lock:
        assert lock.waiting == 0


def test_a_backup_made_while_writers_write_is_whole(new_url, tmp_path):
    db = Database(new_url("sqlite"))
    db.upgrade()
    world.judged(db, 20)
    stop, begun = threading.Event(), threading.Semaphore(0)

    def write():
        n = 0
        while not stop.is_set():
            with db.write() as c:
                items.put(c, [{"id": f"later{n}", "prompt": "x" * 5000, "responses": ["y", "z"]}])
            n += 1
            begun.release()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(5):
        begun.acquire()
    db.backup(tmp_path / "copy.db")
    for _ in range(5):  # the writer went on
        begun.acquire()
    stop.set()
    writer.join()
    copy = Database(f"sqlite:///{tmp_path}/copy.db")
    then, now = rows(copy), rows(db)
    assert len(then["judgement"]) == 20
    assert 25 <= len(then["item"]) <= len(now["item"])
    assert all(set(then[name]) <= set(now[name]) for name in then)
    assert len(then["response"]) == 2 * len(then["item"])
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as c:
        assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with pytest.raises(ValueError, match=r"copy.db exists: name a new one"):
        db.backup(tmp_path / "copy.db")
    copy.close()
    db.close()


def test_postgresql_says_which_tool_makes_its_backup(new_url):
    db = Database(new_url("postgresql"))
    with pytest.raises(ValueError, match="pg_dump"):
        db.backup("copy")
    db.close()


def test_sqlite_waits_for_the_disk_and_checks_references(new_url):
    db = Database(new_url("sqlite"))
    for transaction in (db.write, db.read):
        with transaction() as c:
            found = [
                c.exec_driver_sql(f"PRAGMA {x}").scalar() for x in ("synchronous", "foreign_keys")
            ]
            assert found == [2, 1]
    with db.read() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    db.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("judgements.db", "is no URL"),
        ("mysql://host/name", "SQLite .* and PostgreSQL .* are supported"),
        ("sqlite://", "without a file"),
        ("sqlite:///:memory:", "without a file"),
    ],
)
def test_urls_that_cannot_work(url, message):
    with pytest.raises(ValueError, match=message):
        Database(url)


def test_files_are_for_their_owner_alone_and_folders_must_exist(tmp_path):
    db = Database(f"sqlite:///{tmp_path}/new.db")
    db.upgrade()
    world.judged(db, 1)
    db.backup(tmp_path / "copy.db")
    assert {x.stat().st_mode & 0o777 for x in tmp_path.iterdir()} == {0o600}
    with pytest.raises(ValueError, match=r"no folder .*/nowhere"):
        db.backup(tmp_path / "nowhere/copy.db")
    db.close()
    with pytest.raises(ValueError, match=r"no folder .*/nowhere"):
        Database(f"sqlite:///{tmp_path}/nowhere/new.db").upgrade()


def test_neither_names_nor_errors_tell_secrets(new_url):
    assert (
        Database("postgresql://me:secret@host/name").name == "postgresql+psycopg://me:***@host/name"
    )
    db = Database(new_url("sqlite"))
    db.upgrade()
    with pytest.raises(sa.exc.IntegrityError) as caught, db.write() as c:
        c.execute(sa.insert(schema.state), {"name": "seed", "value": "canary"})
    assert "canary" not in str(caught.value)
    db.close()


def test_every_migration_is_packaged():
    assert engines.__package__ == "feedback.store"
    for folder in (database.MIGRATIONS, database.MIGRATIONS / "versions"):
        assert (folder / "__init__.py").exists()
    assert pathlib.Path(database.MIGRATIONS / "env.py").exists()
