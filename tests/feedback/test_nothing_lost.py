"""Nothing lost, nothing double: people judge while the server is killed and replies are lost on the way."""

import importlib.util
import json

import pytest
import storm

from feedback.database import Database


def total(size: storm.Size) -> int:
    return size.judgements // size.wanted * size.wanted


def check(new_url, tmp_path, kind: str, size: storm.Size, seed: int) -> storm.Storm:
    """One storm, and its checks."""
    url = new_url(kind)
    with storm.blowing(tmp_path, size, seed, database=url) as blown:
        owner = blown.server.script("the owner", kind="owner")
        raw = owner.get("/api/export?kind=raw")
        db = Database(url)
        kinds = storm.verify(db, blown)
        db.close()
    assert kinds["judge"] - kinds["undo"] == total(size)
    if importlib.util.find_spec("feedback.export"):
        keys = [json.loads(x)["key"] for x in raw.text.splitlines()]
        assert sorted(keys) == sorted(blown.sent)
    assert blown.proxy.dropped
    return blown


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_small_storm(new_url, tmp_path, kind):
    check(new_url, tmp_path, kind, storm.SMALL, 1)


@pytest.mark.kills
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_whole_storm(new_url, tmp_path, kind, capsys):
    blown = check(new_url, tmp_path, kind, storm.WHOLE, 2)
    requests = blown.proxy.passed + blown.proxy.dropped
    with capsys.disabled():
        print(
            f"\n{kind}: {1000 * blown.cpu / requests:.2f} ms of CPU a request, {requests} requests"
        )
        for name, seconds in blown.seconds.items():
            ordered = sorted(seconds)
            p50, p99 = (1000 * ordered[int(len(ordered) * p)] for p in (0.5, 0.99))
            print(f"  {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, of {len(ordered)}")
