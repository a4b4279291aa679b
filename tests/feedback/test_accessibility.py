"""axe-core finds nothing at WCAG 2.0 to 2.2, levels A and AA, on any page, in the light and in the dark."""

import os
import pathlib

import pytest
import serving
import sqlalchemy as sa

from feedback.store import schema

AXE = os.environ.get("AXE") or str(serving.ROOT / "node_modules/axe-core/axe.min.js")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RUN = """async tags => {
  const found = await axe.run({ runOnly: { type: 'tag', values: tags } });
  return found.violations.flatMap(x => x.nodes.map(y => `${x.id}: ${y.target} ${y.failureSummary}`));
}"""
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is that? \u202e"},
    {"role": "pirate", "content": "<b>Arr</b>"},
]
TRAINING = {"purpose": "training", "gold": "a", "reason": "The first one is right."}
ITEMS = [
    *serving.pairs(1, **TRAINING),
    {"id": "chat", "prompt": CHAT, "responses": ["A ship, says he.", "A boat, she says.\u200b"]},
    {"id": "stars", "prompt": "Rate.", "responses": ["x" * 3000], "scale": "stars"},
    {"id": "thumbs", "prompt": "Good?", "responses": ["yes\n\nno"]},
    {"id": "ranks", "kind": "ranking", "prompt": "Rank.", "responses": [*"abcde"]},
]
LOOKS = [
    {"viewport": {"width": 1280, "height": 800}},
    {"viewport": {"width": 320, "height": 640}, "color_scheme": "dark"},
]


@pytest.fixture(scope="module")
def axe():
    if not pathlib.Path(AXE).is_file():
        pytest.skip(f"there is no {AXE}: npm install axe-core, or set the environment variable AXE")
    return pathlib.Path(AXE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {"training_pass": 0, "gold_share": 0, "repeat_share": 0, "pause_after_items": 2}
    with serving.serving(
        tmp_path_factory.mktemp("axe"), completion_code="C0DE", **settings
    ) as server:
        server.put([{**x, "wanted": x.get("wanted", 9)} for x in ITEMS])
        yield server


@pytest.fixture
def check(axe):
    """A function of a page that holds it to the rules; it counts the pages by their headings."""
    seen = []

    def look(page) -> None:
        page.evaluate(axe)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")  # where the bar covers nothing
        assert page.evaluate(RUN, TAGS) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.lang") == "en"
        seen.append(page.title())

    look.seen = seen
    return look


def answer(me) -> None:
    """Answers the item, whatever it asks."""
    for i, one in enumerate(me.page.locator("select").all()):
        one.select_option(str(i + 1))
    with me.moving():
        me.page.locator(".choices button").last.click()


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark"])
def test_every_page_of_annotators(server, person, check, look):
    me = person(server, f"walker {look.get('color_scheme')}", **look)
    check(me.page)  # training
    answer(me)
    check(me.page)  # the reason
    me.page.get_by_role("link", name="Next").click()
    kinds = set()
    while me.page.locator(".choices").count():
        me.settle()
        check(me.page)
        for key in "cwds":  # everything open
            me.page.keyboard.press(key)
            me.page.keyboard.press("Escape")
        check(me.page)
        for name in ("Guidelines", "Keys"):
            me.page.get_by_role("link", name=name).click()
            me.page.locator("dialog[open] h1").wait_for()
            check(me.page)
            me.page.locator("dialog [data-close]").click()
        kinds.add(me.page.locator("#question").inner_text())
        answer(me)
    assert len(kinds) == 4
    check(me.page)  # done, with the offer of an undo
    me.page.get_by_role("link", name="Your judgements").click()
    check(me.page)
    me.page.go_back()
    me.settle()
    me.press("u")
    check(me.page)  # again, with what was said
    me.page.locator("#comment").evaluate("x => { x.value = 'typed'; }")
    me.page.locator("summary", has_text="Skip").click()
    me.page.get_by_role("button", name="Broken").click()
    me.page.get_by_role("heading", name="Skip, although you typed something?").wait_for()
    check(me.page)
    for path in ("/guidelines", "/keys", "/bye", "/nowhere", "/i/nowhere"):
        me.page.goto(path)
        check(me.page)
    me.context.clear_cookies()
    for path in ("/", "/bye"):
        me.page.goto(path)
        check(me.page)
    assert len({*check.seen}) >= 12


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark"])
def test_every_page_for_those_who_get_no_item(server, person, check, look):
    people, state, x = schema.annotator, schema.state, schema.exclusion
    why = {
        "The work is paused": {},
        "Thank you for trying this": {"training": "failed"},
        "All done: thank you": {"training": "passed", "finished": 1},
    }
    for heading, columns in why.items():
        with server.writing() as c:
            c.execute(sa.insert(state).values(name="paused", value="1"))
        me = person(server, f"{heading} {look.get('color_scheme')}", **look)
        with server.writing() as c:
            who = sa.select(people.c.id).where(people.c.name == me.name).scalar_subquery()
            if columns:
                c.execute(sa.update(people).where(people.c.name == me.name).values(**columns))
                c.execute(sa.delete(state).where(state.c.name == "paused"))
            skipped = sa.select(schema.item.c.id, who, sa.literal("skip"))
            c.execute(sa.insert(x).from_select([x.c.item, x.c.annotator, x.c.why], skipped))
        me.page.reload()
        assert me.heading == heading
        assert ("C0DE" in me.page.content()) == ("finished" in columns)
        check(me.page)
        with server.writing() as c:
            c.execute(sa.delete(state).where(state.c.name == "paused"))


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark"])
def test_every_page_of_the_owner(server, person, check, look):
    me = person(server, f"judge {look.get('color_scheme')}", **look)
    answer(me)
    me.page.goto("/owner/login")
    check(me.page)
    me.page.goto(server.owner_link)
    paths = {"/owner"}
    for path in (
        "/owner",
        "/owner/judgements",
        "/owner/items",
        "/owner/links",
        "/owner/guidelines",
        "/owner/log",
        "/owner/agreement",
    ):
        me.page.goto(path)
        check(me.page)
        links = me.page.locator("a[href^='/owner']:not([download])")
        paths |= {*links.evaluate_all("x => x.map(y => y.getAttribute('href'))")}
    deep = [x for x in sorted(paths) if x.count("/") > 2 and "export" not in x]
    assert len(deep) >= 2
    for path in deep[:8]:
        me.page.goto(path)
        check(me.page)
