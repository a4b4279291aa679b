"""A database of judgements: SQLite in a file, with one writer whose waiters queue, or PostgreSQL."""

import contextlib
import pathlib
import secrets
import sqlite3
import time
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite

from feedback.store import engines, schema
from feedback.store.fair_lock import FairLock

MIGRATIONS = pathlib.Path(__file__).parent / "migrations"


class SchemaError(RuntimeError):
    """The database's tables are of another version than the program."""


class Database:
    """Transactions on the database at `url` (sqlite:///PATH or postgresql://...)."""

    def __init__(self, url: str, migrations: pathlib.Path = MIGRATIONS) -> None:
        """Opens nothing yet, apart from refusing a URL that cannot work with a ValueError."""
        self.url = engines.parse(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._migrations = migrations
        if not self.sqlite:
            self._engine = engines.postgresql(self.url)
            return
        self._lock = FairLock()
        self._engine = engines.sqlite(self.url, "BEGIN", "PRAGMA query_only = ON", pool_size=40)
        self._writers = engines.sqlite(self.url, "BEGIN IMMEDIATE", pool_size=1, max_overflow=0)

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write: committed at its end, rolled back by an exception."""
        if not self.sqlite:
            with self._engine.begin() as c:
                yield c
            return
        with self._lock, self._writers.begin() as c:
            yield c

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one state of the database, and waits for nobody."""
        with self._engine.connect() as c:
            if not self.sqlite:
                c = c.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with c.begin():
                yield c

    def upgrade(self) -> None:
        """Makes the tables, or brings those of an older version up to date with all their rows.

        A SchemaError names a version that this program does not know, a ValueError a missing folder.
        """
        if self.sqlite:
            engines.make_file(pathlib.Path(str(self.url.database)))
        config = Config()
        config.set_main_option("script_location", str(self._migrations).replace("%", "%%"))
        scripts = ScriptDirectory.from_config(config)
        with self.write() as c:
            if not self.sqlite:  # two servers that start at once
                c.execute(sa.text("SELECT pg_advisory_xact_lock(18)"))
            found = self._version(c)
            newest = scripts.get_current_head()
            if found == newest:
                return
            if found is not None and found not in {x.revision for x in scripts.walk_revisions()}:
                raise SchemaError(
                    f"the database {self.name} has schema {found}, and this version knows "
                    f"{newest} at most: use the newer version of rlhf_jax that made it"
                )
            config.attributes["connection"] = c
            command.upgrade(config, "head")
            known = set(c.scalars(sa.select(schema.state.c.name)))
            for name, value in (("seed", secrets.token_hex(8)), ("secret", secrets.token_hex(32))):
                if name not in known:
                    c.execute(sa.insert(schema.state).values(name=name, value=value))

    def _version(self, c: sa.Connection) -> str | None:
        return MigrationContext.configure(c).get_current_revision()

    @property
    def version(self) -> str | None:
        """Name of the schema's version; None for a database without tables."""
        with self.read() as c:
            return self._version(c)

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def backup(self, to: str | pathlib.Path) -> None:
        """Writes a copy of one moment to the new file `to`, while others read and write.

        A ValueError says what to do with PostgreSQL, and where the file exists already.
        """
        if not self.sqlite:
            raise ValueError(
                f"{self.name} is on PostgreSQL, whose own tool makes the backup: "
                "pg_dump --format=custom --file=FILE DATABASE"
            )
        to = pathlib.Path(to)
        if to.exists():
            raise ValueError(f"the file {to} exists: name a new one for the backup")
        engines.make_file(to)
        with (
            contextlib.closing(sqlite3.connect(str(self.url.database))) as source,
            contextlib.closing(sqlite3.connect(to)) as target,
        ):
            source.backup(target)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()
        if self.sqlite:
            self._writers.dispose()


def now(c: sa.Connection) -> float:
    """Seconds since 1970 by the database's clock."""
    if c.dialect.name == "sqlite":  # the machine's: the file is on it
        return time.time()
    return float(c.scalar(_CLOCK) or 0)


_CLOCK = sa.text("SELECT extract(epoch FROM clock_timestamp())")


def upsert(c: sa.Connection, table: sa.Table, keys: dict, values: dict) -> None:
    """Sets columns of the row that has these keys, which is made where there is none."""
    insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[c.dialect.name]
    row = insert(table).values({**keys, **values})
    c.execute(row.on_conflict_do_update(index_elements=[*keys], set_=values))


def state(c: sa.Connection) -> dict[str, str]:
    """Values that stand in the database itself: seed, secret, paused, guidelines."""
    rows = c.execute(_STATE)
    return {name: value for name, value in rows}


_STATE = sa.select(schema.state.c.name, schema.state.c.value)
