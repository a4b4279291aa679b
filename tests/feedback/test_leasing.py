"""Leases: who gets which item, for how long, and why somebody gets none."""

import pytest
import sqlalchemy as sa
import world

from feedback.settings import Settings
from feedback.store import asking, database, drafts, events, items, leasing, picking, schema, tokens
from feedback.store.leasing import Lease, Waiting


def expire(db, held: Lease) -> None:
    with db.write() as c:
        lease = tokens.hashed(held.token)
        c.execute(sa.update(schema.slot).where(schema.slot.c.lease == lease).values(until=0))


def work(db, who: int, settings: Settings, most: int = 1000) -> list[Lease]:
    """The leases that a person gets who judges all."""
    seen = []
    while len(seen) < most and isinstance(held := world.lease(db, who, settings), Lease):
        seen.append(held)
        world.judge(db, who, held, settings=settings)
    return seen


def purposes(db, seen: list[Lease]) -> list[str]:
    with db.read() as c:
        return [items.get(c, x.item).purpose for x in seen]


def test_a_lease_shows_the_texts_and_no_more(db):
    secret = {"policy": "canary-policy", "sampling": {"temperature": "canary-sampling"}}
    pair = {
        "id": "canary-id",
        "prompt": [{"role": "user", "content": "why?"}],
        "responses": [{"text": "one", **secret}, {"text": "two", **secret}],
        "question": "Which is better?",
        "metadata": {"canary-metadata": 1},
    }
    world.put(db, [pair])
    (who,) = world.people(db, "canary-name")
    held = world.lease(db, who)
    assert isinstance(held, Lease)
    said = held.as_json()
    assert "canary" not in repr(said)
    assert set(said) == {
        *("lease", "seconds", "item", "number", "of", "purpose", "draft", "guidelines_version"),
    }
    assert said["item"].pop("responses") in (
        [{"text": "one"}, {"text": "two"}],
        [{"text": "two"}, {"text": "one"}],
    )
    assert said["item"] == {
        "kind": "pair",
        "scale": None,
        "question": "Which is better?",
        "prompt": [{"role": "user", "content": "why?"}],
    }
    assert (held.number, held.of, held.purpose, held.seconds) == (1, 1, "work", 900)


def test_a_reload_shows_the_same_lease_and_the_database_keeps_only_its_hash(db):
    world.put(db, world.pairs(20))
    (who,) = world.people(db, "ann")
    held = world.lease(db, who)
    assert world.lease(db, who) == held
    expire(db, held)
    assert world.lease(db, who) == held  # nobody took it
    with db.read() as c:
        for table in schema.metadata.sorted_tables:
            assert held.token not in repr(c.execute(sa.select(table)).all())
        assert c.scalar(sa.select(schema.slot.c.until).where(schema.slot.c.annotator == who)) > 0


def test_an_expired_lease_goes_to_the_next_person_and_its_holder_gets_another_item(db):
    world.put(db, world.pairs(2))
    ann, bob, cleo = world.people(db, "ann", "bob", "cleo")
    first, second = world.lease(db, ann), world.lease(db, bob)
    assert first.item != second.item
    assert world.lease(db, cleo) == Waiting("waiting", 0, 2)
    expire(db, first)
    third = world.lease(db, cleo)
    assert third.item == first.item
    assert third.token != first.token
    with db.write() as c:
        assert leasing.extend(c, ann, first.token, 60) is None
        assert leasing.extend(c, cleo, third.token, 60) == 60
        assert not world.give_back(c, ann, first.token)
        with pytest.raises(LookupError, match="unknown"):
            leasing.extend(c, ann, third.token, 60)
    assert world.lease(db, ann) == Waiting("waiting", 0, 2)
    with db.write() as c:
        assert world.give_back(c, cleo, third.token)
    assert world.lease(db, ann).item == first.item


def test_every_item_gets_its_number_of_different_people_and_then_all_are_done(db):
    world.put(db, world.pairs(7, wanted=3))
    people = world.people(db, *"abcde")
    for _ in range(20):  # people come and go
        for who in people:
            held = world.lease(db, who)
            if isinstance(held, Lease):
                world.judge(db, who, held)
    assert {world.lease(db, who).why for who in people} == {"done"}
    with db.read() as c:
        slots = c.execute(sa.select(schema.slot.c.item, schema.slot.c.annotator)).all()
        assert len({tuple(x) for x in slots}) == len(slots) == 21
        assert None not in {x.annotator for x in slots}
        assert set(c.scalars(sa.select(schema.item.c.state))) == {"closed"}
        assert None not in set(c.scalars(sa.select(schema.annotator.c.finished)))
    with db.write() as c:  # asked again: who has not judged it gets it
        assert asking.ask_again(c, slots[0].item) == 4
    again = [who for who in people if isinstance(world.lease(db, who), Lease)]
    assert again == [next(x for x in people if x not in {y.annotator for y in slots[:3]})] or again
    with db.read() as c:
        there = sa.select(schema.annotator.c.finished).where(schema.annotator.c.id == again[0])
        assert c.scalar(there) is None


def test_people_come_in_orders_of_their_own_and_items_begun_get_finished(new_db):
    db = new_db("sqlite")
    world.put(db, world.pairs(400, wanted=2))
    ann, bob = world.people(db, "ann", "bob")
    one = [x.item for x in work(db, ann, world.PLAIN, 60)]
    two = [x.item for x in work(db, bob, world.PLAIN, 60)]
    assert one != two
    assert one != sorted(one)
    assert len({*one} & {*two}) >= 25  # of 60; 9 by chance
    shown = sa.select(schema.lease.c.item, schema.lease.c.shown)
    with db.read() as c:
        first = [x.shown[0] for x in c.execute(shown)]
    assert 35 <= sum(first) <= 85  # of 120, each of the two first


def test_who_comes_next_depends_on_the_database_alone(new_db):
    seen = []
    for _ in range(2):
        db = new_db("sqlite")
        with db.write() as c:
            asking.set_state(c, "seed", "one")
        world.put(db, world.pairs(50))
        world.put(db, [x | {"id": x["id"] + "g"} for x in world.pairs(5, purpose="gold", gold="a")])
        people = world.people(db, "ann", "bob")
        settings = Settings(gold_share=0.2, repeat_share=0.2)
        seen.append([(x.item, x.responses) for who in people for x in work(db, who, settings)])
    assert seen[0] == seen[1]


def test_training_comes_first_and_decides_about_work(db):
    gold = {"purpose": "training", "gold": "a", "reason": "the first is right"}
    world.put(db, world.pairs(12, **gold))
    world.put(db, [x | {"id": f"work {x['id']}"} for x in world.pairs(3)])
    settings = Settings(gold_share=0, repeat_share=0, training_count=10, training_pass=0.7)
    good, bad = world.people(db, "good", "bad")
    for who, right in ((good, 7), (bad, 6)):
        for n in range(10):
            held = world.lease(db, who, settings)
            assert (held.purpose, held.number, held.of) == ("training", n + 1, 10)
            a = -1 if held.responses[0].startswith("first") else 1
            degree = a if n < right else -a
            told = world.judge(db, who, held, {"degree": degree}, settings=settings)
            assert (told.status, told.right) == (201, n < right)
            assert (told.gold, told.reason) == ({"degree": a}, "the first is right")
            assert told.training == ("going" if n < 9 else "passed" if right == 7 else "failed")
    assert world.lease(db, good, settings).purpose == "work"
    assert world.lease(db, bad, settings).why == "training"
    with db.read() as c:
        decided = [(x.name, x.detail) for x in events.latest(c) if x.kind == "training"]
    assert decided == [("bad", {"result": "failed"}), ("good", {"result": "passed"})]


def test_without_training_items_there_is_work_at_once_and_skips_count_as_wrong(db):
    world.put(db, world.pairs(2))
    ann, bob = world.people(db, "ann", "bob")
    assert world.lease(db, ann).purpose == "work"
    world.put(db, [x | {"id": f"t{x['id']}"} for x in world.pairs(2, purpose="training", gold="a")])
    settings = Settings(training_pass=0.6)
    for _ in range(2):
        held = world.lease(db, bob, settings)
        assert held.purpose == "training"
        told = world.skip(db, bob, held)
    assert told.training == "failed"
    assert world.lease(db, bob, settings).why == "training"


def test_hidden_gold_and_repeats_look_like_work_at_their_shares(new_db):
    db = new_db("sqlite")
    world.put(db, world.pairs(300, wanted=2))
    gold = {"purpose": "gold", "gold": "b"}
    world.put(db, [x | {"id": f"gold {x['id']}"} for x in world.pairs(30, **gold)])
    ann, bob = world.people(db, "ann", "bob")
    seen = work(db, ann, Settings(gold_share=0.05, repeat_share=0.05), 200)
    kinds = purposes(db, seen)
    assert 3 <= kinds.count("gold") <= 22
    assert 3 <= kinds.count("repeat") <= 22
    assert {x.purpose for x in seen} == {"work"}
    assert [x.number for x in seen] == [*range(1, 201)]
    with db.read() as c:
        for n, (held, kind) in enumerate(zip(seen, kinds, strict=True)):
            if kind == "repeat":
                old = items.get(c, held.item).repeats
                before = [x.item for x in seen[:n]].index(old)
                assert n - before > 10  # ten others at least in between
                assert sorted(held.responses) == sorted(seen[before].responses)
        repeats = sa.select(schema.item.c.repeats).where(schema.item.c.purpose == "repeat")
        assert len({*c.scalars(repeats)}) == kinds.count("repeat")  # none twice
    mine = {x.item for x, kind in zip(seen, kinds, strict=True) if kind == "repeat"}
    assert not mine & {x.item for x in work(db, bob, world.PLAIN, 400)}


def test_a_person_never_gets_the_same_gold_item_twice(new_db):
    db = new_db("sqlite")
    world.put(db, world.pairs(40))
    gold = world.pairs(3, purpose="gold", gold="b")
    world.put(db, [x | {"id": f"gold {x['id']}"} for x in gold])
    (ann,) = world.people(db, "ann")
    seen = work(db, ann, Settings(gold_share=0.9, repeat_share=0))
    assert purposes(db, seen).count("gold") == 3
    assert len({x.item for x in seen}) == len(seen) == 43


def test_pausing_stops_leases_and_not_answers(db):
    world.put(db, world.pairs(2))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann)
    with db.write() as c:
        asking.pause(c, True)
    assert world.lease(db, ann) == Waiting("paused", 0, 2)
    assert world.judge(db, ann, held).status == 201
    with db.write() as c:
        asking.pause(c, False)
    assert world.lease(db, ann).number == 2


def test_three_skips_park_an_item_until_the_owner_takes_it_up(db):
    world.put(db, world.pairs(1))
    people = world.people(db, *"abcd")
    keys = [world.key() for _ in people]
    for who, key in zip(people[:3], keys, strict=False):
        assert world.skip(db, who, world.lease(db, who), "upsetting", key).status == 201
        assert world.lease(db, who).why == "done"
    assert world.lease(db, people[3]).why == "done"
    with db.write() as c:
        assert items.get(c, 1).state == "parked"
        asking.take_up(c, 1)
    held = world.lease(db, people[3])
    assert held.item == 1
    assert world.skip(db, people[3], held).status == 201  # a fourth
    with db.read() as c:
        assert items.get(c, 1).state == "parked"
        told = [(x.kind, x.external) for x in events.latest(c)]
    assert told[:3] == [(x, "pair0") for x in ("parked", "open", "parked")]
    assert world.undo(db, people[0], keys[0]).lease.item == 1


def test_drafts_survive_an_expired_lease_and_a_skip(db):
    world.put(db, world.pairs(1))
    ann, bob = world.people(db, "ann", "bob")
    held = world.lease(db, ann)
    assert held.draft is None
    text = "five hundred words \x00 \ud83d 🙂"
    with db.write() as c:
        drafts.save(c, ann, held.item, "no", "")
        drafts.save(c, ann, held.item, text, "better")
    assert world.lease(db, ann).draft == {"comment": text, "better": "better"}
    expire(db, held)
    other = world.lease(db, bob)
    assert other.draft is None
    with db.write() as c:
        world.give_back(c, bob, other.token)
    again = world.lease(db, ann)
    assert again.draft == {"comment": text, "better": "better"}
    key = world.key()
    world.skip(db, ann, again, "broken", key, comment="why not")
    assert world.undo(db, ann, key).lease.draft == {"comment": "why not", "better": "better"}


def test_the_past_of_a_lease_can_be_shown_to_its_person_alone(db):
    world.put(db, world.pairs(1))
    ann, bob = world.people(db, "ann", "bob")
    held = world.lease(db, ann)
    world.judge(db, ann, held)
    with db.read() as c:
        assert leasing.shown(c, ann, held.token).responses == held.responses
        assert leasing.shown(c, bob, held.token) is None


def test_an_unknown_person_gets_nothing(db):
    with pytest.raises(LookupError, match="annotator 7 is unknown"):
        world.lease(db, 7)


def test_many_people_at_once_get_one_slot_each(db):
    world.put(db, world.pairs(10, wanted=2))
    people = world.people(db, *map(str, range(20)))
    got = {}

    def one(who):
        got[who] = world.lease(db, who)

    for _ in range(3):
        assert world.together(*(lambda who=who: one(who) for who in people)) == []
        held = [x.token for x in got.values() if isinstance(x, Lease)]
        assert len(held) == 20
        assert sorted(x.item for x in got.values()) == sorted([*range(1, 11)] * 2)


def test_people_at_once_never_wait_for_each_other_for_ever(new_db, monkeypatch):
    """A window of one slot, so that nearly everybody has to look at all slots, each in another order."""
    db = new_db("postgresql")
    monkeypatch.setattr(picking, "_LEASE", picking._lease(1))
    world.put(db, world.pairs(6, wanted=2))
    people = world.people(db, *map(str, range(12)))
    for _ in range(10):
        calls = (lambda who=who: world.lease(db, who) for who in people)
        assert world.together(*calls) == []
        held = [world.lease(db, who) for who in people]
        assert [x for x in held if not isinstance(x, Lease)] == []
        with db.write() as c:
            for who, lease in zip(people, held, strict=True):
                assert world.give_back(c, who, lease.token)


def test_two_tabs_may_keep_the_first_draft_at_once(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann)

    def keep():
        with db.write() as c:
            drafts.save(c, ann, held.item, "text", "")

    assert world.together(*[keep] * 6) == []
    assert world.lease(db, ann).draft == {"comment": "text", "better": ""}


def test_two_windows_of_one_person_show_one_lease(db):
    world.put(db, world.pairs(10))
    (ann,) = world.people(db, "ann")
    got = []
    calls = [lambda: got.append(world.lease(db, ann))] * 8
    assert world.together(*calls) == []
    assert len({x.token for x in got}) == 1
    with db.read() as c:
        assert database.state(c)["secret"]
