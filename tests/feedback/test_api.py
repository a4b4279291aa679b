"""The API over HTTP: what each call answers, that its description says so, and what it never tells."""

import json
import uuid

import pytest
import sqlalchemy as sa
from serving import Client, pairs, serving, word

from feedback.store import schema
from feedback.web import api_owner, bodies

PLAIN = {"training_count": 0, "gold_share": 0, "repeat_share": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("api"), **PLAIN) as server:
        server.put(pairs(60))
        yield server


@pytest.fixture(scope="module")
def owner(server):
    return server.script("the owner", kind="owner")


def lease(client) -> dict:
    reply = client.post("/api/lease")
    assert reply.status == 200, reply
    return reply.json


def new() -> str:
    return str(uuid.uuid4())


# annotators


def test_a_lease_says_what_is_shown_and_nothing_else(server):
    got = lease(server.script())
    assert {*got} == {*bodies.Lease.model_fields}
    assert {*got["item"]} == {*bodies.Shown.model_fields}
    assert {frozenset(x) for x in got["item"]["responses"]} == {frozenset({"text"})}
    assert (got["purpose"], got["draft"], got["number"]) == ("work", None, 1)
    bodies.Lease(**got)


def test_a_judgement_is_kept_once_under_its_key(server):
    script, key = server.script(), new()
    held = lease(script)
    first = script.judge(held, key=key)
    again = script.judge(held, key=key)
    other = script.judge(held, {"degree": 2}, key=key)
    assert [x.status for x in (first, again, other)] == [201, 200, 409]
    assert first.json == again.json
    assert first.json["key"] == key and first.json["kind"] == "judge"
    assert script.judge(held, key=key.upper()).status == 200  # the same UUID
    with server.opened() as db, db.read() as c:
        x = schema.judgement
        assert [*c.scalars(sa.select(x.c.choice).where(x.c.key == key))] == [{"degree": 1}]


def test_an_answer_after_somebody_elses_is_kept_as_surplus(server):
    late, other = server.script(), server.script()
    held = lease(late)
    with server.writing() as c:
        c.execute(sa.update(schema.slot).where(schema.slot.c.done.is_(None)).values(until=1.0))
        item = c.scalar(sa.select(schema.lease.c.item).order_by(schema.lease.c.id.desc()).limit(1))
        # so that the other one gets this very item
        c.execute(sa.update(schema.slot).where(schema.slot.c.item == item).values(rank=-1))
    taken = lease(other)
    assert taken["item"]["prompt"] == held["item"]["prompt"]
    assert other.judge(taken).status == 201
    reply = late.judge(held)
    assert (reply.status, reply.json["kind"]) == (202, "surplus")
    assert "kept" in reply.json["why"]


def test_undo_gives_the_item_again(server):
    script, key, undo = server.script(), new(), {"key": new()}
    held = lease(script)
    script.judge(held, key=key, comment="why", better="a better one")
    reply = script.post(f"/api/judgements/{key}/undo", body=undo)
    assert (reply.status, reply.json["kind"]) == (201, "undo")
    again = reply.json["lease"]
    assert again["item"] == held["item"]  # in the same order
    assert again["draft"] == {"comment": "why", "better": "a better one"}
    assert script.post(f"/api/judgements/{key}/undo", body=undo).status == 200
    assert script.post(f"/api/judgements/{key}/undo", body={"key": new()}).status == 409
    assert script.post(f"/api/judgements/{new()}/undo", body={"key": new()}).status == 404
    assert script.judge(again, {"degree": -2}).status == 201


def test_a_skip_gives_another_item(server):
    script, held = server.script(), None
    held = lease(script)
    body = {"key": new(), "lease": held["lease"], "reason": "cannot_tell", "comment": "hm"}
    assert [script.post("/api/skip", body=body).status for _ in range(2)] == [201, 200]
    assert script.post("/api/skip", body={**body, "comment": "no"}).status == 409
    assert script.post("/api/skip", body={**body, "key": new()}).status == 409
    assert lease(script)["item"] != held["item"]


def test_nothing_to_give_says_why(tmp_path):
    gold = {"purpose": "training", "gold": "a", "reason": "the first is better"}
    with serving(tmp_path, **PLAIN | {"training_count": 2}) as server:
        ada = server.script()
        why = lambda script: (script.post("/api/lease"), script.post("/api/lease").headers["why"])
        assert why(ada)[1] == "done"
        server.put(pairs(1))
        lease(ada)
        ben = server.script()
        assert why(ben)[1] == "waiting"
        owner = server.owner()
        assert owner.post("/owner/pause", form={"on": "1"}).status == 303
        reply, said = why(ben)
        assert (reply.status, reply.body, said) == (204, b"", "paused")
        assert owner.post("/owner/pause", form={"on": "0"}).status == 303
        assert why(ben)[1] == "waiting"
        server.put([{**x, "id": f"t{i}"} for i, x in enumerate(pairs(2, **gold))])
        wrong = server.script()
        for _ in range(2):
            held = lease(wrong)
            assert held["purpose"] == "training"
            good = held["item"]["responses"][0]["text"].startswith("good")
            reply = wrong.judge(held, {"degree": 1 if good else -1})
            assert (reply.json["right"], reply.json["reason"]) == (False, "the first is better")
            assert reply.json["gold"] == {"degree": -1 if good else 1}
        assert reply.json["training"] == "failed"
        assert why(wrong)[1] == "training"


@pytest.mark.parametrize(
    "choice",
    [
        *[{}, {"degree": 3}, {"degree": "1"}, {"degree": 1.5}, {"degree": True}, {"degree": None}],
        *[{"both_bad": False}, {"both_bad": 1}, {"degree": 1, "both_bad": True}, [], "a", None],
        *[{"rating": 1}, {"ranks": [1, 2]}, {"ranks": []}, {"degree": 1, "more": 2}],
    ],
    ids=str,
)
def test_what_is_no_choice_of_a_pair_is_refused(server, choice):
    script = server.script()
    held = lease(script)
    reply = script.put(f"/api/judgements/{new()}", body={"lease": held["lease"], "choice": choice})
    assert reply.status == 422
    assert "choice" in reply.json["error"].lower()
    assert script.judge(held, {"degree": 1.0}).status == 201  # an integer, in JSON


@pytest.mark.parametrize(
    "body",
    [
        *[b"", b"{", b"\xff", b"[]", b"null", b'{"lease": NaN}', b"[" * 20_000],
        *[{"choice": {"degree": 1}}, {"lease": "", "choice": {"degree": 1}}],
        {"lease": "x", "choice": {"degree": 1}, "unknown": 1},
        {"lease": "x", "choice": {"degree": 1}, "comment": 1},
        {"lease": "x", "choice": {"degree": 1}, "comment": "x" * (bodies.TEXT + 1)},
        {"lease": "x", "choice": {"degree": 1}, "visible_ms": -1},
        {"lease": "x", "choice": {"degree": 1}, "differences": "yes"},
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_is_no_judgement_is_refused_in_one_sentence(server, body):
    script = server.script()
    more = {"headers": {"Content-Type": "application/json"}}
    reply = script.put(f"/api/judgements/{new()}", body=body, **more)
    assert reply.status in (400, 422)
    assert [*reply.json] == ["error"]
    assert reply.json["error"].endswith(".") and len(reply.json["error"]) < 1000


def test_the_body_has_to_say_that_it_is_json(server):
    script = server.script()
    body = json.dumps({"lease": "x", "choice": {"degree": 1}}).encode()
    sent = script.put(f"/api/judgements/{new()}", body=body, headers={"Content-Type": "text/plain"})
    assert sent.status == 422


HOSTILE = [
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "nul \0 nul",
    "\u202eright to left",
    "\ud800 half a pair",
    "=1+1",
    "'; DROP TABLE judgement; --",
    "x" * 200_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda x: x[:20].encode("ascii", "replace").decode())
def test_texts_come_back_as_they_were_put(server, owner, text):
    """Those of models; half a surrogate pair is none that a person can type, and is refused."""
    item = {"id": new(), "prompt": text, "question": text, "responses": [text, {"text": "b"}]}
    assert owner.put("/api/items", body=[item]).status == 200
    with server.writing() as c:
        made = sa.select(schema.item.c.id).where(schema.item.c.external == item["id"])
        rank = {"rank": -2}
        c.execute(sa.update(schema.slot).where(schema.slot.c.item.in_(made)).values(rank))
    script = server.script()
    got = lease(script)["item"]
    assert (got["prompt"], got["question"]) == (text, text)
    assert {x["text"] for x in got["responses"]} == {text, "b"}
    lone = any("\ud800" <= x <= "\udfff" for x in text)
    key = new()
    reply = script.judge(lease(script), key=key, comment=text, better=text)
    assert reply.status == (422 if lone else 201)
    if not lone:
        x = schema.judgement
        with server.opened() as db, db.read() as c:
            row = c.execute(sa.select(x.c.comment, x.c.better).where(x.c.key == key)).one()
        assert tuple(row) == (text, text)
    else:
        assert script.judge(lease(script)).status == 201


# the owner


def test_items_are_put_once_by_their_ids(owner):
    items = pairs(3, metadata={"source": "x"})
    items = [{**x, "id": f"put-{i}"} for i, x in enumerate(items)]
    put = lambda rows, **more: owner.put("/api/items", body=rows, **more)
    assert put(items).json == {"created": 3, "unchanged": 0}
    assert put(items).json == {"created": 0, "unchanged": 3}
    changed = put([items[0], {**items[1], "prompt": "another"}])
    assert changed.status == 409
    assert "put-1" in changed.json["error"]
    lines = "".join(json.dumps(x) + "\n" for x in [*items, {**items[0], "id": "put-4"}]).encode()
    more = {"headers": {"Content-Type": "application/x-ndjson"}}
    assert put(lines, **more).json == {"created": 1, "unchanged": 3}


@pytest.mark.parametrize(
    "items",
    [
        *[{}, [1], [{}], [{"prompt": "x"}], [{"prompt": "x", "responses": []}], None, "x"],
        [{"prompt": "x", "responses": ["a", "b"], "wanted": 0}],
        [{"prompt": "x", "responses": ["a", "b"], "purpose": "gold"}],
        [{"prompt": "x", "responses": ["a", "b"], "kind": {}}],
        [{"prompt": "x", "responses": ["a", "b"], "reason": 0}],
        [{"prompt": "x", "responses": ["a", "b"], "id": 0}],
        [{"prompt": "x", "responses": ["a", "b"], "unknown": 0}],
    ],
    ids=lambda x: str(x)[:60],
)
def test_what_is_no_item_is_refused_in_one_sentence(owner, items):
    reply = owner.put("/api/items", body=json.dumps(items).encode())
    assert reply.status == 422
    assert reply.json["error"].endswith(".")


def test_too_many_items_at_once_are_refused(owner):
    reply = owner.put("/api/items", body=[0] * (api_owner.MANY + 1))
    assert reply.status == 422
    assert "10000 at most" in reply.json["error"]


def test_access_is_checked_before_a_large_body_is_read(server):
    """A reply comes though the body never does."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("PUT", "/api/items")
    connection.putheader("Content-Length", str(60 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_the_report_counts(owner, server):
    before = owner.get("/api/report").json
    script = server.script("counted")
    script.judge(lease(script))
    after = owner.get("/api/report").json
    assert after["done"] == before["done"] + 1
    assert after["rows"]["judge"] == before["rows"]["judge"] + 1
    assert next(x for x in after["people"] if x["name"] == "counted")["judged"] == 1


def test_health_needs_no_access_and_names_the_schema(server):
    with server.opened() as db:
        said = {"status": "ok", "schema_version": db.version}
    assert Client(server.url).get("/healthz").json == said


# the description


def test_the_description_names_every_status_of_every_call(server):
    said = Client(server.url).get("/openapi.json").json
    assert said["openapi"].startswith("3.1")
    calls = {(p, m): x for p, x in said["paths"].items() for m, x in x.items()}
    assert len(calls) == 8
    for at, call in calls.items():
        statuses = {*call["responses"]}
        assert {"429", "503"} <= statuses, at
        assert ("security" in call) == ("401" in statuses) == (at[0] != "/healthz"), at
        assert call["description"].endswith("."), at
        assert all(x["description"] for x in call["responses"].values()), at
    assert "204" in calls["/api/lease", "post"]["responses"]


def test_the_description_is_all_that_is_needed_and_its_pages_load_nothing_from_elsewhere(server):
    assert Client(server.url).get("/docs").status == 404
    assert Client(server.url).get("/redoc").status == 404


# what is never told

CANARY = "canary7c1f"


def test_gold_and_policies_are_told_to_nobody_who_judges(tmp_path):
    """A whole session by the API and the pages; every reply is searched."""
    responses = [
        {"text": f"text {x}", "policy": f"{CANARY}-{x}", "sampling": {CANARY: 1}} for x in "ab"
    ]
    hidden = {"metadata": {CANARY: CANARY}, "responses": responses, "prompt": "p"}
    gold = {"purpose": "gold", "gold": "a", "reason": CANARY}
    training = {"purpose": "training", "gold": "both_bad", "reason": "because"}
    more = {"gold_share": 0.5, "repeat_share": 0.3, "repeat_after": 1, "training_count": 2}
    with serving(tmp_path, **more | {"training_pass": 0.0}) as server:
        server.put([{**hidden, "id": f"{CANARY}-w{i}"} for i in range(12)])
        server.put([{**hidden, **gold, "id": f"{CANARY}-g{i}"} for i in range(6)])
        server.put([{**hidden, **training, "id": f"{CANARY}-t{i}"} for i in range(2)])
        token = server.invite(CANARY)
        browser, replies = Client(server.url).open(f"/i/{token}"), []

        def keep(reply):
            replies.append(reply)
            return reply

        for path in ("/", "/guidelines", "/keys", "/bye", "/api/report", "/owner", "/api/export"):
            keep(browser.get(path))
        purposes = []
        for _ in range(60):
            held = keep(browser.post("/api/lease"))
            page = keep(browser.get("/"))
            if held.status == 204:
                break
            held, key = held.json, new()
            purposes.append(held["purpose"])
            keep(browser.post("/draft", form={"lease": held["lease"], "comment": "c"}))
            keep(browser.post("/lease/extend", form={"lease": held["lease"]}))
            if len(purposes) == 5:
                form = {"csrf": word(page.text), "key": key, "lease": held["lease"]}
                keep(browser.post("/skip", form={**form, "reason": "broken", "sure": "1"}))
                continue
            if len(purposes) % 2:
                said = keep(browser.judge(held, key=key)).json
                if held["purpose"] == "work":
                    assert (said["right"], said["gold"], said["reason"]) == (None, None, None)
                else:
                    assert said["gold"] == {"both_bad": True}
            else:
                form = {"csrf": word(page.text), "key": key, "lease": held["lease"], "degree": "1"}
                assert keep(browser.post("/judge", form=form)).status == 303
                keep(browser.get(f"/?after={key}"))
            if len(purposes) == 8:
                keep(browser.post(f"/api/judgements/{key}/undo", body={"key": new()}))
        for path in ("/", "/judgements"):
            keep(browser.get(path))
        keep(browser.post("/logout"))
        assert purposes[:2] == ["training", "training"] and {*purposes[2:]} == {"work"}
        with server.opened() as db, db.read() as c:
            joined = sa.select(schema.item.c.purpose).join(schema.judgement)
            assert {*c.scalars(joined)} == {"training", "gold", "repeat", "work"}
        assert len(replies) > 60
        seen = [x for x in replies if CANARY.encode() in x.body or CANARY in str(x.headers)]
        assert seen == []
        assert CANARY in server.owner().get("/owner/items/1").text  # the search finds what is there
