"""What surrounds every request: headers, bounds, rates, and a log that repeats nobody's words."""

import asyncio
import http.client
import json
import logging
import socket

import pytest
from serving import Client, pairs, serving
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from feedback import settings
from feedback.store import tokens
from feedback.web import errors, faults, protection, rates

WORDS = "wordsofaperson"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("protection"), training_count=0) as server:
        server.put(pairs(20))
        yield server


# headers


def every_kind_of_reply(server):
    """(what, reply) for statuses of all kinds, pages and data, with and without a session."""
    browser, owner, script = server.browser(), server.owner(), server.script()
    long = b"x" * (protection.BODY + 1)
    yield 200, browser.get("/")
    yield 200, owner.get("/owner")
    yield 200, script.post("/api/lease")
    yield 200, browser.get("/static/page.css")
    yield 200, browser.get("/openapi.json")
    yield 303, Client(server.url).get(f"/i/{server.invite()}")
    yield 401, Client(server.url).get("/")
    yield 401, Client(server.url).post("/api/lease")
    yield 403, browser.get("/owner")
    yield 404, browser.get("/nowhere")
    yield 404, browser.get("/static/nowhere.css")
    yield 404, browser.get("/static/../settings.py")
    yield 405, browser.send("DELETE", "/")
    yield 413, script.post("/api/skip", body=long)
    yield 422, script.post("/api/skip", body={})


def test_every_reply_has_the_headers(server):
    statuses = []
    for status, reply in every_kind_of_reply(server):
        assert reply.status == status
        statuses.append(status)
        found = {k: reply.headers.get(k.lower()) for k in protection.HEADERS}
        assert found == protection.HEADERS
        assert "server" not in reply.headers
        assert ("no-store" in reply.headers["cache-control"]) != (
            reply.headers.get("content-type", "").startswith("text/css") and status == 200
        )
    assert len(statuses) == 15


def test_the_policy_lets_nothing_in_that_a_text_could_bring():
    said = protection.HEADERS["Content-Security-Policy"]
    rules = {x.split()[0]: x.split()[1:] for x in said.split("; ")}
    assert rules.pop("default-src") == ["'none'"]
    assert rules.pop("base-uri") == rules.pop("frame-ancestors") == ["'none'"]
    assert {tuple(x) for x in rules.values()} <= {("'self'",), ("'self'", "data:")}
    assert "unsafe" not in said and "*" not in said
    assert ["data:"] not in [rules[x][1:] for x in ("script-src", "style-src", "form-action")]


# bounds


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/judge")
    connection.putheader("Content-Length", str(protection.BODY + 1))
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == 413
    assert reply.getheader("connection") == "close"
    connection.close()


def test_a_body_in_pieces_is_refused_once_it_is_too_large(server):
    token = server.invite()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
        head = (
            "POST /api/skip HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n\r\n"
        )
        s.sendall(head.encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(protection.BODY // 0x10000 + 20):
            s.sendall(piece)
        s.sendall(b"0\r\n\r\n")
        assert s.recv(12) == b"HTTP/1.1 413"


def test_a_large_body_without_access_is_refused_and_its_sender_sees_it(server):
    reply = Client(server.url, "0" * 43).put("/api/items", body=b" " * 16 * 2**20)
    assert reply.status == 401


def test_a_body_just_small_enough_is_read(server):
    reply = server.script().post("/api/skip", body=b" " * protection.BODY)
    assert reply.status == 422


def test_items_may_be_larger(server):
    owner = server.script("large", kind="owner")
    rows = [{"prompt": "x" * protection.BODY, "responses": ["a", "b"]}]
    assert owner.put("/api/items", body=rows).json == {"created": 1, "unchanged": 0}


# rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills():
    clock = Clock()
    rate = rates.Rate(per_second=0.5, burst=3, clock=clock)
    assert [rate.take("a") for _ in range(3)] == [0.0] * 3
    assert rate.take("a") == rate.wait("a") == 2.0
    assert rate.take("b") == 0.0
    clock.now = 1.0
    assert rate.take("a") == 1.0
    clock.now = 2.0
    assert rate.wait("a") == 0.0
    assert [rate.take("a"), rate.take("a")] == [0.0, 2.0]
    clock.now = 1000.0
    assert [rate.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 2.0]  # no more than the burst


def test_buckets_are_bounded_in_number():
    rate = rates.Rate(per_second=1, burst=1, keys=10, clock=Clock())
    for i in range(100):
        assert rate.take(str(i)) == 0.0
    assert rate.take("99") > 0
    assert rate.take("0") == 0.0  # forgotten
    assert len(rate._buckets) == 10


def ask(app, path="/", method="GET", headers=(), body=b"", client=("192.0.2.1", 1)):
    """(status, headers, body) of an ASGI application's reply; None where there is none."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "client": client}
    scope |= {"headers": [(k.encode(), v.encode()) for k, v in headers]}
    asyncio.run(app(scope, receive, send))
    if not sent:
        return None
    said = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], said, b"".join(x.get("body", b"") for x in sent[1:])


def guarded(app, **more):
    return protection.Protection(app, **more)


def test_too_many_requests_are_refused_for_a_time_and_for_one_caller():
    clock = Clock()
    rate = rates.Rate(per_second=0.1, burst=2, clock=clock)
    app = guarded(PlainTextResponse("ok"), requests=rate)
    mine, other = [("authorization", "Bearer a")], [("authorization", "Bearer b")]
    assert [ask(app, headers=mine)[0] for _ in range(3)] == [200, 200, 429]
    status, headers, _ = ask(app, headers=mine)
    assert (status, headers["retry-after"]) == (429, "10")
    assert ask(app, headers=other)[0] == 200
    assert ask(app)[0] == 200
    clock.now = 10.0
    assert ask(app, headers=mine)[0] == 200


def test_a_script_at_work_is_not_held_up(server):
    script = server.script()
    assert {script.post("/api/lease").status for _ in range(100)} == {200}


# faults and the log


def failing(words):
    async def app(scope, receive, send):
        raise RuntimeError(words)

    return app


def test_a_fault_says_nothing_of_what_was_said(caplog):
    with caplog.at_level(logging.INFO, "feedback"):
        status, headers, body = ask(guarded(failing(WORDS)))
        json_ = ask(guarded(failing(WORDS)), "/api/lease")
    assert status == json_[0] == 500
    assert WORDS.encode() not in body + json_[2]
    assert "Content-Security-Policy".lower() in headers
    assert json.loads(json_[2])["error"].startswith("Something failed")
    assert WORDS not in caplog.text
    assert "RuntimeError in app" in caplog.text


def test_a_reply_cut_short_is_left_cut_short(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(WORDS)

    with caplog.at_level(logging.INFO, "feedback"):
        assert ask(guarded(app))[2] == b""
    assert WORDS not in caplog.text


def test_an_exception_in_the_log_has_no_message():
    try:
        raise ValueError(WORDS)
    except ValueError as e:
        record = logging.makeLogRecord(
            {"msg": "failed", "exc_info": (ValueError, e, e.__traceback__)}
        )
    said = faults.Discreet("%(message)s").format(record)
    assert WORDS not in said and "ValueError in test_an_exception" in said


TOKEN = tokens.new()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/", "/"),
        ("/owner/items/3", "/owner/items/3"),
        ("/i/abc", "/i/***"),
        (f"/i/{TOKEN}", "/i/***"),
        (f"//i//{TOKEN}", "/i/***"),
        (f"/I/{TOKEN}", "/I/***"),
        (f"/p/{TOKEN}/more", "/p/***/more"),
        (f"/x/{TOKEN}", "/x/***"),
        (f"/x{TOKEN}", "/***"),
        ("/api/judgements/3f2c1a54-0000-4000-8000-0123456789ab",) * 2,
        ("/a\nb\x1b[31m", "/a%0Ab%1B%5B31m"),
        ("/\u202eabc", "/%E2%80%AEabc"),
        ("/" + "a/" * 300, ("/" + "a/" * 300)[:200]),
    ],
    ids=lambda x: x.replace(TOKEN, "TOKEN")[:30].encode("ascii", "replace").decode(),
)
def test_paths_in_the_log_have_no_tokens_and_no_line_ends(path, shown):
    assert protection.masked(path) == shown


def test_the_log_says_who_did_what_and_no_words_of_theirs(server):
    item = {"id": "logged", "prompt": f"{WORDS}p", "responses": [f"{WORDS}a", f"{WORDS}b"]}
    owner = server.script("logs", kind="owner")
    assert owner.put("/api/items", body=[item]).status == 200
    browser = server.browser("logged")
    held = browser.post("/api/lease").json
    browser.judge(held, comment=f"{WORDS}c", better=f"{WORDS}d")
    browser.get(f"/?after={WORDS}")
    browser.get(f"/{WORDS[:3]}", headers={"User-Agent": WORDS, "Referer": f"http://x/{WORDS}"})
    browser.post("/draft", form={"lease": held["lease"], "comment": f"{WORDS}e"})
    browser.post("/api/skip", body={"reason": WORDS, "lease": held["lease"]})
    Client(server.url, WORDS).post("/api/lease")
    browser.get("/healthz")  # whose line comes after those of the requests before it
    said = server.log
    assert WORDS not in said
    assert held["lease"] not in said
    lines = said.splitlines()
    assert any(" owner PUT /api/items 200 " in x for x in lines)
    assert any(" PUT /api/judgements/" in x and " annotator-" in x and " 201 " in x for x in lines)
    assert any(" - POST /api/lease 401 " in x and x.endswith("from 127.0.0.1") for x in lines)


def test_errors_quote_neither_tokens_nor_what_was_sent(server):
    script, marks = server.script(), "quoted0quoted"
    sent = [
        script.get(f"/{marks}"),
        Client(server.url).get(f"/i/{marks}"),
        Client(server.url).get(f"/p/{marks}?PROLIFIC_PID={marks}"),
        Client(server.url, marks).post("/api/lease"),
        script.post("/api/skip", body={"lease": marks, "reason": marks, "key": marks}),
        script.put(f"/api/judgements/{marks}", body={"lease": marks, "choice": marks}),
        script.judge({"lease": marks}),
        Client(server.url).post("/owner/login", form={"password": marks}),
        Client(server.url).get(
            "/owner", headers={"Cookie": f"feedback_owner_{server.port}={marks}"}
        ),
        server.owner().get(f"/owner/items?state={marks}"),
        server.owner().get(f"/owner/guidelines?version={marks}"),
    ]
    assert [x.status for x in sent if x.status < 400] == []
    assert [x for x in sent if marks in x.text or marks in str(x.headers)] == []


def test_refusals_are_sentences():
    for status in (404, 405, 500):
        reply = errors.answer(
            {"type": "http", "path": "/api/x", "headers": []}, HTTPException(status)
        )
        said = json.loads(bytes(reply.body))["error"]
        assert said.endswith(".") and " " in said


# where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_may_come_only_where_the_owner_has_a_password(host):
    with pytest.raises(ValueError, match="password"):
        settings.Settings(host=host)
    settings.Settings(host=host, owner_password="x")
