"""Databases of both kinds, and a browser with people at it."""

import shutil

import browsers
import clusters
import pytest
import serving

from feedback.store import asking, database

KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def cluster():
    """A PostgreSQL server; skips, aloud, where there is none."""
    with clusters.run() as cluster:
        yield cluster


@pytest.fixture
def new_url(request, tmp_path):
    """A function of a kind of database that makes an empty one: its URL."""
    made = iter(range(100))

    def new(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/feedback{next(made)}.db"
        return request.getfixturevalue("cluster").create()

    return new


@pytest.fixture(params=KINDS)
def url(request, new_url):
    """An empty database of each kind."""
    return new_url(request.param)


@pytest.fixture(scope="session")
def templates(tmp_path_factory, request):
    """A function of a kind of database: where one with empty tables is, which is copied for each test."""
    made = {}

    def template(kind: str) -> str:
        if kind not in made:
            if kind == "sqlite":
                made[kind] = f"sqlite:///{tmp_path_factory.mktemp('template')}/feedback.db"
            else:
                made[kind] = request.getfixturevalue("cluster").create()
            db = database.Database(made[kind])
            db.upgrade()
            with db.write() as c:  # so that each run is the same
                asking.set_state(c, "seed", "tests")
            db.close()
        return made[kind]

    return template


@pytest.fixture
def new_db(request, templates, tmp_path):
    """A function of a kind of database that opens a new one with its tables."""
    dbs = []

    def new(kind: str) -> database.Database:
        template = templates(kind)
        if kind == "sqlite":
            url = f"sqlite:///{tmp_path}/tables{len(dbs)}.db"
            shutil.copy(template.removeprefix("sqlite:///"), url.removeprefix("sqlite:///"))
        else:
            name = template.split("@/")[1].split("?")[0]
            url = request.getfixturevalue("cluster").create(name)
        dbs.append(database.Database(url))
        return dbs[-1]

    yield new
    for db in dbs:
        db.close()


@pytest.fixture(params=KINDS)
def db(request, new_db):
    """A database with its tables, of each kind."""
    return new_db(request.param)


@pytest.fixture(scope="module")
def browser():
    """A browser; skips, aloud, where there is none. Its loop runs on, so no other module has it."""
    with browsers.run() as browser:
        yield browser


@pytest.fixture
def person(browser):
    """A function of a server, a name and settings of the browser: a person who has opened their link."""
    people = []

    def sit(server, name: str, **context) -> browsers.Person:
        people.append(browsers.Person(browser, server, name, **context))
        return people[-1]

    yield sit
    for one in people:
        one.close()
        assert (one.foreign, one.dialogs, one.faults) == ([], [], [])


@pytest.fixture
def server(tmp_path):
    """A server with three pairs of work and nothing else."""
    settings = {"training_count": 0, "gold_share": 0, "repeat_share": 0}
    with serving.serving(tmp_path, **settings) as server:
        server.put(serving.pairs(3))
        yield server
