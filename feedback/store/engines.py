"""Engines of SQLAlchemy for the two databases that are supported."""

import pathlib

import sqlalchemy as sa
from sqlalchemy import event, exc

BUSY = 60.0
"""Seconds that a writer waits for a writer of another process."""


def parse(url: str) -> sa.URL:
    """The URL, if it names a file of SQLite or a PostgreSQL server."""
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise ValueError(
            f"database is {url!r}, which is no URL: use sqlite:///PATH or postgresql://..."
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(
            f"database is at {parsed.drivername}: SQLite (sqlite:///PATH) and PostgreSQL "
            "(postgresql://...) are supported"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ValueError("database is SQLite without a file, which loses all at the end: name one")
    return parsed


def make_file(path: pathlib.Path) -> None:
    """Makes the file of a SQLite database for its owner's eyes alone, unless it is there."""
    if not path.parent.is_dir():
        raise ValueError(f"file is {path}, and there is no folder {path.parent}: make it first")
    path.touch(mode=0o600)


def sqlite(url: sa.URL, begin: str, *pragmas: str, **pool) -> sa.Engine:
    """An engine on a SQLite file, whose transactions begin with `begin`."""
    engine = sa.create_engine(
        url,
        connect_args={"check_same_thread": False, "timeout": BUSY},
        poolclass=sa.QueuePool,
        pool_timeout=BUSY,
        hide_parameters=True,
        **pool,
    )

    @event.listens_for(engine, "connect")
    def _(connection, _record):
        connection.isolation_level = None  # transactions begin by the statement here
        for pragma in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA foreign_keys = ON",
            *pragmas,
        ):
            connection.execute(pragma).fetchall()

    @event.listens_for(engine, "begin")
    def _(connection):
        connection.exec_driver_sql(begin)

    return engine


def postgresql(url: sa.URL) -> sa.Engine:
    """An engine on a PostgreSQL server; a ValueError where the package for it is missing."""
    try:
        return sa.create_engine(
            url, pool_size=40, max_overflow=10, pool_pre_ping=True, hide_parameters=True
        )
    except ModuleNotFoundError as e:
        raise ValueError(
            f"database is on PostgreSQL, and the package {e.name} is missing: "
            "pip install 'rlhf_jax[postgresql]'"
        ) from e
