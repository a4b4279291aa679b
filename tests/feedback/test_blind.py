"""Blind comparison: nothing that an annotator gets tells which policy wrote a response."""

import json

import world
from scipy.stats import binom

from feedback.formats import export
from feedback.store.leasing import Lease

PEOPLE, PAGES = 10, 200


def test_pages_of_equal_texts_differ_in_lease_order_and_number_alone(new_db):
    """2,000 items with one text of two policies, which an annotator gets in an order of their own."""
    db = new_db("sqlite")
    texts = [{"text": "equal", "policy": name} for name in ("first", "second")]
    items = [{"id": f"p{n}", "prompt": "?", "responses": texts} for n in range(PEOPLE * PAGES)]
    world.put(db, items)
    pages = set()
    for who in world.people(db, *map(str, range(PEOPLE))):
        for _ in range(PAGES):
            held = world.lease(db, who)
            assert isinstance(held, Lease)
            pages.add(json.dumps(held.as_json() | {"lease": "", "number": 0, "of": 0}))
            world.judge(db, who, held)
    assert len(pages) == 1
    with db.read() as c:
        rows = export.raw(c)
    low, high = binom.interval(0.99, PAGES, 0.5)
    for name in map(str, range(PEOPLE)):
        mine = [x["shown"] for x in rows if x["annotator"] == name]
        assert len(mine) == PAGES and low <= sum(x == [0, 1] for x in mine) <= high
