"""The pages of annotators: keys and their switch, every kind of item, training, pauses, and the last page."""

import re
import uuid

import pytest
import serving
import world

from feedback.entry.access import Session
from feedback.web import screens, text, wording

PLAIN = {"training_count": 0, "gold_share": 0, "repeat_share": 0}
KINDS = [
    {"id": "stars", "kind": "single", "scale": "stars", "prompt": "Rate it.", "responses": ["one"]},
    {"id": "thumbs", "kind": "single", "prompt": "Is it good?", "responses": ["two"]},
    {"id": "ranks", "kind": "ranking", "prompt": "Rank.", "responses": ["x", "y", "z"]},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving.serving(tmp_path_factory.mktemp("pages"), **PLAIN) as server:
        server.put(serving.pairs(4, wanted=100))
        yield server


def test_digits_in_a_comment_and_keys_with_a_modifier_judge_nothing(server, person):
    me = person(server, "typist")
    me.settle()
    for key in ("Control+1", "Alt+2", "Meta+3", "Shift+U", "Control+Shift+0", "x", "6"):
        me.page.keyboard.press(key)
    me.page.locator("summary", has_text="Comment").click()
    me.page.locator("#comment").press_sequentially("1 2 3 4 5 0 u s d g ? n")
    me.page.locator("#comment").press("Enter")
    me.page.locator("[name=differences]").focus()
    me.page.keyboard.press("Enter")
    assert me.heading == "Pair 1 of 4"
    assert [x for x in me.posts if not x.endswith("/draft")] == []
    assert me.page.locator("#comment").input_value() == "1 2 3 4 5 0 u s d g ? n\n"
    assert not me.page.locator("dialog").is_visible()


def test_enter_in_a_box_judges_nothing_without_a_script_either(server, person):
    me = person(server, "enter", java_script_enabled=False)
    me.page.locator("[name=differences]").focus()
    with me.page.expect_navigation():
        me.page.keyboard.press("Enter")
    assert me.heading == "Pair 1 of 4"
    assert me.rows() == []


def test_the_switch_turns_keys_off_and_the_browser_remembers(server, person):
    me = person(server, "switch")
    box = me.page.get_by_role("checkbox", name="Single keys")
    assert me.page.locator("[name=degree] kbd").first.is_visible()
    box.uncheck()
    me.page.reload()
    me.settle()
    assert not box.is_checked()
    assert not me.page.locator("[name=degree] kbd").first.is_visible()
    for key in "12345usd":
        me.page.keyboard.press(key)
    assert me.heading == "Pair 1 of 4"
    assert me.posts == []
    box.check()
    me.press("2")
    assert me.choices() == [{"degree": -1}]


def test_differences_are_underlined_and_coloured_when_wanted_and_that_is_stored(server, person):
    me = person(server, "differ")
    marked = me.page.locator(".different").first
    look = "x => [getComputedStyle(x).textDecorationLine, getComputedStyle(x).backgroundColor]"
    assert marked.evaluate(look) == ["none", "rgba(0, 0, 0, 0)"]
    me.settle()
    me.page.keyboard.press("d")
    line, ground = marked.evaluate(look)
    assert line == "underline"
    assert ground != "rgba(0, 0, 0, 0)"
    me.press("1", "1")  # off again at the second pair
    assert [x.differences for x in me.rows()] == [True, False]


def test_a_reload_shows_the_same_pair_in_the_same_order(server, person):
    me = person(server, "again")
    for _ in range(3):
        shown = me.page.locator(".text").all_text_contents()
        me.page.reload()
        assert me.page.locator(".text").all_text_contents() == shown


def test_help_opens_over_the_page_and_leads_back(server, person):
    me = person(server, "help")
    for key, heading in (("g", "Guidelines"), ("?", "Keys")):
        me.settle()
        me.page.keyboard.press(key)
        me.page.locator("dialog").get_by_role("heading", name=heading).wait_for()
        me.page.keyboard.press("1")  # for the page below: ignored
        me.page.keyboard.press("Escape")
        assert not me.page.locator("dialog").is_visible()
    me.press("1")
    assert len(me.rows()) == 1


@pytest.mark.parametrize("script", [True, False], ids=["script", "plain"])
def test_every_kind_by_the_keyboard(tmp_path, person, script):
    with serving.serving(tmp_path, **PLAIN) as server:
        server.put(KINDS)
        me = person(server, "kinds", java_script_enabled=script)
        while me.page.locator(".choices").count():
            ranks = me.page.locator("select").all()
            for one, rank in zip(ranks, "212", strict=False):
                one.focus()
                me.page.keyboard.press(rank)
            stars = me.page.locator("[name=rating]").count() == 5
            name = "Save" if ranks else "4 stars" if stars else "Good"
            if script and not ranks:
                me.settle()
                me.press("4" if stars else "1")
                continue
            me.page.get_by_role("button", name=name).focus()
            with me.moving() if script else me.page.expect_navigation():
                me.page.keyboard.press("Enter")
        chosen = [next(iter(x.items())) for x in me.choices()]
        assert sorted(chosen, key=str) == [("ranks", [2, 1, 2]), ("rating", 1), ("rating", 4)]


def test_a_ranking_wants_every_rank(tmp_path, person):
    with serving.serving(tmp_path, **PLAIN) as server:
        server.put(KINDS[-1:])
        me = person(server, "ranks")
        me.page.locator("select").first.select_option("1")
        me.page.get_by_role("button", name="Save").click()
        assert me.page.evaluate("document.activeElement.name") == "rank"
        assert me.posts == []


@pytest.mark.parametrize("right", [True, False], ids=["passes", "fails"])
def test_training_says_why_and_who_fails_gets_a_kind_page(tmp_path, person, right):
    fields = {"purpose": "training", "gold": "a", "reason": "Good is better <b>than</b> bad."}
    with serving.serving(tmp_path, **{**PLAIN, "training_count": 2}) as server:
        server.put(serving.pairs(2, **fields))
        server.put([{**x, "id": x["id"] + "w"} for x in serving.pairs(2)])
        me = person(server, "trainee")
        for number in (1, 2):
            assert me.heading == f"Training pair {number} of 2"
            good_first = me.page.locator(".response").first.inner_text().find("good") >= 0
            me.settle()
            me.press("1" if good_first == right else "5")
            said = me.page.locator(".notice").inner_text()
            assert "Good is better <b>than</b> bad." in said
            assert ("Expected" in said) != right
            assert me.page.locator(".response").count() == 2
            me.page.keyboard.press("n")
            me.page.wait_for_url("**/?after=1")
        if right:
            assert me.heading == "Pair 1 of 2"
            me.page.get_by_role("link", name="Your judgements").click()
            assert me.page.get_by_text("An answer of the training stands.").count() == 2
            assert me.page.get_by_role("button", name="Undo").count() == 0
            me.page.go_back()
            assert me.page.locator("[data-key=u]").is_disabled()
        else:
            assert me.heading == "Thank you for trying this"
            assert "no more to judge" in me.page.locator("main").inner_text()


def test_every_judgement_of_the_session_is_listed_and_can_be_taken_back(server):
    token = server.invite("lists")
    me, keys = serving.Client(server.url).open(f"/i/{token}"), []
    for degree in (-1, 0, 2):
        keys.insert(0, str(uuid.uuid4()))
        held = me.post("/api/lease").json
        me.judge(held, {"degree": degree}, key=keys[0], comment=f"said {degree}")
    keys.insert(0, str(uuid.uuid4()))
    lease = me.post("/api/lease").json["lease"]
    me.post("/api/skip", body={"key": keys[0], "lease": lease, "reason": "cannot_tell"})
    assert 'href="/judgements"' in me.get("/").text
    page = me.get("/judgements").text
    assert re.findall(r'name="of" value="([^"]+)"', page) == keys
    said = ["Skipped: cannot tell", "B much better", "As good", "A better"]
    assert re.findall(r'aria-label="(.*?)"', page)[:4] == [
        f"Undo {n}: {x}" for n, x in enumerate(said, 1)
    ]
    rest = me.get("/judgements?start=3").text
    assert re.findall(r'name="of" value="([^"]+)"', rest) == keys[3:]
    form = dict(re.findall(r'name="(csrf|key|of)" value="([^"]+)"', rest))
    assert {*form} == {"csrf", "key", "of"}
    me.csrf = ""  # the form has it
    again = me.post("/undo", form=form)
    assert again.status == 303
    shown = me.get(again.headers["location"]).text
    assert "You had said: A better." in shown and "said -1</textarea>" in shown
    assert keys[3] not in me.get("/judgements").text
    other = serving.Client(server.url).open(f"/i/{token}")  # a session of its own
    assert "Nothing yet." in other.get("/judgements").text
    assert me.get("/judgements?start=-1").status == 422


def test_the_page_after_an_undo_says_whether_the_item_is_there(new_db):
    db = new_db("sqlite")
    world.put(db, world.pairs(1))
    ann, bob = world.people(db, "ann", "bob")
    world.skip(db, ann, world.lease(db, ann), key_="s")
    other = world.lease(db, bob)
    world.undo(db, ann, "s", "u")

    def told() -> list[str]:
        with db.write() as c:
            return screens.screen(c, world.PLAIN, session(ann), "u")[1]["notices"]

    assert told() == [wording.GONE]
    world.skip(db, bob, other)
    assert told() == [wording.AGAIN]
    world.judge(db, ann, world.lease(db, ann))
    assert told() == []  # Back, or a page that was loaded again


def session(annotator: int) -> Session:
    """A script of an annotator's."""
    return Session(None, "annotator", annotator, "", False, 0.0, None)


def test_a_long_list_has_pages_and_long_prompts_are_cut(new_db):
    db = new_db("sqlite")
    keys = world.judged(db, screens.PAGE + 1)[::-1]
    with db.read() as c:
        pages = [screens.judged(c, session(1), start) for start in (0, screens.PAGE)]
    assert [[x["of"] for x in page["rows"]] for page in pages] == [keys[:-1], keys[-1:]]
    assert [(x["earlier"], x["later"]) for x in pages] == [(screens.PAGE, 0), (0, 0)]
    long = [text.Turn("user", "x"), text.Turn("user", "y" * 1000)]
    assert screens.beginning(long) == "y" * screens.BEGINNING + "…"
    assert screens.beginning(long[:1]) == "x" and screens.beginning([]) == ""


def test_a_pause_is_offered_and_the_way_back_is_kept(tmp_path, person):
    with serving.serving(tmp_path, **PLAIN, pause_after_items=2) as server:
        server.put(serving.pairs(5))
        me = person(server, "tired")
        me.settle()
        offered = []
        for _ in range(4):
            me.press("3")
            offered.append(me.page.get_by_text("short pause").count())
        assert offered == [0, 1, 0, 1]
        me.page.get_by_role("link", name="Pause now").click()
        assert "You have judged 4" in me.page.locator("main").inner_text()
        me.page.get_by_role("link", name="Go on judging").click()
        assert me.heading == "Pair 5 of 5"
        me.page.goto("/bye")
        me.page.get_by_role("button", name="Sign out").click()
        me.page.get_by_text("You are signed out").wait_for()
        me.page.goto("/")
        assert me.heading == "Please open your link"


def test_the_last_page_says_why_and_has_the_code_for_those_who_finished(tmp_path, person):
    with serving.serving(tmp_path, **PLAIN, completion_code="C0DE") as server:
        server.put(serving.pairs(2))
        me, other = person(server, "me"), person(server, "other")
        me.settle()
        me.press("1")
        assert me.heading == "Nothing for you at this moment"  # the other person has the last one
        assert "C0DE" not in me.page.content()
        other.settle()
        other.press("1")
        me.page.get_by_role("link", name="Look again").click()
        assert me.heading == "All done: thank you"
        assert "C0DE" in me.page.content()
