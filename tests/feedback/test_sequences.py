"""Random sequences of what people do end as in a small model of the rules."""

import random

import model
import pytest
import sqlalchemy as sa
import world

from feedback.store import asking, items, judging, leasing, progress, schema
from feedback.store.judging import Answer
from feedback.store.leasing import Lease

WANTED = {"one": 1, "two": 1, "three": 2, "four": 3}
PEOPLE = ("ann", "bob", "cleo", "dan")
STEPS = 18


class Play:
    """The same steps in the database and in the model."""

    def __init__(
        self, c: sa.Connection, seed: int, judge=judging.judge, lease=leasing.lease
    ) -> None:
        self.c, self.random, self.seed = c, random.Random(seed), seed
        self.judge_, self.lease_ = judge, lease
        asking.set_state(c, "seed", str(seed))
        items.put(c, [world.pairs(1)[0] | {"id": x, "wanted": n} for x, n in WANTED.items()])
        self.ids = dict(c.execute(sa.select(schema.item.c.external, schema.item.c.id)).all())
        self.names = {v: k for k, v in self.ids.items()}
        self.who = {name: asking.add_annotator(c, name) for name in PEOPLE}
        self.model = model.Model(WANTED, world.PLAIN.park_after)
        self.tokens: list[str] = []  # of the model's leases
        self.sent: list[tuple] = []
        self.keys = iter(range(1000))

    def step(self) -> None:
        kinds = ["lease"] * 6 + ["judge"] * 6 + ["skip"] * 2 + ["undo"] * 3
        kinds += ["expire"] * 3 + ["again"] * 2 + ["give_back", "redo", "extend"]
        getattr(self, self.random.choice(kinds))()

    def key(self) -> str:
        return f"key{next(self.keys)}"

    def pick(self) -> int | None:
        """A lease, more often a late one."""
        if not self.tokens:
            return None
        return self.random.choice([*range(len(self.tokens)), *range(len(self.tokens))[-4:]])

    def lease(self, name: str = "") -> None:
        name = name or self.random.choice(PEOPLE)
        got = self.lease_(self.c, self.who[name], 900, world.PLAIN)
        held = self.model.holding(name)
        offers, why = self.model.offers(name)
        if held:
            assert isinstance(got, Lease)
            assert got.token == self.tokens[self.model.leases.index(held)]
            held.slot.expired = False
        elif offers:
            assert isinstance(got, Lease)
            item = self.names[got.item]
            assert item in offers
            self.note(got, name, item)
        else:
            assert got.why == why

    def note(self, got: Lease, name: str, item: str) -> None:
        self.model.give(name, item, self.model.free(item)[0])
        self.tokens.append(got.token)

    def judge(self, at: int | None = None) -> None:
        at = self.pick() if at is None else at
        if at is not None:
            degree = self.random.randint(-2, 2)
            self.send(("judge", at, self.key(), degree))

    def skip(self) -> None:
        if (at := self.pick()) is not None:
            self.send(("skip", at, self.key(), "broken"))

    def undo(self) -> None:
        if self.model.said:
            self.send(("undo", self.random.choice([*self.model.said]), self.key(), None))

    def redo(self) -> None:
        """An undo, and another answer under the new lease."""
        standing = [k for k, x in self.model.said.items() if x.kind == "judge" and not x.undone]
        if standing:
            self.send(("undo", self.random.choice(standing), self.key(), None))
            self.judge(len(self.tokens) - 1)

    def again(self) -> None:
        """Something that was sent before, as it was or with another body."""
        if not self.sent:
            return
        kind, at, key, body = self.random.choice(self.sent)
        if kind == "judge" and self.random.random() < 0.5:
            body = body + 1 if body < 2 else -2
        self.send((kind, at, key, body))

    def send(self, what: tuple) -> None:
        self.sent.append(what)
        kind, at, key, body = what
        if kind == "undo":
            before = len(self.model.leases)
            expected = self.model.undo(key, at)
            name = self.model.said[at].who
            got = judging.undo(self.c, self.who[name], key, at, world.PLAIN)
            if len(self.model.leases) > before:
                self.tokens.append(got.lease.token)
                assert got.lease.draft == {"comment": self.comment(at), "better": ""}
        else:
            held = self.model.leases[at]
            name, token = held.who, self.tokens[at]
            if kind == "judge":
                answer = Answer(token, {"degree": body}, comment=f"about {held.item}")
                got = self.judge_(self.c, self.who[name], key, answer, world.PLAIN)
            else:
                comment = f"about {held.item}"
                got = judging.skip(self.c, self.who[name], key, token, body, comment, world.PLAIN)
            expected = getattr(self.model, kind)(key, held, body)
        assert got.status == expected, what

    def comment(self, key: str) -> str:
        return f"about {self.model.said[key].item}"

    def expire(self) -> None:
        if (at := self.pick()) is not None:
            held = self.model.leases[at]
            holder = held.slot.holder
            if holder and not held.slot.done:
                held.slot.expired = True
                slot = schema.slot.c
                mine = (slot.item == self.ids[held.item], slot.annotator == self.who[holder])
                self.c.execute(sa.update(schema.slot).where(*mine).values(until=0))

    def give_back(self) -> None:
        if (at := self.pick()) is not None:
            held = self.model.leases[at]
            got = world.give_back(self.c, self.who[held.who], self.tokens[at])
            assert got == self.model.give_back(held)

    def extend(self) -> None:
        if (at := self.pick()) is not None:
            held = self.model.leases[at]
            got = leasing.extend(self.c, self.who[held.who], self.tokens[at], 60)
            mine = held.slot.holder == held.who and not held.slot.done
            assert got == (60 if mine else None)
            if mine:
                held.slot.expired = False

    def compare(self) -> None:
        c, judgement, slot = self.c, schema.judgement.c, schema.slot.c
        found = c.execute(
            sa.select(judgement.key, judgement.kind, judgement.annotator, judgement.item).order_by(
                judgement.id
            )
        )
        assert [tuple(x) for x in found] == [
            (key, x.kind, self.who[x.who], self.ids[x.item]) for key, x in self.model.said.items()
        ]
        standing = c.execute(
            sa.select(slot.item, slot.number, judgement.key)
            .join(schema.judgement, judgement.id == slot.done)
            .order_by(slot.item, slot.number)
        )
        assert [tuple(x) for x in standing] == [
            (self.ids[item], n + 1, x.done)
            for item in sorted(WANTED, key=self.ids.get)
            for n, x in enumerate(self.model.slots[item])
            if x.done
        ]
        states = dict(c.execute(sa.select(schema.item.c.id, schema.item.c.state)).all())
        assert states == {self.ids[x]: self.model.state(x) for x in WANTED}
        for name, who in self.who.items():
            slots = [x for those in self.model.slots.values() for x in those]
            done = sum(x.done is not None and x.holder == name for x in slots)
            assert progress.counts(c, who).number == done + 1
            mine = {k for k, x in self.model.said.items() if x.who == name and not x.undone}
            mine -= {k for k, x in self.model.said.items() if x.kind == "undo"}
            assert {x.key for x in judging.history(c, who)} == mine


def play(db, seed: int, steps: int = STEPS, **faults) -> None:
    """One sequence, of which nothing stays."""

    class Over(Exception):
        pass

    try:
        with db.write() as c:
            game = Play(c, seed, **faults)
            for _ in range(steps):
                game.step()
            game.compare()
            raise Over
    except Over:
        pass


@pytest.mark.parametrize("part", range(10))
def test_a_hundred_sequences_are_as_in_the_model(new_db, part):
    db = new_db("sqlite")
    for seed in range(100 * part, 100 * part + 100):
        play(db, seed)


def test_sequences_on_postgresql_are_as_in_the_model(new_db):
    db = new_db("postgresql")
    for seed in range(1000, 1030):
        play(db, seed)
