"""Nothing lost, nothing double: people judge while the server is killed and replies are lost on the way."""

import json

import clusters
import pytest
import storm

from feedback.store.database import Database


def total(size: storm.Size) -> int:
    return size.judgements // size.wanted * size.wanted


def check(url: str, tmp_path, size: storm.Size, seed: int) -> storm.Storm:
    """One storm, and its checks."""
    with storm.blowing(tmp_path, size, seed, database=url) as blown:
        owner = blown.server.script("the owner", kind="owner")
        raw = owner.get("/api/export?kind=raw")
        db = Database(url)
        kinds = storm.verify(db, blown)
        db.close()
    assert kinds["judge"] - kinds["undo"] == total(size)
    keys = [json.loads(x)["key"] for x in raw.text.splitlines()]
    assert sorted(keys) == sorted(blown.sent)
    assert blown.proxy.dropped
    return blown


def test_a_small_storm(url, tmp_path):
    check(url, tmp_path, storm.SMALL, 1)


@pytest.mark.kills
def test_the_whole_storm_on_sqlite(tmp_path, capsys):
    blown = check(f"sqlite:///{tmp_path}/whole.db", tmp_path, storm.WHOLE, 2)
    with capsys.disabled():
        print(f"\nSQLite: {blown.figures()}")


@pytest.mark.kills
def test_the_whole_storm_on_postgresql(tmp_path, capsys):
    with clusters.run(durable=True) as cluster:
        blown = check(cluster.create(), tmp_path, storm.WHOLE, 2)
    with capsys.disabled():
        print(f"\nPostgreSQL: {blown.figures()}")
