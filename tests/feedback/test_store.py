"""Items in the database: put once each, kept byte for byte, refused in one sentence."""

import copy
import json
import subprocess
import sys

import pytest
import sqlalchemy as sa
import world

from feedback.store import asking, items, records, schema
from feedback.store.records import Item

HOSTILE = (
    *("", " ", "\n", "\x00", "a\x00b", "\x01json ", '\x01json "x"', "\ud800", "x\udfffy"),
    *(
        "🙂",
        "\u202eabc",
        "\u200b",
        "é",
        "e\u0301",
        "\r\n",
        "'; DROP TABLE judgement; --",
        "%s %(x)s :x",
    ),
    *("{{ 7 * 7 }}", "</textarea><script>alert(1)</script>", "=1+1", "\\u0000", "x" * 200_000),
)


def count(db, table) -> int:
    with db.read() as c:
        return c.scalar(sa.select(sa.func.count()).select_from(table))


def test_what_is_put_twice_is_there_once(db):
    batch = world.pairs(3, wanted=2)
    with db.write() as c:
        assert items.put(c, batch) == {"created": 3, "unchanged": 0}
    with db.write() as c:
        assert items.put(c, [*batch, *world.pairs(4, wanted=2)]) == {"created": 1, "unchanged": 6}
    assert count(db, schema.item) == 4
    assert count(db, schema.response) == count(db, schema.slot) == 8


def test_an_item_without_id_is_known_by_its_contents(db):
    one = {"prompt": "p", "responses": ["a", "b"]}
    for expected in ({"created": 1, "unchanged": 1}, {"created": 0, "unchanged": 2}):
        with db.write() as c:
            assert items.put(c, [one, dict(one)]) == expected
    with db.write() as c:
        assert items.put(c, [one | {"responses": ["b", "a"]}])["created"] == 1
        with pytest.raises(items.Known):  # the same question, asked of more people
            items.put(c, [one | {"wanted": 2}])


CHANGES = (
    {"prompt": "another"},
    {"responses": ["first 1", "changed"]},
    {"responses": [{"text": "first 1", "policy": "x"}, "second 1"]},
    {"wanted": 2},
    {"question": "why?"},
    {"metadata": {"x": 1}},
    {"purpose": "gold", "gold": "a"},
)


@pytest.mark.parametrize("change", CHANGES, ids=[*map(str, range(len(CHANGES)))])
def test_other_contents_under_a_known_id_are_refused_by_name_and_nothing_is_put(new_db, change):
    db = new_db("sqlite")
    world.put(db, world.pairs(2))
    new = [world.pairs(5)[4], world.pairs(2)[1] | change]
    with (
        pytest.raises(items.Known, match="item 'pair1' is known with other contents"),
        db.write() as c,
    ):
        items.put(c, new)
    assert count(db, schema.item) == 2
    with pytest.raises(items.Known, match="'pair9'"), db.write() as c:  # in one batch
        items.put(c, [world.pairs(10)[9], world.pairs(10)[9] | change])


def test_several_owners_may_put_the_same_items_at_once(db):
    batch = world.pairs(30)
    created = []

    def put():
        with db.write() as c:
            created.append(items.put(c, batch)["created"])

    assert world.together(*[put] * 4) == []
    assert sorted(created) == [0, 0, 0, 30]


def test_texts_come_back_byte_for_byte(db):
    batch = [
        {
            "id": f"i{n}",
            "prompt": [{"role": "user", "content": x}],
            "responses": [{"text": x, "policy": x, "sampling": {"stop": x}}, {"text": x + "!"}],
            "question": x,
            "metadata": {"note": x},
        }
        for n, x in enumerate(HOSTILE)
    ]
    before = copy.deepcopy(batch)
    world.put(db, batch)
    assert batch == before
    (ann,) = world.people(db, "ann")
    with db.read() as c:
        for n, x in enumerate(HOSTILE):
            row = c.execute(sa.select(schema.item).where(schema.item.c.external == f"i{n}")).one()
            assert (row.prompt, row.question) == ([{"role": "user", "content": x}], x)
            assert row.metadata == {"note": x}
            texts = items.responses(c, row.id)
            assert [(t.text, t.policy, t.sampling) for t in texts] == [
                (x, x, {"stop": x}),
                (x + "!", None, None),
            ]
    for n, x in enumerate(HOSTILE):
        held = world.lease(db, ann)
        assert world.judge(db, ann, held, comment=x, better=x + "?", key_=f"k{n}").status == 201
    with db.read() as c:
        said = sa.select(schema.judgement.c.comment, schema.judgement.c.better)
        assert [tuple(x) for x in c.execute(said.order_by(schema.judgement.c.id))] == [
            (x, x + "?") for x in HOSTILE
        ]


FINE = {"prompt": "p", "responses": ["a", "b"]}
BAD = {
    "no object": ([], "an item is"),
    "unknown field": (FINE | {"chosen": 1}, "unknown field 'chosen'"),
    "no prompt": ({"responses": ["a", "b"]}, "has no prompt"),
    "no responses": ({"prompt": "p"}, "has no responses"),
    "responses no list": (FINE | {"responses": "ab"}, "responses is 'ab'"),
    "a response no text": (FINE | {"responses": ["a", 1]}, "a response is 1"),
    "response's field": (FINE | {"responses": ["a", {"text": "b", "x": 1}]}, "unknown field 'x'"),
    "policy": (FINE | {"responses": ["a", {"text": "b", "policy": 1}]}, "policy is 1"),
    "sampling": (FINE | {"responses": ["a", {"text": "b", "sampling": 1}]}, "sampling is 1"),
    "kind": (FINE | {"kind": "triple"}, "kind is 'triple'"),
    "kind no text": (FINE | {"kind": {}}, "kind is {}"),
    "three in a pair": (FINE | {"kind": "pair", "responses": ["a"] * 3}, "a pair has 3 responses"),
    "two in a single": (FINE | {"kind": "single"}, "a single has 2 responses"),
    "nine in a ranking": (FINE | {"responses": ["a"] * 9}, "a ranking has 9 responses"),
    "scale": (FINE | {"scale": "stars"}, "scale is 'stars'"),
    "scale of a single": (FINE | {"responses": ["a"], "scale": "ten"}, "scale is 'ten'"),
    "purpose": (FINE | {"purpose": "fun"}, "purpose is 'fun'"),
    "repeat": (FINE | {"purpose": "repeat"}, "purpose is 'repeat'"),
    "training without gold": (FINE | {"purpose": "training"}, "has no gold answer"),
    "gold": (FINE | {"gold": "c"}, "gold is 'c'"),
    "gold no text": (FINE | {"gold": ["a"]}, "gold is"),
    "gold of stars": (FINE | {"responses": ["a"], "scale": "stars", "gold": 6}, "gold is 6"),
    "gold of a ranking": (FINE | {"kind": "ranking", "gold": [2, 2]}, "gold is"),
    "wanted 0": (FINE | {"wanted": 0}, "wanted is 0"),
    "wanted true": (FINE | {"wanted": True}, "wanted is True"),
    "prompt a number": (FINE | {"prompt": 5}, "prompt is 5"),
    "prompt empty": (FINE | {"prompt": []}, "prompt is "),
    "a turn": (FINE | {"prompt": [{"role": "user"}]}, "prompt has the turn"),
    "id a number": (FINE | {"id": 0}, "id is 0"),
    "id long": (FINE | {"id": "x" * 201}, "200 characters at most"),
    "id with NUL": (FINE | {"id": "a\x00"}, "without NUL"),
    "reason": (FINE | {"reason": False}, "reason is False"),
    "question": (FINE | {"question": []}, "question is "),
    "metadata": (FINE | {"metadata": ""}, "metadata is ''"),
    "NaN": (FINE | {"metadata": {"x": float("nan")}}, "cannot be written as JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_item_that_nobody_could_judge_is_refused_in_one_sentence(name):
    raw, message = BAD[name]
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("[", r"\[")) as caught:
        records.hash_of(Item.of(raw))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_kinds_follow_the_number_of_responses():
    kinds = [Item.of(FINE | {"responses": ["x"] * n}).kind for n in (1, 2, 3)]
    assert kinds == ["single", "pair", "ranking"]
    assert Item.of(FINE | {"responses": ["x"]}).scale == "thumbs"


def test_owners_can_ask_again_and_put_aside(new_db):
    db = new_db("sqlite")
    world.put(db, world.pairs(1))
    (ann,) = world.people(db, "ann")
    world.judge(db, ann, world.lease(db, ann))
    with db.write() as c:
        assert items.get(c, 1).state == "closed"
        assert asking.ask_again(c, 1, 2) == 3
        assert items.get(c, 1).state == "open"
        asking.put_aside(c, 1)
        assert items.get(c, 1).state == "parked"
        asking.take_up(c, 1)
        assert items.get(c, 1).state == "open"
        with pytest.raises(ValueError, match="more is 0"):
            asking.ask_again(c, 1, 0)
        with pytest.raises(LookupError, match="item 2"):
            asking.ask_again(c, 2)
        with pytest.raises(ValueError, match="annotator 'ann' already"):
            asking.add_annotator(c, "ann")
    world.put(db, world.pairs(1))  # what was put is still what was put
    assert count(db, schema.item) == 1


def test_feedback_imports_neither_jax_nor_the_library():
    program = (
        "import sys, json, pkgutil, importlib, feedback\n"
        "for x in pkgutil.iter_modules(feedback.__path__):\n"
        "    if x.name not in ('__main__', 'migrations'): importlib.import_module('feedback.' + x.name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = {x.split(".")[0] for x in json.loads(done.stdout)}
    assert "sqlalchemy" in loaded
    assert not loaded & {"jax", "jaxlib", "flax", "rlhf_jax", "numpy"}
