"""Who comes in: links, cookies, tokens and the password, and what each refusal says."""

import re
import signal
import uuid

import pytest
import sqlalchemy as sa
from serving import Client, Server, pairs, serving

from feedback.entry import access, prolific
from feedback.store import database, schema, tokens

CODE = "DONE-4711"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(
        tmp_path_factory.mktemp("access"), training_count=0, forwarded="127.0.0.1"
    ) as server:
        server.put(pairs(40))
        yield server


def cookie(reply) -> str:
    return reply.headers.get("set-cookie", "")


# links


def test_a_link_is_exchanged_for_a_cookie_and_leads_away_from_its_token(server):
    token = server.invite()
    reply = Client(server.url).get(f"/i/{token}")
    assert (reply.status, reply.headers["location"], reply.body) == (303, "/", b"")
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= {*cookie(reply).split("; ")}
    assert "Secure" not in cookie(reply)  # plain HTTP on this machine
    assert token not in cookie(reply)
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["judge.example.org", "192.0.2.7:8000", "127.0.0.1.example.org"])
def test_elsewhere_cookies_travel_over_tls_alone(server, host):
    reply = Client(server.url).get(f"/i/{server.invite()}", headers={"Host": host})
    assert cookie(reply).startswith("__Host-")
    assert "Secure" in cookie(reply).split("; ")
    anybody, https = Client(server.url), {"X-Forwarded-Proto": "https"}
    for path in ("/", "/owner"):  # whose browser dropped the cookie is told what to do
        plain = anybody.get(path, headers={"Host": host})
        assert plain.status == 401 and "ask for one that begins with https://" in plain.text
        for headers in ({}, {"Host": host, **https}):
            assert "https://" not in anybody.get(path, headers=headers).text


def test_a_link_opens_again_for_the_same_person_in_a_session_of_its_own(server):
    token = server.invite()
    one, other = (Client(server.url).open(f"/i/{token}") for _ in range(2))
    assert one.cookies != other.cookies
    assert one.csrf != other.csrf
    first, second = (x.post("/api/lease").json["lease"] for x in (one, other))
    assert first == second


def test_a_link_opened_again_in_the_same_browser_keeps_its_session(server):
    token = server.invite()
    browser = Client(server.url).open(f"/i/{token}")
    before = dict(browser.cookies)
    again = browser.get(f"/i/{token}")
    assert (again.status, cookie(again), browser.cookies) == (303, "", before)


def test_another_link_in_the_same_browser_is_another_person(server):
    browser = Client(server.url).open(f"/i/{server.invite()}")
    first = browser.post("/api/lease").json["lease"]
    browser.open(f"/i/{server.invite()}")
    assert browser.post("/api/lease").json["lease"] != first


def test_the_owner_and_an_annotator_share_a_browser(server):
    browser = server.owner().open(f"/i/{server.invite()}")
    assert len(browser.cookies) == 2
    assert browser.get("/owner").status == 200
    assert browser.post("/api/lease").status == 200


# what the database and the log have


def test_no_token_is_in_the_database_nor_in_the_log(server):
    invited = {kind: server.invite(f"kept-{kind}", kind=kind) for kind in ("owner", "prolific")}
    invited["person"] = server.invite("kept")
    person = Client(server.url).open(f"/i/{invited['person']}")
    owner = Client(server.url).open(f"/i/{invited['owner']}")
    study = Client(server.url)
    study.get(f"/p/{invited['prolific']}?PROLIFIC_PID=kept1")
    Client(server.url, invited["person"]).post("/api/lease")
    lease = person.post("/api/lease").json["lease"]
    secrets = {*invited.values(), lease, person.csrf, owner.csrf}
    for browser in (person, owner, study):
        secrets |= {*browser.cookies.values()}
    assert len(secrets) == 9
    files = [*server.folder.glob("feedback.db*")]
    kept = b"".join(x.read_bytes() for x in files)
    assert (
        tokens.hashed(invited["person"]).encode() in kept
    )  # so that the search finds what is there
    with server.opened() as db, db.read() as c:
        rows = [str([*c.execute(sa.select(x))]) for x in schema.metadata.sorted_tables]
    dump = "".join(rows)
    assert tokens.hashed(invited["person"]) in dump
    found = [x for x in secrets if x.encode() in kept or x in dump or x in server.log]
    assert found == []
    assert "/i/***" in server.log and "/p/***" in server.log


# each its status


def revoked(server, kind="person"):
    token = server.invite(kind=kind)
    browser = Client(server.url).open(f"/i/{token}") if kind == "person" else Client(server.url)
    with server.writing() as c:
        link = access.link(c, token, kind)
        assert link
        access.revoke(c, link.id)
    return token, browser


def expired(server, kind="person"):
    token = server.invite(kind=kind, days=1)
    browser = Client(server.url).open(f"/i/{token}") if kind == "person" else Client(server.url)
    past = {"expires": 1.0}
    with server.writing() as c:
        x = schema.invitation
        c.execute(sa.update(x).where(x.c.hash == tokens.hashed(token)).values(past))
        hashes = [tokens.hashed(x) for x in browser.cookies.values()]
        c.execute(sa.update(schema.session).where(schema.session.c.hash.in_(hashes)).values(past))
    return token, browser


def blocked(server, kind="person"):
    token = server.invite(kind=kind)
    browser = Client(server.url).open(f"/i/{token}")
    with server.writing() as c:
        link = access.link(c, token, kind)
        assert link and link.annotator
        access.block(c, link.annotator)
    return token, browser


@pytest.mark.parametrize(
    ("ended", "link", "session", "script"),
    [(revoked, 403, 401, 401), (expired, 403, 401, 401), (blocked, 403, 403, 403)],
)
def test_what_was_ended_is_refused(server, ended, link, session, script):
    token, browser = ended(server)
    assert Client(server.url).get(f"/i/{token}").status == link
    assert browser.get("/keys").status == session
    assert browser.post("/api/lease").status == session
    assert Client(server.url, token).post("/api/lease").status == script


@pytest.mark.parametrize("ended", [revoked, expired])
def test_ended_links_of_studies_and_owners_are_refused(server, ended):
    study, _ = ended(server, "prolific")
    assert Client(server.url).get(f"/p/{study}?PROLIFIC_PID=late").status == 403
    owner, _ = ended(server, "owner")
    assert Client(server.url).get(f"/i/{owner}").status == 403
    assert Client(server.url, owner).get("/api/report").status == 401


def test_swapped_tokens_open_nothing(server):
    person, study = server.invite(), server.invite(kind="prolific")
    owner = server.invite(kind="owner")
    browser, anybody = Client(server.url).open(f"/i/{person}"), Client(server.url)
    (name, session), lease = *browser.cookies.items(), browser.post("/api/lease").json["lease"]
    link = lambda path: anybody.get(path).status
    script = lambda token, path="/api/lease": Client(server.url, token).post(path).status
    assert link(f"/i/{study}") == 404
    assert link(f"/p/{person}?PROLIFIC_PID=x") == 404
    assert link(f"/p/{owner}?PROLIFIC_PID=x") == 404
    assert link(f"/i/{session}") == 404
    assert link(f"/i/{person[:-1]}{'A' if person[-1] != 'A' else 'B'}") == 404
    assert link(f"/i/{tokens.hashed(person)}") == 404
    assert [script(x) for x in (study, session, lease, tokens.hashed(person), "")] == [401] * 5
    assert script(owner) == 403
    assert Client(server.url, person).get("/api/report").status == 403
    there = lambda name, value, path: (
        anybody.get(path, headers={"Cookie": f"{name}={value}"}).status
    )
    assert there(name, session, "/keys") == 200
    assert there(name, person, "/keys") == 401
    assert there(name, owner, "/keys") == 401
    assert there(name.replace("annotator", "owner"), session, "/owner") == 401
    assert there(name.replace("annotator", "owner"), owner, "/owner") == 401


OWNERS = [
    *[("GET", f"/owner{x}") for x in ("", "/judgements", "/items", "/items/1", "/annotators/1")],
    *[
        ("GET", f"/owner{x}")
        for x in ("/links", "/guidelines", "/log", "/export/raw", "/agreement")
    ],
    *[("POST", f"/owner{x}") for x in ("/pause", "/links", "/links/1/revoke", "/guidelines")],
    *[
        ("POST", f"/owner{x}")
        for x in (
            "/annotators/1/block",
            "/annotators/1/link",
            "/items/1/ask",
            "/items/1/park",
            "/items/1/open",
        )
    ],
    *[("POST", "/owner/logout"), ("PUT", "/api/items"), ("GET", "/api/export")],
    ("GET", "/api/report"),
]
ANNOTATORS = [
    *[("GET", "/"), ("GET", "/guidelines"), ("GET", "/keys"), ("GET", "/judgements")],
    ("POST", "/logout"),
    *[("POST", x) for x in ("/judge", "/skip", "/undo", "/draft", "/lease/extend")],
    ("POST", "/api/lease"),
    ("PUT", f"/api/judgements/{uuid.UUID(int=1)}"),
    ("POST", f"/api/judgements/{uuid.UUID(int=1)}/undo"),
    ("POST", "/api/skip"),
]
BODIES = {
    f"/api/judgements/{uuid.UUID(int=1)}": {"lease": "x", "choice": {"degree": 1}},
    f"/api/judgements/{uuid.UUID(int=1)}/undo": {"key": str(uuid.UUID(int=2))},
    "/api/skip": {"key": str(uuid.UUID(int=2)), "lease": "x", "reason": "broken"},
    "/api/items": [],
}
FORM = {"kind": "person", "on": "1", "text": "t"}


def send(client, method, path, **more):
    """A request that is right but for who sends it."""
    if path in BODIES:
        return client.send(method, path, body=BODIES[path], **more)
    return client.send(method, path, form=FORM if method == "POST" else None, **more)


def test_the_tables_name_every_route(server):
    """So that a new route cannot forget its access."""
    from feedback import settings
    from feedback.web import app

    made = app.create_app(settings.Settings(database=server.database))
    made.state.db.close()
    known = {(m, re.sub(r"[0-9a-f-]{36}|\b1\b|raw$", "*", p)) for m, p in [*OWNERS, *ANNOTATORS]}
    found = {
        (method, re.sub(r"\{.*?\}", "*", path))
        for path, methods in routes(made)
        for method in methods - {"HEAD"}
    }
    free = {"/openapi.json", "/healthz", "/i/*", "/p/*", "/owner/login", "/bye", "/static"}
    assert {(m, p) for m, p in found if p not in free} == known


def routes(app):
    """Every (path, methods) of an application, of included routers too."""
    for route in app.routes:
        if original := getattr(route, "original_router", None):
            yield from ((x.path, x.methods) for x in original.routes)
        elif hasattr(route, "methods"):
            yield route.path, route.methods


def statuses(client, routes, **more) -> dict:
    """What each of the routes answers to a client."""
    return {x: send(client, *x, **more).status for x in routes}


def test_nobody_is_refused_everywhere(server):
    assert statuses(Client(server.url), [*OWNERS, *ANNOTATORS]) == dict.fromkeys(
        [*OWNERS, *ANNOTATORS], 401
    )


def test_the_api_says_how_to_bring_a_token_and_pages_do_not(server):
    assert Client(server.url).get("/api/report").headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in Client(server.url).get("/owner").headers


@pytest.mark.parametrize("who", ["browser", "script"])
def test_an_annotator_is_refused_at_the_owners_pages(server, who):
    client = server.browser() if who == "browser" else server.script()
    assert statuses(client, OWNERS) == dict.fromkeys(OWNERS, 403)


def test_the_owner_is_no_annotator(server):
    assert statuses(server.owner(), ANNOTATORS) == dict.fromkeys(ANNOTATORS, 403)


def forgeries(make):
    """Clients and headers of requests that other sites, or other sessions, could send."""
    silent, wrong, swapped = make(), make(), make()
    silent.csrf, wrong.csrf, swapped.csrf = "", "0" * 64, make().csrf
    yield "missing", silent, {}
    yield "wrong", wrong, {}
    yield "another session's", swapped, {}
    yield "from elsewhere", make(), {"Origin": "https://evil.example"}
    yield "from a page elsewhere", make(), {"Sec-Fetch-Site": "cross-site", "Origin": "null"}
    yield "from a neighbour", make(), {"Sec-Fetch-Site": "same-site"}


@pytest.mark.parametrize("who", ["owner", "browser"])
def test_forged_requests_are_refused(server, who):
    routes = [x for x in (OWNERS if who == "owner" else ANNOTATORS) if x[0] != "GET"]
    for kind, client, headers in forgeries(getattr(server, who)):
        found = statuses(client, routes, headers=headers)
        assert (kind, found) == (kind, dict.fromkeys(routes, 403))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_honest_browsers_are_let_in(server, headers):
    browser = server.browser()
    assert browser.post("/api/lease", headers=headers).status == 200
    assert browser.post("/api/lease", headers={**headers, "Origin": server.url}).status == 200


def test_scripts_need_no_word_of_a_session(server):
    script = server.script()
    assert script.post("/api/lease", headers={"Origin": "https://evil.example"}).status == 200


def test_a_form_carries_its_word_in_a_field(server):
    browser = server.browser()
    word, browser.csrf = browser.csrf, ""
    assert browser.post("/logout", form={"csrf": "0" * 64}).status == 403
    assert browser.post("/logout", form={"csrf": word}).status == 303
    assert browser.get("/keys").status == 401


def test_another_persons_lease_and_key_are_refused(server):
    ada, ben = server.script(), server.script()
    held, key = ada.post("/api/lease").json, str(uuid.uuid4())
    own = ben.post("/api/lease").json
    assert ben.judge(held).status == 404
    skip = {"key": key, "lease": held["lease"], "reason": "broken"}
    assert ben.post("/api/skip", body=skip).status == 404
    assert ada.judge(held, key=key).status == 201
    assert ben.judge(own, key=key).status == 409
    assert ben.judge(held, key=key).status in (404, 409)
    undo = {"key": str(uuid.uuid4())}
    assert ben.post(f"/api/judgements/{key}/undo", body=undo).status == 404
    assert ada.post(f"/api/judgements/{key}/undo", body=undo).status == 201


# restarts


def test_what_was_ended_stays_ended_after_a_restart(tmp_path):
    with serving(tmp_path, training_count=0) as server:
        server.put(pairs(2))
        ended = [x(server) for x in (revoked, expired, blocked)]
        alive, owner = server.browser(), server.owner()
        server.stop(signal.SIGKILL)
        server.start()
        for token, browser in ended:
            assert Client(server.url).get(f"/i/{token}").status == 403
            assert browser.get("/keys").status in (401, 403)
            assert Client(server.url, token).post("/api/lease").status in (401, 403)
        assert alive.post("/api/lease").status == 200
        assert owner.get("/owner").status == 200


def test_ending_a_link_ends_its_sessions_at_once_and_no_others(server):
    owner, ada, ben = server.owner(), server.browser("ada"), server.browser("ben")
    page = owner.get("/owner/links").text
    number = re.search(r'/owner/links/(\d+)/revoke"[^/]*Withdraw the link for ada"', page)
    assert number
    assert owner.post(f"/owner/links/{number[1]}/revoke").status == 303
    assert (ada.get("/keys").status, ben.get("/keys").status) == (401, 200)
    assert owner.get("/owner").status == 200


# Prolific


def test_a_person_from_prolific_is_the_same_annotator_each_time(server):
    study = server.invite("study", kind="prolific")
    at = f"/p/{study}?PROLIFIC_PID={{}}&STUDY_ID=s1&SESSION_ID=v{{}}"
    browsers = [
        Client(server.url).open(at.format(*x)) for x in (("ann", 1), ("ann", 2), ("bob", 1))
    ]
    leases = [x.post("/api/lease").json["lease"] for x in browsers]
    assert leases[0] == leases[1] != leases[2]
    x = schema.annotator
    with server.opened() as db, db.read() as c:
        row = c.execute(sa.select(x).where(x.c.prolific_id == "ann")).one()
    assert (row.prolific_study, row.prolific_session) == ("s1", "v1")


@pytest.mark.parametrize("query", ["", "?PROLIFIC_PID=", "?PROLIFIC_PID=a%00b", "?STUDY_ID=s"])
def test_a_study_needs_a_prolific_id(server, query):
    study = server.invite(kind="prolific")
    assert Client(server.url).get(f"/p/{study}{query}").status == 400


def test_a_blocked_person_from_prolific_stays_out(server):
    study = server.invite(kind="prolific")
    browser = Client(server.url).open(f"/p/{study}?PROLIFIC_PID=rude")
    with server.writing() as c:
        person = prolific.known(c, "rude")
        assert person
        access.block(c, person)
    assert Client(server.url).get(f"/p/{study}?PROLIFIC_PID=rude").status == 403
    assert browser.get(f"/p/{study}?PROLIFIC_PID=rude").status == 403


def test_the_completion_code_is_for_those_who_finished(tmp_path):
    more = {"training_count": 0, "gold_share": 0, "repeat_share": 0, "completion_code": CODE}
    with serving(tmp_path, **more) as server:
        server.put(pairs(2))
        study = server.invite(kind="prolific")
        browser = Client(server.url).open(f"/p/{study}?PROLIFIC_PID=ann")
        other = Client(server.url).open(f"/p/{study}?PROLIFIC_PID=bob")
        for _ in range(2):
            for path in ("/", "/bye", "/keys", "/guidelines"):
                assert CODE not in browser.get(path).text
            lease = browser.post("/api/lease").json
            browser.judge(lease)
        assert CODE in browser.get("/").text
        assert CODE not in other.get("/").text + other.get("/bye").text  # who judged nothing


# the owner's password


def test_the_password_opens_the_owners_pages_and_a_changed_one_shuts_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDBACK_PASSWORD", "correct horse")
    server = Server(tmp_path).start()
    try:
        owner = Client(server.url)
        assert owner.post("/owner/login", form={"password": "correct hors"}).status == 401
        assert owner.post("/owner/login", form={}).status == 401
        foreign = {"Origin": "https://evil.example"}
        right = {"password": "correct horse"}
        assert owner.post("/owner/login", form=right, headers=foreign).status == 403
        assert owner.get("/owner").status == 401
        assert owner.post("/owner/login", form=right).status == 303
        assert owner.get("/owner").status == 200
        server.stop()
        server.start()
        assert owner.get("/owner").status == 200
        by_link = server.owner()
        server.stop()
        server.environment["FEEDBACK_PASSWORD"] = "another"
        server.start()
        assert owner.get("/owner").status == 401
        assert by_link.get("/owner").status == 200
        assert owner.post("/owner/login", form=right).status == 401
        kept = b"".join(x.read_bytes() for x in tmp_path.iterdir() if x.is_file())
        assert b"correct horse" not in kept
        assert b"another" not in kept
    finally:
        server.stop()


def test_wrong_passwords_become_rare(tmp_path, monkeypatch):
    monkeypatch.setenv("FEEDBACK_PASSWORD", "right")
    with serving(tmp_path) as server:
        client = Client(server.url)
        tries = [client.post("/owner/login", form={"password": "wrong"}) for _ in range(10)]
        assert [x.status for x in tries] == [401] * 10
        some = (client.post("/owner/login", form={"password": "wrong"}) for _ in range(40))
        refused = next(x for x in some if x.status == 429)  # one is let through every three seconds
        assert int(refused.headers["retry-after"]) >= 1


def test_without_a_password_no_password_opens(server):
    assert Client(server.url).post("/owner/login", form={"password": ""}).status == 401
    assert "password" in Client(server.url).get("/owner/login").text


def test_wrong_tokens_become_rare_and_right_ones_are_let_in(tmp_path):
    with serving(tmp_path) as server:
        anybody, token = Client(server.url), server.invite()
        links = [anybody.get(f"/i/{i:043d}").status for i in range(40)]
        assert {*links} == {404, 429}
        assert Client(server.url, "0" * 43).post("/api/lease").status == 429
        assert Client(server.url, token).post("/api/lease").status == 204
        assert anybody.get(f"/i/{token}").status == 303


# the functions


@pytest.mark.parametrize("name", ["a\x00b", "a\nb", "\u202eabc", "x" * 101])
def test_a_name_that_cannot_be_shown_is_refused(db, name):
    with db.write() as c, pytest.raises(ValueError, match="name is"):
        access.invite(c, name)


def test_names_are_taken_once_and_numbers_are_found(db):
    with db.write() as c:
        access.invite(c, "person 2")
        with pytest.raises(ValueError, match="person 2"):
            access.invite(c, "person 2")
        access.invite(c)
        access.invite(c)
        names = c.scalars(sa.select(schema.annotator.c.name).order_by(schema.annotator.c.id))
        assert [*names] == ["person 2", "person 3", "person 4"]


def test_tokens_have_256_bits_and_the_same_words_as_often_as_asked():
    made = {tokens.new() for _ in range(100)}
    assert len(made) == 100 and {len(x) for x in made} == {43}
    token = made.pop()
    assert tokens.csrf(token) == tokens.csrf(token) != tokens.csrf(tokens.new())
    assert tokens.csrf(token) != tokens.hashed(token)


def test_a_password_is_kept_with_a_salt_of_its_own():
    one, other = tokens.locked("pass"), tokens.locked("pass")
    assert one != other
    assert tokens.opens("pass", one) and tokens.opens("pass", other)
    assert not tokens.opens("Pass", one) and not tokens.opens("", "") and not tokens.opens("a", "")


def test_an_expired_session_is_none(db):
    with db.write() as c:
        link = access.link(c, access.invite(c, days=1), "person")
        token = access.begin(c, "annotator", link)
        assert link and access.session(c, token, "annotator")
        assert access.session(c, token, "owner") is None
        c.execute(sa.update(schema.session).values(expires=database.now(c) - 1))
        assert access.session(c, token, "annotator") is None
