"""A storm: people judge while the server is killed and replies are lost; and what must be true then."""

import collections
import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import signal
import threading
import time
import uuid
from typing import Any

import dropping
import serving
import sqlalchemy as sa
import world

from feedback.store import schema
from feedback.store.database import Database


@dataclasses.dataclass(frozen=True)
class Size:
    """How much happens."""

    clients: int
    judgements: int
    kills: int
    wanted: int = 2
    dropped: float = 0.02
    walkers: float = 0.1
    undone: float = 0.03


SMALL = Size(clients=8, judgements=200, kills=3)
WHOLE = Size(clients=50, judgements=5000, kills=20)


@dataclasses.dataclass
class Sent:
    """What a client sent under a key, and what it was told."""

    who: str
    choice: dict | None
    status: int = 0
    undone_by: str = ""


class Storm:
    """People, a server, and a proxy between them."""

    def __init__(
        self, size: Size, server: serving.Server, proxy: dropping.Proxy, seed: int
    ) -> None:
        self.size, self.server, self.proxy = size, server, proxy
        self.random = random.Random(seed)
        self.sent: dict[str, Sent] = {}
        self.late: list[tuple[serving.Client, str, str]] = []
        self.up, self.news = threading.Event(), threading.Condition()
        self.version = self.acknowledged = 0
        self.failed: list[BaseException] = []
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.cpu = 0.0
        self.up.set()

    def happened(self, acknowledged: int = 0) -> None:
        """Tells those who wait that something has changed."""
        with self.news:
            self.version += 1
            self.acknowledged += acknowledged
            self.news.notify_all()

    def call(self, token: str, method: str, path: str, body: Any = None) -> tuple[int, Any, dict]:
        """Sends a request until there is a reply, as the page does."""
        data = None if body is None else json.dumps(body).encode()
        given = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        while True:
            self.up.wait()
            if self.failed:
                raise RuntimeError("somebody else failed")
            began = time.perf_counter()
            there = http.client.HTTPConnection("127.0.0.1", self.proxy.port)
            try:
                with contextlib.closing(there):
                    there.request(method, path, data, given)
                    got = there.getresponse()
                    said = got.read()
            except (OSError, http.client.HTTPException):
                continue
            self.seconds[path.split("/")[2]].append(time.perf_counter() - began)
            assert got.status in (200, 201, 202, 204), (got.status, said)
            return got.status, json.loads(said) if said else None, dict(got.getheaders())

    def person(self, name: str, token: str, leaves_after: int | None, seed: int) -> None:
        """Judges until there is nothing to judge; one who leaves does so with an item in hand."""
        dice = random.Random(seed)
        judged = 0
        while True:
            version = self.version
            status, got, headers = self.call(token, "POST", "/api/lease")
            if status == 204 and headers["why"] == "done":
                return
            if status == 204:
                with self.news:
                    self.news.wait_for(lambda seen=version: self.version != seen or self.failed)
                continue
            if judged == leaves_after:
                self.leave(name)
                if dice.random() < 0.5:
                    self.late.append((name, token, got["lease"]))
                return
            key = self.judge(name, token, got["lease"], dice)
            judged += 1
            if dice.random() < self.size.undone:
                undo, path = (
                    str(uuid.UUID(int=dice.getrandbits(128))),
                    f"/api/judgements/{key}/undo",
                )
                self.sent[undo] = Sent(name, None)
                self.sent[key].undone_by = undo
                self.sent[undo].status = self.call(token, "POST", path, {"key": undo})[0]
                self.happened()

    def judge(self, name: str, token: str, lease: str, dice: random.Random) -> str:
        key = str(uuid.UUID(int=dice.getrandbits(128)))
        choice = {"degree": dice.randint(-2, 2)}
        self.sent[key] = Sent(name, choice)
        body = {"lease": lease, "choice": choice, "comment": f"{name} says {dice.random()}"}
        self.sent[key].status = self.call(token, "PUT", f"/api/judgements/{key}", body)[0]
        self.happened(1)
        return key

    def leave(self, name: str) -> None:
        """Lets the time of a person's lease run out."""
        who = sa.select(schema.annotator.c.id).where(schema.annotator.c.name == name)
        mine = (schema.slot.c.annotator == who.scalar_subquery(), schema.slot.c.done.is_(None))
        with self.server.writing() as c:
            c.execute(sa.update(schema.slot).where(*mine).values(until=0))
        self.happened()

    def kill(self, moments: list[int]) -> None:
        """Kills the server as numbers of judgements are acknowledged, and starts it again."""
        for moment in moments:
            with self.news:
                self.news.wait_for(lambda at=moment: self.acknowledged >= at or self.failed)
            self.up.clear()
            self.cpu += self.spent()
            assert self.server.stop(signal.SIGKILL) == -signal.SIGKILL
            self.begin()
            self.up.set()

    def begin(self) -> None:
        self.server.start()
        self.started = cpu_seconds(self.server.process.pid)

    def spent(self) -> float:
        """Seconds of CPU since the server's start."""
        return cpu_seconds(self.server.process.pid) - self.started

    def run(self) -> None:
        size = self.size
        self.started = cpu_seconds(self.server.process.pid)
        tokens = {f"person {n}": self.server.invite(f"person {n}") for n in range(size.clients)}
        self.server.put(world.pairs(size.judgements // size.wanted, wanted=size.wanted))
        moments = sorted(self.random.sample(range(1, size.judgements), size.kills))
        leaving = self.random.sample(sorted(tokens), max(1, round(size.walkers * size.clients)))
        each = size.judgements // size.clients
        jobs = [(self.kill, moments)]
        for name, token in tokens.items():
            leaves = self.random.randrange(each // 2) if name in leaving else None
            jobs.append((self.person, name, token, leaves, self.random.getrandbits(32)))
        threads = [threading.Thread(target=self.guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, token, lease in self.late:  # they come back
            self.guarded(self.judge, name, token, lease, self.random)
        self.cpu += self.spent()
        if self.failed:
            raise self.failed[0]

    def figures(self) -> str:
        """The server's CPU a request, and how long people waited for replies (in milliseconds)."""
        requests = self.proxy.passed + self.proxy.dropped
        said = [f"{requests} requests, {1000 * self.cpu / requests:.2f} ms of CPU each"]
        for name, seconds in self.seconds.items():
            ordered = sorted(seconds)
            p50, p99 = (1000 * ordered[int(len(ordered) * p)] for p in (0.5, 0.99))
            said.append(f"{name} p50 {p50:.0f} ms, p99 {p99:.0f} ms")
        return "; ".join(said)

    def guarded(self, call, *args) -> None:
        try:
            call(*args)
        except BaseException as e:
            self.failed.append(e)
            self.happened()


def cpu_seconds(process: int) -> float:
    """User and system seconds that a process has used."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def verify(db: Database, storm: Storm) -> dict[str, int]:
    """Checks that nothing is lost and nothing double; how many rows there are of each kind."""
    item = schema.item.c
    with db.read() as c:
        names = dict(c.execute(sa.select(schema.annotator.c.id, schema.annotator.c.name)).all())
        rows = c.execute(sa.select(schema.judgement)).all()
        slots = c.execute(sa.select(schema.slot)).all()
        items = c.execute(sa.select(item.id, item.wanted, item.state)).all()
    keys = collections.Counter(x.key for x in rows)
    by_key = {x.key: x for x in rows}
    lost = [key for key, sent in storm.sent.items() if sent.status and key not in keys]
    assert not lost, f"{len(lost)} acknowledged keys are lost"
    double = [key for key, n in keys.items() if n > 1]
    assert not double, f"{len(double)} keys are double"
    assert set(keys) <= set(storm.sent), "there are judgements that nobody sent"
    for key, sent in storm.sent.items():
        row = by_key[key]
        assert (names[row.annotator], row.choice) == (sent.who, sent.choice), key
        kinds = {201: ("judge", "undo"), 202: ("surplus",), 200: ("judge", "surplus", "undo")}
        assert row.kind in kinds[sent.status], (key, row.kind, sent.status)
    undone = {x.undoes for x in rows if x.kind == "undo"}
    stands = {x.id for x in rows if x.kind == "judge"} - undone
    done = [x.done for x in slots if x.done is not None]
    assert sorted(done) == sorted(stands), "the judgements that stand are not those of the slots"
    by_id = {x.id: x for x in rows}
    for x in slots:
        if x.done is not None:
            said = by_id[x.done]
            same = (said.item, said.annotator) == (x.item, x.annotator)
            assert same, f"slot {x.id} has a judgement of somebody else"
    people = collections.defaultdict(list)
    for x in slots:
        people[x.item].append(x.annotator if x.done is not None else None)
    for x in items:
        assert len(people[x.id]) == x.wanted, f"item {x.id} has not its number of slots"
        assert None not in people[x.id], f"item {x.id} has not its number of judgements"
        assert len(set(people[x.id])) == x.wanted, f"item {x.id} was judged twice by one person"
        assert x.state == "closed", f"item {x.id} is {x.state}"
    late = {name for name, *_ in storm.late}
    surplus = [x for x in rows if x.kind == "surplus"]
    assert {names[x.annotator] for x in surplus} <= late, "an answer in time was put aside"
    return collections.Counter(x.kind for x in rows)


@contextlib.contextmanager
def blowing(folder: pathlib.Path, size: Size, seed: int, path: str = "", **settings):
    """A storm that is over, with its server still there; `path` holds faults to plant."""
    server = serving.Server(folder, gold_share=0.0, repeat_share=0.0, **settings)
    if path:
        server.environment["PYTHONPATH"] = f"{path}:{serving.ROOT}"
    server.start()
    try:
        with dropping.running(server.port, size.dropped, seed) as proxy:
            storm = Storm(size, server, proxy, seed)
            storm.run()
            yield storm
    finally:
        server.stop()
