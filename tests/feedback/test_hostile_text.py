"""Hostile texts: no dialog, no request elsewhere, and the text shown is the text stored."""

import re
import urllib.parse

import hostile
import pytest
import serving
import sqlalchemy as sa

from feedback.store import drafts, guidelines, schema
from feedback.web import marks, screens, text

TEXTS = hostile.TEXTS


def item(number: int, said: str) -> dict:
    """A training item with a text in every field that a page shows."""
    turns = [{"role": said, "content": said}, {"role": "user", "content": said}]
    return {
        "id": f"{number} {marks.shown(said)[:40]}",
        "prompt": turns if number % 2 else said,
        "question": said,
        "responses": [{"text": said, "policy": said}, {"text": said + "!"}],
        "purpose": "training",
        "gold": "a",
        "reason": said,
        "metadata": {"x": said},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {"training_count": len(TEXTS), "training_pass": 0}
    with serving.serving(tmp_path_factory.mktemp("hostile"), **settings) as server:
        server.put([item(i, x) for i, x in enumerate(TEXTS)])
        with server.writing() as c:
            guidelines.publish(c, hostile.GUIDELINES)
        yield server


def untouched(page) -> None:
    """Nothing of a text ran, and none of it is an element."""
    assert page.evaluate("window.hacked") is None
    assert page.locator(".text :not(span)").count() == 0
    assert page.locator("img, iframe, object, embed, svg script, base, plaintext").count() == 0
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def lines(said: str) -> str:
    """A text as a field of a form has it."""
    return marks.shown(said).replace("\r\n", "\n").replace("\r", "\n")


def typed(server, name: str) -> None:
    """Keeps each text as this person's draft about its item."""
    people, items = schema.annotator, schema.item
    with server.writing() as c:
        who = c.scalar(sa.select(people.c.id).where(people.c.name == name))
        ids = c.scalars(sa.select(items.c.id).order_by(items.c.id)).all()
        for id, said in zip(ids, TEXTS, strict=True):
            drafts.save(c, who, id, said, said)


def test_every_field_of_every_page(server, person):
    name = "<b>me</b>{{ 7 * 7 }}"
    me = person(server, name)
    page = me.page
    typed(server, name)
    page.reload()
    for number, said in enumerate(TEXTS):
        untouched(page)
        asked = [turn.text for turn in text.turns(item(number, said)["prompt"])]
        assert page.locator(".prompt .text").all_text_contents() == [marks.shown(x) for x in asked]
        if number % 2:
            speaker = marks.shown(text.Turn(said, "").speaker)
            assert page.locator(".speaker").all_text_contents() == [speaker, "User"]
        assert page.locator("#question").text_content() == marks.shown(said)
        responses = page.locator(".response .text").all_text_contents()
        assert sorted(responses) == sorted(marks.shown(x) for x in (said, said + "!"))
        for field in ("#comment", "#better"):
            assert page.locator(field).input_value() == lines(said)
        with me.moving():
            page.locator("[name=degree]").first.click()
        untouched(page)  # the page of the reason
        assert page.locator(".notice .text").text_content() == marks.shown(said)
        assert sorted(page.locator(".response .text").all_text_contents()) == sorted(responses)
        page.goto("/")
    page.goto("/judgements")
    untouched(page)
    prompts = [text.turns(item(i, x)["prompt"]) for i, x in enumerate(TEXTS)][::-1]
    listed = page.locator("main > .text").all_text_contents()
    assert listed == [marks.shown(screens.beginning(x)) for x in prompts[: screens.PAGE]]
    assert [(x.comment, x.better) for x in me.rows()] == [(lines(x), lines(x)) for x in TEXTS]
    owner(server, me)


def owner(server, me) -> None:
    """Sees everything on the owner's pages."""
    page = me.page
    page.goto(server.owner_link)
    for path in (
        "/owner",
        "/owner/items",
        "/owner/judgements",
        "/owner/links",
        "/owner/annotators/1",
        "/owner/log",
        "/owner/agreement",
    ):
        page.goto(path)
        untouched(page)
        if path in ("/owner", "/owner/links"):
            assert me.name in page.locator("table").first.text_content()
    page.goto("/owner/items")
    links = page.locator("table a").evaluate_all("x => x.map(y => y.pathname)")
    assert len(links) == len(TEXTS)
    for number, said in enumerate(TEXTS):
        page.goto(f"/owner/items/{number + 1}")
        untouched(page)
        shown = page.locator("main").text_content()
        assert shown.count(marks.shown(said)) >= 5
        comments = page.locator("td .text").all_text_contents()
        assert comments == [lines(said)] * 2 if said else comments == []


def test_the_page_of_a_session_that_ended_shows_what_was_typed(server, person):
    me = person(server, "ended")
    body = {
        x.get_attribute("name"): x.input_value() for x in me.page.locator("[type=hidden]").all()
    }
    me.context.clear_cookies()
    for said in hostile.STRINGS:
        sent = re.sub("[\ud800-\udfff]", "\ufffd", said)  # what browsers send
        form = urllib.parse.urlencode({**body, "degree": 1, "comment": sent})
        reply = me.page.request.post(
            "/judge", data=form, headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert reply.status == 401
        assert f'<textarea readonly rows="6">{text.typed(said)}</textarea>' in reply.body().decode()


def test_guidelines_have_no_script_and_no_picture_and_ask_nobody(server, person):
    me = person(server, "reader")
    for path in ("/guidelines", "/"):
        me.page.goto(path)
        if path == "/":
            me.page.get_by_role("link", name="Guidelines").click()
            me.page.locator("dialog[open] h1").wait_for()
        inside = me.page.locator(".guidelines")
        assert inside.locator("script, img, svg, style, iframe, form, input").count() == 0
        links = inside.locator("a").evaluate_all("x => x.map(y => y.href)")
        assert {*links} == {"https://example.org/", f"{hostile.ELSEWHERE}/pixel.png"}
        assert "<script>" in inside.locator("h2").inner_text()
        assert inside.locator(".mark[data-mark=RLO]").count() == 1
        assert "{{ 7 * 7 }}" in inside.inner_text()
        assert me.page.evaluate("window.hacked") is None


def test_there_are_about_sixty():
    assert len({*hostile.STRINGS}) == len(hostile.STRINGS) >= 60
    assert all(any(x in text for text in TEXTS) for x in hostile.STRINGS)
