"""Judgements: kept once each, in the item's order, late ones beside the others, undone by further rows."""

import pytest
import sqlalchemy as sa
import world

from feedback.store import answers, asking, items, judging, schema
from feedback.store.judging import Answer


def row(db, key: str) -> sa.Row:
    with db.read() as c:
        return c.execute(sa.select(schema.judgement).where(schema.judgement.c.key == key)).one()


def late(db, people) -> tuple:
    """A lease of the first person, whose only item the second one has by now."""
    held = world.lease(db, people[0])
    with db.write() as c:
        c.execute(
            sa.update(schema.slot).where(schema.slot.c.annotator == people[0]).values(until=0)
        )
    return held, world.lease(db, people[1])


def test_what_was_said_on_the_screen_is_kept_with_the_order_and_turned_to_the_items(db):
    world.put(db, world.pairs(40))
    (ann,) = world.people(db, "ann")
    seen = set()
    for n in range(40):
        held, degree = world.lease(db, ann), n % 5 - 2
        more = {"differences": n % 2 == 0, "visible_ms": 1234, "page_version": "7"}
        assert world.judge(db, ann, held, {"degree": degree}, f"k{n}", **more).status == 201
        said = row(db, f"k{n}")
        first = held.responses[0].split()[0]
        assert said.shown == ([0, 1] if first == "first" else [1, 0])
        assert said.choice == {"degree": degree}
        assert said.degree == (-degree if first == "first" else degree)
        assert said.preference == ("tie" if degree == 0 else "a" if said.degree > 0 else "b")
        assert (said.differences, said.visible_ms, said.page_version) == (n % 2 == 0, 1234, "7")
        assert said.server_ms >= 0
        seen.add((first, degree))
    assert len(seen) == 10  # all degrees in both orders


def test_both_bad_is_no_tie(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    world.judge(db, ann, world.lease(db, ann), {"both_bad": True}, "k")
    assert (row(db, "k").preference, row(db, "k").degree) == ("both_bad", None)


def test_ratings_and_rankings(db):
    world.put(
        db,
        [
            {"id": "thumb", "prompt": "p", "responses": ["x"]},
            {"id": "star", "prompt": "p", "responses": ["x"], "scale": "stars"},
            {"id": "rank", "prompt": "p", "responses": ["w", "x", "y", "z"], "kind": "ranking"},
        ],
    )
    (ann,) = world.people(db, "ann")
    for _ in range(3):
        held = world.lease(db, ann)
        if held.kind == "ranking":
            by = {"w": 3, "x": 1, "y": 3, "z": 2}
            said = {"ranks": [by[x] for x in held.responses]}
        else:
            said = {"rating": 0 if held.scale == "thumbs" else 4}
        world.judge(db, ann, held, said, held.scale or held.kind)
    assert row(db, "thumbs").rating == 0
    assert row(db, "stars").rating == 4
    assert row(db, "ranking").ranks == [3, 1, 3, 2]


PAIR = ("pair", None, [0, 1])
WRONG = (
    (*PAIR, {"degree": 3}),
    (*PAIR, {"degree": 1.0}),
    (*PAIR, {"degree": True}),
    (*PAIR, {"degree": 1, "both_bad": True}),
    (*PAIR, {"both_bad": False}),
    (*PAIR, {"both_bad": 1}),
    (*PAIR, {"rating": 1}),
    (*PAIR, {}),
    (*PAIR, None),
    (*PAIR, [1]),
    ("single", "thumbs", [0], {"rating": 2}),
    ("single", "thumbs", [0], {"rating": True}),
    ("single", "stars", [0], {"rating": 0}),
    ("single", "stars", [0], {"degree": 1}),
    ("ranking", None, [2, 0, 1], {"ranks": [1, 2]}),
    ("ranking", None, [2, 0, 1], {"ranks": [2, 2, 3]}),
    ("ranking", None, [2, 0, 1], {"ranks": [1, 2, 4]}),
    ("ranking", None, [2, 0, 1], {"ranks": "123"}),
    ("ranking", None, [2, 0, 1], {"ranks": None}),
)


@pytest.mark.parametrize("case", WRONG, ids=[*map(str, range(len(WRONG)))])
def test_a_choice_that_the_item_does_not_take_is_refused(case):
    with pytest.raises(ValueError, match="choice is"):
        answers.meaning(*case)


def test_a_refused_choice_leaves_the_key_and_the_lease_free(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann)
    with pytest.raises(ValueError, match="choice is"):
        world.judge(db, ann, held, {"rating": 1}, "k")
    assert world.judge(db, ann, held, {"degree": 1}, "k").status == 201


RIGHT = (
    (None, "a", {"preference": "a"}, True),
    (None, "a", {"preference": "tie"}, False),
    (None, "both_bad", {"preference": "both_bad"}, True),
    ("thumbs", 1, {"rating": 1}, True),
    ("thumbs", 1, {"rating": 0}, False),
    ("stars", 4, {"rating": 5}, True),
    ("stars", 4, {"rating": 2}, False),
    (None, [1, 2, 3], {"ranks": [1, 1, 2]}, True),
    (None, [1, 2, 3], {"ranks": [2, 1, 3]}, False),
    (None, [1, 1, 2], {"ranks": [2, 1, 3]}, True),
)


@pytest.mark.parametrize(("scale", "gold", "said", "right"), RIGHT)
def test_right_answers(scale, gold, said, right):
    assert answers.is_right(scale, gold, said) is right


def test_gold_on_the_screen():
    assert answers.on_screen("a", [0, 1]) == {"degree": -1}
    assert answers.on_screen("a", [1, 0]) == {"degree": 1}
    assert answers.on_screen("tie", [1, 0]) == {"degree": 0}
    assert answers.on_screen("both_bad", [1, 0]) == {"both_bad": True}
    assert answers.on_screen(4, [0]) == {"rating": 4}
    assert answers.on_screen([1, 2, 3], [2, 0, 1]) == {"ranks": [3, 1, 2]}


def test_a_key_stands_for_one_answer(db):
    world.put(db, world.pairs(3))
    ann, bob = world.people(db, "ann", "bob")
    held, other = world.lease(db, ann), world.lease(db, bob)
    assert world.judge(db, ann, held, {"degree": 1}, "k", comment="c").status == 201
    assert world.judge(db, ann, held, {"degree": 1}, "k", comment="c", visible_ms=9).status == 200
    for changed in (
        {"said": {"degree": 2}},
        {"comment": "d"},
        {"better": "x"},
        {"differences": True},
    ):
        body = {"said": {"degree": 1}, "comment": "c"} | changed
        told = world.judge(db, ann, held, key_="k", **body)
        assert (told.status, told.kind) == (409, "")
        assert "new key" in told.why
    assert world.judge(db, bob, other, {"degree": 1}, "k", comment="c").status == 409
    assert world.skip(db, ann, held, key_="k").status == 409
    assert world.undo(db, ann, "k", "k").status == 409
    with db.read() as c:
        assert c.scalar(sa.select(sa.func.count()).select_from(schema.judgement)) == 1


def test_one_answer_sent_by_many_threads_is_one_row(db):
    world.put(db, world.pairs(2))
    (ann,) = world.people(db, "ann")
    held, statuses = world.lease(db, ann), []

    def send():
        statuses.append(world.judge(db, ann, held, {"degree": 1}, "k").status)

    assert world.together(*[send] * 8) == []
    assert sorted(statuses) == [200] * 7 + [201]
    with db.read() as c:
        assert c.scalar(sa.select(sa.func.count()).select_from(schema.judgement)) == 1


def test_a_late_answer_is_kept_as_surplus_and_told(db):
    world.put(db, world.pairs(1))
    people = world.people(db, "ann", "bob")
    held, other = late(db, people)
    told = world.judge(db, people[0], held, {"degree": -2}, "late", comment="mine")
    assert (told.status, told.kind) == (202, "surplus")
    assert "kept" in told.why
    assert world.judge(db, people[0], held, {"degree": -2}, "late", comment="mine").status == 200
    assert world.judge(db, people[1], other, key_="in time").status == 201
    said = row(db, "late")
    assert (said.kind, said.choice, said.comment) == ("surplus", {"degree": -2}, "mine")
    with db.read() as c:
        standing = c.scalars(sa.select(schema.slot.c.done)).all()
        assert standing == [row(db, "in time").id]
    assert world.lease(db, people[0]).why == "done"  # nobody twice on one item


def test_an_expired_lease_that_nobody_took_counts(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann, seconds=-1)
    assert world.judge(db, ann, held).status == 201


def test_an_answer_to_a_slot_that_was_taken_and_given_back_counts(db):
    world.put(db, world.pairs(1))
    people = world.people(db, "ann", "bob")
    held, other = late(db, people)
    assert world.skip(db, people[1], other).status == 201
    assert world.judge(db, people[0], held).status == 201


def test_another_persons_lease_and_a_made_up_one_are_unknown(db):
    world.put(db, world.pairs(1))
    ann, bob = world.people(db, "ann", "bob")
    held = world.lease(db, ann)
    for call in (world.judge, world.skip):
        with pytest.raises(LookupError, match="lease is unknown"):
            call(db, bob, held)
    with pytest.raises(LookupError, match="lease is unknown"), db.write() as c:
        judging.judge(c, ann, "k", Answer("\ud800\x00", {"degree": 1}), world.PLAIN)


def test_undo_gives_the_item_back_in_the_same_order_and_the_next_answer_counts(db):
    world.put(db, world.pairs(3))
    (ann,) = world.people(db, "ann")
    held = [world.lease(db, ann)]
    world.judge(db, ann, held[0], {"degree": 1}, "k0", comment="so", better="this")
    held.append(world.lease(db, ann))
    told = world.undo(db, ann, "k0", "u0")
    assert (told.status, told.kind, told.lease.item) == (201, "undo", held[0].item)
    assert told.lease.responses == held[0].responses
    assert told.lease.draft == {"comment": "so", "better": "this"}
    assert told.lease.token != held[0].token
    assert world.lease(db, ann).token == told.lease.token  # first the undone one
    again = world.undo(db, ann, "k0", "u0")
    assert (again.status, again.lease.token) == (200, told.lease.token)
    assert world.judge(db, ann, held[0], {"degree": -1}, "k1").status == 201  # by the old token
    assert world.lease(db, ann).item == held[1].item  # then the one that was open
    with db.read() as c:
        kinds = c.execute(sa.select(schema.judgement.c.key, schema.judgement.c.kind)).all()
        assert [tuple(x) for x in kinds] == [("k0", "judge"), ("u0", "undo"), ("k1", "judge")]
        assert row(db, "u0").undoes == row(db, "k0").id
        history = judging.history(c, ann)
    assert [(x.key, x.kind, x.choice) for x in history] == [("k1", "judge", {"degree": -1})]


def test_what_cannot_be_undone(db):
    world.put(db, world.pairs(2, purpose="training", gold="a"))
    world.put(db, [x | {"id": f"w{x['id']}"} for x in world.pairs(2)])
    ann, bob = world.people(db, "ann", "bob")
    for n in range(2):
        world.judge(db, ann, world.lease(db, ann), {"degree": 1}, f"t{n}")
    told = world.undo(db, ann, "t0")
    assert told.status == 409
    assert "shown" in told.why
    with db.write() as c:
        c.execute(sa.update(schema.annotator).values(training="passed"))
        first, second = (
            c.scalars(
                sa.insert(schema.session).returning(schema.session.c.id),
                {"hash": x, "annotator": ann, "at": 0},
            ).one()
            for x in ("one", "two")
        )
    world.judge(db, ann, world.lease(db, ann), key_="k", session=first)
    assert "earlier session" in world.undo(db, ann, "k", session=second).why
    with pytest.raises(LookupError, match="no judgement of yours"):
        world.undo(db, bob, "k")
    with pytest.raises(LookupError, match="no judgement of yours"):
        world.undo(db, ann, "never")
    assert world.undo(db, ann, "k", "u", session=first).status == 201
    assert "undone already" in world.undo(db, ann, "k").why
    assert "cannot be undone" in world.undo(db, ann, "u").why
    with db.read() as c:
        assert [x.key for x in judging.history(c, ann, first)] == []
        assert (judging.last(c, ann, first), judging.last(c, ann)) == ("", "")
        assert [(x.key, x.fixed) for x in judging.history(c, ann)] == [("t1", True), ("t0", True)]


def test_every_judgement_is_reached_by_pages_and_can_be_undone(db):
    keys = world.judged(db, 5, "ann")
    with db.read() as c:
        found = [[x.key for x in judging.history(c, 1, most=2, start=n)] for n in (0, 2, 4, 6)]
        assert judging.last(c, 1) == keys[-1]
    assert found == [keys[:2:-1], keys[2:0:-1], keys[:1], []]
    assert world.undo(db, 1, keys[0]).lease.prompt.startswith("prompt")
    with db.read() as c:
        assert [x.key for x in judging.history(c, 1)] == keys[:0:-1]


def test_an_undone_skip_whose_slot_has_gone_gives_no_lease(db):
    world.put(db, world.pairs(1))
    ann, bob = world.people(db, "ann", "bob")
    world.skip(db, ann, world.lease(db, ann), "expertise", "s")
    other = world.lease(db, bob)
    told = world.undo(db, ann, "s")
    assert (told.status, told.lease) == (201, None)
    assert world.lease(db, ann).why == "waiting"
    world.skip(db, bob, other)
    assert world.lease(db, ann).kind == "pair"


def test_a_skip_needs_a_reason_of_the_list_and_an_item_that_is_not_judged(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    held = world.lease(db, ann)
    with pytest.raises(ValueError, match=r"reason is 'bored'.*same_text"):
        world.skip(db, ann, held, "bored")
    world.judge(db, ann, held)
    told = world.skip(db, ann, held)
    assert (told.status, "undo that first" in told.why) == (409, True)


def test_undo_opens_a_closed_item(db):
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    world.judge(db, ann, world.lease(db, ann), key_="k")
    with db.read() as c:
        assert items.get(c, 1).state == "closed"
    world.undo(db, ann, "k")
    with db.write() as c:
        assert items.get(c, 1).state == "open"
        asking.put_aside(c, 1)
    held = world.lease(db, ann)
    assert world.judge(db, ann, held).status == 201  # under way when it was put aside
    with db.read() as c:
        assert items.get(c, 1).state == "parked"
