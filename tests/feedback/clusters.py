"""A PostgreSQL server of its own for tests, from Debian's packages, on a socket in its folder."""

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

PROGRAMS = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def missing() -> str:
    """The reason why there can be no server here; empty where there can."""
    if not PROGRAMS:
        return "PostgreSQL's programs are not in /usr/lib/postgresql (apt install postgresql)"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "root may not run PostgreSQL, and there is no user postgres"
    return ""


class Cluster:
    """A running server, which makes databases."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.made = 0

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def create(self, template: str = "template0") -> str:
        """The URL of a new database."""
        self.made += 1
        name = f"feedback{self.made}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as c:
            c.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self.url(name)


@contextlib.contextmanager
def run(durable: bool = False) -> Iterator[Cluster]:
    """A server that lives as long as the block; `durable` waits for the disk, as a real one does."""
    if reason := missing():
        pytest.skip(reason)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    options = f"-k {folder} -c listen_addresses='' -c max_connections=120"
    if not durable:
        options += " -c fsync=off"
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def call(program: str, *words: str) -> None:
        line = [*as_user, str(PROGRAMS[-1].parent / program), "-D", str(data), *words]
        with open(folder / f"{program}.log", "ab") as log:
            subprocess.run(line, check=True, cwd=folder, stdout=log, stderr=log)

    try:
        call("initdb", "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C")
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield Cluster(folder)
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
