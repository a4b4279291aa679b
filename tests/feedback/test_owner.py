"""The owner's pages: what they show, what their forms do, and hostile texts that stay texts."""

import html
import json
import re
import uuid

import pytest
from serving import Client, pairs, serving

from feedback.store import events
from feedback.web import owner, pictures
from rlhf_jax.people import summary

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}\"'&amp;"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Two people who judged, skipped and took back; the texts are hostile wherever people write."""
    more = {"training_count": 0, "gold_share": 0, "repeat_share": 0}
    with serving(tmp_path_factory.mktemp("owner"), **more) as server:
        texts = [{"text": f"{HOSTILE} {x}", "policy": f"{HOSTILE} {x}"} for x in "ab"]
        hostile = {"prompt": [{"role": HOSTILE, "content": HOSTILE}], "responses": texts}
        server.put([{**x, **hostile, "question": HOSTILE} for x in pairs(30)])
        ada, ben = server.script(HOSTILE), server.script("ben")
        for _ in range(12):
            ada.judge(ada.post("/api/lease").json, comment=HOSTILE, better=HOSTILE)
        key, undo = str(uuid.uuid4()), {"key": str(uuid.uuid4())}
        ben.judge(ben.post("/api/lease").json, {"both_bad": True}, key=key)
        ben.post(f"/api/judgements/{key}/undo", body=undo)
        skip = {"key": str(uuid.uuid4()), "reason": "broken", "comment": HOSTILE}
        ben.post("/api/skip", body={**skip, "lease": ben.post("/api/lease").json["lease"]})
        server.people = (ada, ben)
        yield server


@pytest.fixture(scope="module")
def browser(server):
    return server.owner()


def numbers(page: str, head: str) -> list[str]:
    """The cells of the row of a table that begins with a text."""
    row = next(x for x in re.findall(r"<tr>.*?</tr>", page, re.S) if head in html.unescape(x))
    return [re.sub(r"<.*?>", "", x).strip() for x in re.findall(r"<td.*?</td>", row, re.S)]


PAGES = [
    *["/owner", "/owner/judgements", "/owner/items", "/owner/items/1", "/owner/annotators/1"],
    *[
        "/owner/agreement",
        "/owner/annotators/2",
        "/owner/links",
        "/owner/guidelines",
        "/owner/log",
        "/owner/login",
    ],
]


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_whole_and_escape_what_people_and_models_wrote(server, browser, path):
    page = browser.get(path)
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.count("<h1") == 1
    assert "<script>alert" not in page.text and "{{" not in page.text.replace("{{ 7 * 7 }}", "")
    assert "style=" not in page.text
    assert not re.search(r"\son\w+=", html.unescape(page.text))
    scripts = re.findall(r"<script[^>]*>", page.text)
    assert all(re.search(r'src="/static/', x) for x in scripts)


def test_hostile_texts_are_there_as_texts(browser):
    for path in ("", "/judgements", "/items/1", "/annotators/1", "/log"):
        path = f"/owner{path}"
        assert HOSTILE in html.unescape(browser.get(path).text)


def test_progress_counts_what_stands(browser):
    page = browser.get("/owner").text
    assert "12 of 30 judgements" in page
    assert numbers(page, HOSTILE)[:4] == ["12", "0", "0", "0"]
    assert numbers(page, ">ben<")[:4] == ["0", "1", "1", "0"]
    assert "judgements 13, skips 1, taken back 1, surplus 0" in page


def test_judgements_come_with_the_newest_first(server, browser):
    page = browser.get("/owner/judgements").text
    kinds = re.findall(r"<td>(judge|skip|undo|surplus)", page)
    assert kinds[:3] == ["skip", "undo", "judge"] and len(kinds) == 15
    assert "taken back" in page and "both bad" in page and "broken" in page


def test_agreement_has_the_numbers_of_the_raw_export(server, browser):
    """People of an accuracy of 1 and 1/2 on twenty pairs of two policies; one row of each table by hand."""
    rows = [json.loads(x) for x in browser.get("/owner/export/raw").text.splitlines()]
    page = html.unescape(browser.get("/owner/agreement").text)
    of = summary.summary(rows)
    assert f"{of['judgements']} judgements of {of['items']} pairs" in page
    for x in of["people"]:
        assert f"<td>{x['judged']}</td><td>{x['accuracy']:.2f}</td>" in page
    first = sum(
        (x["preference"] == "a") == (x["shown"][0] == 0)
        for x in rows
        if x["preference"] in ("a", "b") and x["stands"] and x["item"]["purpose"] == "work"
    )
    assert f"was chosen in {first} of {of['position']['decided']} decided pairs" in page


def test_agreement_names_flags_and_policies(tmp_path):
    """Thirty pairs that six people judge: five by the policy, the sixth always for the first place."""
    with serving(tmp_path, training_count=0, gold_share=0, repeat_share=0) as server:
        server.put([
            {"id": f"p{n}", "prompt": f"p{n}", "wanted": 6, "responses": [
                {"text": f"good {n}", "policy": "new"}, {"text": f"bad {n}", "policy": "old"},
            ]}
            for n in range(30)
        ])  # fmt: skip
        for name in "abcdef":
            person = server.script(name)
            while (got := person.post("/api/lease")).status == 200:
                left = name == "f" or "good" in got.json["item"]["responses"][0]["text"]
                person.judge(got.json, {"degree": -1 if left else 1})
        page = re.sub(r"\s+", " ", html.unescape(server.owner().get("/owner/agreement").text))
    assert "180 judgements of 30 pairs" in page
    row = re.search(r'<th scope="row">f</th>.*?</tr>', page)
    assert row and "chooses by place, disagrees with the others" in row[0]
    assert len(re.findall("chooses by place", page)) == 1
    assert re.search(r'<th scope="row">new</th><td>0.00</td>', page)
    assert re.search(r'<th scope="row">old</th><td>-\d', page)
    assert "and rough under eight people" in page


def test_the_speed_of_a_person_is_a_line_and_a_table(browser):
    page = browser.get("/owner/annotators/1").text
    assert re.search(r'<polyline points="0\.0,\d+\.\d 600\.0,\d+\.\d"/>', page)
    assert re.search(r"1 on</th>.*11 on</th>", page)


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ([], ""),
        ([0.0], "0.0,120.0"),
        ([2.0, 4.0, 0.0], "0.0,60.0 300.0,0.0 600.0,120.0"),
    ],
)
def test_points_of_a_line(values, points):
    assert pictures.polyline(values) == points


@pytest.mark.parametrize(
    ("then", "said"),
    [
        (None, "never"),
        (100.0, "0 seconds ago"),
        (99.0, "1 second ago"),
        (40.0, "1 minute ago"),
        (100.0 - 7200, "2 hours ago"),
        (100.0 - 86_400, "1 day ago"),
        (101.0, "0 seconds ago"),  # the clock was set back
    ],
)
def test_how_long_ago(then, said):
    assert owner.ago(then, 100.0) == said


@pytest.mark.parametrize(
    "path",
    [
        *["/owner/items/99999", "/owner/annotators/99999", "/owner/guidelines?version=none"],
        *["/owner/items/0", "/owner/nowhere"],
    ],
)
def test_what_is_not_there_is_said_to_be_missing(browser, path):
    reply = browser.get(path)
    assert reply.status == 404
    assert 'role="alert"' in reply.text


@pytest.mark.parametrize(
    "path",
    [
        *["/owner/items/x", "/owner/items/99999999999", "/owner/items?state=lost"],
        *["/owner/items?after=-1", "/owner/export/all"],
    ],
)
def test_what_makes_no_sense_is_refused(browser, path):
    assert browser.get(path).status == 422


@pytest.mark.parametrize(
    ("path", "form", "status"),
    [
        ("/owner/pause", {}, 422),
        ("/owner/pause", {"on": "perhaps"}, 422),
        ("/owner/links", {"kind": "king"}, 422),
        ("/owner/links", {"kind": "person", "days": "-1"}, 422),
        ("/owner/links", {"kind": "person", "name": "x" * 101}, 422),
        ("/owner/links", {"kind": "person", "name": "ben"}, 422),
        ("/owner/links", {"kind": "person", "name": "a\0b"}, 422),
        ("/owner/links/99999/revoke", {}, 404),
        ("/owner/annotators/99999/block", {"on": "1"}, 404),
        ("/owner/annotators/99999/link", {}, 404),
        ("/owner/items/99999/ask", {}, 404),
        ("/owner/guidelines", {}, 422),
    ],
    ids=str,
)
def test_forms_that_make_no_sense_are_refused(browser, path, form, status):
    assert browser.post(path, form=form).status == status


# what the forms do


def link(reply) -> str:
    """The path of a link that a page shows."""
    found = re.search(r'readonly value="http://[^/]+(/[^"]+)"', reply.text)
    assert reply.status == 200 and found
    return html.unescape(found[1])


def test_a_pause_stops_items_and_not_answers(server, browser):
    script = server.script("paused")
    held = script.post("/api/lease").json
    assert browser.post("/owner/pause", form={"on": "1"}).status == 303
    assert "paused" in browser.get("/owner").text
    assert script.post("/api/lease").headers["why"] == "paused"
    assert script.judge(held).status == 201
    assert browser.post("/owner/pause", form={"on": "0"}).status == 303
    assert script.post("/api/lease").status == 200


def test_a_link_for_a_person_is_shown_once_and_opens(server, browser):
    made = link(browser.post("/owner/links", form={"kind": "person", "name": "cleo"}))
    Client(server.url).open(made)
    page = browser.get("/owner/links").text
    assert "cleo" in page and made not in page
    other = link(browser.post("/owner/links", form={"kind": "owner", "days": "3"}))
    assert Client(server.url).open(other).get("/owner").status == 200


def test_a_further_link_is_for_the_same_person(server, browser):
    first = link(browser.post("/owner/links", form={"kind": "person", "name": "dora"}))
    number = re.search(r'/owner/annotators/(\d+)">dora<', browser.get("/owner").text)
    assert number
    second = link(browser.post(f"/owner/annotators/{number[1]}/link"))
    one, other = (Client(server.url).open(x) for x in (first, second))
    assert one.post("/api/lease").json["lease"] == other.post("/api/lease").json["lease"]


def test_a_link_for_prolific_has_its_names(server, browser):
    made = link(browser.post("/owner/links", form={"kind": "prolific"}))
    names = "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
    assert made.endswith(names)
    filled = made.replace("{{%PROLIFIC_PID%}}", "p7").replace("{{%", "").replace("%}}", "")
    Client(server.url).open(filled)
    assert "prolific p7" in browser.get("/owner").text


def test_a_blocked_person_is_shut_out_and_let_in_again(server, browser):
    person = server.browser("erin")
    number = re.search(r'/owner/annotators/(\d+)">erin<', browser.get("/owner").text)
    assert number
    at = f"/owner/annotators/{number[1]}"
    assert person.judge(person.post("/api/lease").json).status == 201
    count = "1 by blocked people"
    assert count not in browser.get("/owner").text
    assert browser.post(f"{at}/block", form={"on": "1"}).status == 303
    assert person.post("/api/lease").status == 403
    assert "<strong>blocked" in browser.get(at).text and count in browser.get("/owner").text
    assert browser.post(f"{at}/block", form={"on": "0"}).status == 303
    assert person.post("/api/lease").status == 200
    assert count not in browser.get("/owner").text


def test_an_item_is_asked_once_more(tmp_path):
    more = {"training_count": 0, "gold_share": 0, "repeat_share": 0, "park_after": 1}
    with serving(tmp_path, **more) as server:
        server.put(pairs(1))
        ada, ben, browser = server.script("ada"), server.script("ben"), server.owner()
        ada.judge(ada.post("/api/lease").json)
        assert ben.post("/api/lease").headers["why"] == "done"
        assert browser.post("/owner/items/1/ask").status == 303
        held = ben.post("/api/lease").json
        skip = {"key": str(uuid.uuid4()), "reason": "broken", "lease": held["lease"]}
        assert ben.post("/api/skip", body=skip).status == 201
        cleo = server.script("cleo")
        assert cleo.post("/api/lease").status == 204  # one skip put it aside
        assert "pair-0" in browser.get("/owner/items?state=parked").text
        assert "Offer it again" in browser.get("/owner/items/1").text
        assert browser.post("/owner/items/1/open").status == 303
        assert "Put it aside" in browser.get("/owner/items/1").text
        assert browser.post("/owner/items/1/park").status == 303
        assert cleo.post("/api/lease").status == 204
        assert browser.post("/owner/items/1/open").status == 303
        assert cleo.judge(cleo.post("/api/lease").json).status == 201
        assert "2 of 2 judgements" in browser.get("/owner").text
        said = re.findall(r"<tr><td>[^<]*</td><td>([^<]*)</td>", browser.get("/owner/log").text)
        did = ["Offered an item again", "Put an item aside", "Offered an item again"]
        did += ["Made a link", "Skips put an item aside", "Asked one more person"]
        assert said[:6] == did


def test_the_log_has_what_the_owner_did_and_neither_texts_nor_tokens(server, browser):
    with server.opened() as db, db.read() as c:
        before = len(events.latest(c, 10_000))
    for on in "110":  # the second one changes nothing
        browser.post("/owner/pause", form={"on": on})
    made = link(browser.post("/owner/links", form={"kind": "person", "name": "frieda"}))
    further = link(browser.post("/owner/annotators/1/link"))
    browser.post("/owner/annotators/1/block", form={"on": "1"})
    browser.post("/owner/annotators/1/block", form={"on": "0"})
    browser.post("/owner/guidelines", form={"text": "Be kind."})
    with server.opened() as db, db.read() as c:
        found = events.latest(c, 10_000)[:-before]
        last = found[3].detail["link"]
    assert browser.post(f"/owner/links/{last}/revoke").status == 303
    assert {x.kind for x in found} <= {*events.KINDS}
    kinds = "guidelines unblock block invite invite resume pause"
    assert [x.kind for x in found] == kinds.split()
    assert [x.annotator for x in found[1:4]] == [1, 1, 1] and found[4].name == "frieda"
    kept = str([(x.kind, x.detail) for x in found])
    assert not [x for x in (made[3:], further[3:], "frieda", "kind.", HOSTILE) if x in kept]
    page = html.unescape(browser.get("/owner/log").text)
    assert re.search(
        rf"Withdrew a link</td>\n.*\n<td></td>\n<td>link: {last}; who: person</td>", page
    )


def test_guidelines_have_versions_which_judgements_name(server, browser):
    script = server.script("reader")
    before = script.post("/api/lease").json["guidelines_version"]
    script.judge(script.post("/api/lease").json)
    assert browser.post("/owner/guidelines", form={"text": "# New\r\nones"}).status == 303
    after = script.post("/api/lease").json["guidelines_version"]
    assert before != after
    page = browser.get("/owner/guidelines").text
    assert "# New\nones</textarea>" in page and before in page and after in page
    assert "# New" not in browser.get(f"/owner/guidelines?version={before}").text.split("<h2>")[0]
    assert "New" in server.browser("reads").get("/guidelines").text


def test_exports_are_downloads(browser):
    kinds = re.findall(r'href="(/owner/export/[^"]+)"', browser.get("/owner").text)
    assert len(kinds) == 6
    for path in kinds:
        reply = browser.get(html.unescape(path))
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("application/x-ndjson")
        name = path.split("/")[3].partition("?")[0]
        assert reply.headers["content-disposition"] == f'attachment; filename="{name}.jsonl"'
        assert reply.headers["x-content-type-options"] == "nosniff"
        rows = [json.loads(x) for x in reply.text.splitlines()]
        assert bool(rows) == (name in ("raw", "comparisons", "trl", "demonstrations")), name


def test_many_items_have_several_pages(server, browser):
    server.put([{**x, "id": f"many-{i:03}"} for i, x in enumerate(pairs(250))])
    path, seen = "/owner/items", []
    while path:
        page = html.unescape(browser.get(path).text)
        seen += re.findall(r'/owner/items/(\d+)"', page)
        more = re.search(r'"(/owner/items\?state=&after=\d+)"', page)
        path = more[1] if more else ""
    assert len(seen) == len({*seen}) == 280


def test_signing_out_ends_the_session(server):
    browser = server.owner()
    reply = browser.post("/owner/logout")
    assert (reply.status, reply.headers["location"]) == (303, "/owner/login")
    assert browser.get("/owner").status == 401


def test_exports_of_several_questions_are_told_apart(tmp_path):
    with serving(tmp_path, training_count=0, gold_share=0, repeat_share=0) as server:
        asked = ["", "Which is \ud800 kinder?", "q" * 200_000]
        server.put([{**x, "question": q} for x, q in zip(pairs(3), asked, strict=True)])
        script, browser = server.script(), server.owner()
        for _ in asked:
            script.judge(script.post("/api/lease").json)
        links = re.findall(r'href="(/owner/export/comparisons[^"]*)"', browser.get("/owner").text)
        found = [browser.get(x).text.splitlines() for x in links]
        assert [len(x) for x in found] == [1, 1, 1]
        assert len({x[0] for x in found}) == 3
        assert browser.get("/owner/export/comparisons").status == 422  # which of them?
        assert browser.get("/owner/export/comparisons?question=9").status == 404
