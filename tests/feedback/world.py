"""A small world for tests of the store: items, people, and what they say."""

import threading
import uuid
from collections.abc import Callable

import sqlalchemy as sa

from feedback.settings import Settings
from feedback.store import asking, holding, items, judging, leasing
from feedback.store.database import Database
from feedback.store.judging import Answer, Outcome
from feedback.store.leasing import Lease

PLAIN = Settings(gold_share=0, repeat_share=0)
"""Settings without hidden items."""


def pairs(n: int, **fields) -> list[dict]:
    """Items that ask for one of two responses."""
    return [
        {"id": f"pair{i}", "prompt": f"prompt {i}", "responses": [f"first {i}", f"second {i}"]}
        | fields
        for i in range(n)
    ]


def key() -> str:
    """A new key of a client."""
    return str(uuid.uuid4())


def put(db: Database, those: list[dict]) -> None:
    with db.write() as c:
        items.put(c, those)


def people(db: Database, *names: str) -> list[int]:
    with db.write() as c:
        return [asking.add_annotator(c, name) for name in names]


def lease(db: Database, who: int, settings: Settings = PLAIN, seconds: float = 900):
    with db.write() as c:
        return leasing.lease(c, who, seconds, settings)


def judge(
    db: Database, who: int, held: Lease, said: dict | None = None, key_: str = "", **more
) -> Outcome:
    settings = more.pop("settings", PLAIN)
    session = more.pop("session", None)
    with db.write() as c:
        answer = Answer(held.token, said or {"degree": 1}, **more)
        return judging.judge(c, who, key_ or key(), answer, settings, session)


def skip(db: Database, who: int, held: Lease, reason="broken", key_: str = "", **more) -> Outcome:
    with db.write() as c:
        return judging.skip(c, who, key_ or key(), held.token, reason, settings=PLAIN, **more)


def undo(db: Database, who: int, of: str, key_: str = "", **more) -> Outcome:
    with db.write() as c:
        return judging.undo(c, who, key_ or key(), of, settings=PLAIN, **more)


def judged(db: Database, n: int, person: str = "person") -> list[str]:
    """Keys of the judgements of one person on as many pairs."""
    put(db, pairs(n))
    (who,) = people(db, person)
    keys = [key() for _ in range(n)]
    for one in keys:
        held = lease(db, who)
        if isinstance(held, Lease):
            judge(db, who, held, key_=one)
    return keys


def together(*calls: Callable[[], object]) -> list[BaseException]:
    """Runs all at the same time, one thread each; what they raised."""
    start, raised = threading.Barrier(len(calls)), []

    def run(call):
        start.wait()
        try:
            call()
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def give_back(c: sa.Connection, annotator: int, token: str) -> bool:
    """Frees the slot of a lease, as a skip does; False where it was no longer this person's."""
    return holding.free(c, holding.find(c, annotator, token).slot, annotator)
