"""The page under real hands: keys alone, touch, a mouse at 200 % zoom, and no script at all."""

import browsers
import pytest
import serving

KEYS = "1234501234"
SAID = [{"degree": int(x) - 3} if x != "0" else {"both_bad": True} for x in KEYS]
PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
ZOOMED = {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2}
TARGETS = """() => [...document.querySelectorAll('button, summary, select, nav a, label:has(input)')]
  .filter(x => x.checkVisibility()).map(x => [x.innerText, Math.round(x.getBoundingClientRect().height)])"""
SPACED = """() => document.querySelectorAll('main *').forEach(x => {
  const em = { lineHeight: 1.5, letterSpacing: '.12em', wordSpacing: '.16em', marginBlockEnd: '2em' };
  Object.assign(x.style, x.matches('p') ? em : { ...em, marginBlockEnd: x.style.marginBlockEnd });
})"""
CUT = """() => [...document.querySelectorAll('button, summary, .text')].filter(x => x.checkVisibility())
  .filter(x => x.scrollWidth > x.clientWidth || x.scrollHeight > x.clientHeight).map(x => x.innerText)"""
HELD = """ms => {
  for (const x of document.querySelectorAll('.choices, .more > button')) {
    x.style.animation = 'none';  // it may be over by now: begin again
    x.offsetWidth;
    x.style.animation = '';
  }
  document.getAnimations().forEach(x => { x.pause(); x.currentTime = ms; });
}"""
COVERED = """() => {
  const [it, deck] = [document.activeElement, document.querySelector('.deck')];
  if (deck.contains(it) || getComputedStyle(deck).position !== 'sticky') return false;
  const [a, b] = [it.getBoundingClientRect(), deck.getBoundingClientRect()];
  return a.bottom > b.top && a.top > b.top;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {"training_count": 0, "gold_share": 0, "repeat_share": 0}
    with serving.serving(tmp_path_factory.mktemp("hands"), **settings) as server:
        server.put(serving.pairs(10, wanted=100))
        yield server


def test_ten_pairs_by_keys_alone(server, person):
    me = person(server, "keys")
    me.settle()
    for number, key in enumerate(KEYS, 1):
        assert me.heading == f"Pair {number} of 10"
        me.press(key)
        assert me.page.evaluate("document.activeElement.id") == "heading"
    assert me.heading == "All done: thank you"
    assert me.choices() == SAID
    assert all(row.visible_ms >= 400 and row.page_version for row in me.rows())


def test_ten_pairs_by_touch_on_a_narrow_phone(server, person):
    me = person(server, "touch", **PHONE)
    me.page.evaluate(SPACED)
    assert me.page.evaluate("document.documentElement.scrollWidth") == 320
    assert me.page.evaluate(CUT) == []
    me.page.reload()
    for choice in SAID:
        assert me.page.evaluate("document.documentElement.scrollWidth") == 320
        assert [x for x in me.page.evaluate(TARGETS) if x[1] < 44] == []
        tops = me.page.locator(".response").evaluate_all("x => x.map(y => y.offsetTop)")
        assert tops[0] < tops[1]
        with me.moving():
            me.page.locator(button(choice)).tap()
    assert me.choices() == SAID


def test_ten_pairs_by_mouse_at_twice_the_size(server, person):
    me = person(server, "mouse", **ZOOMED)
    for choice in SAID:
        assert me.page.evaluate("document.documentElement.scrollWidth") == 640
        with me.moving():
            me.page.locator(button(choice)).click()
    assert me.choices() == SAID


def test_ten_pairs_without_a_script(server, person):
    me = person(server, "plain", java_script_enabled=False)
    for number, choice in enumerate(SAID, 1):
        assert me.heading == f"Pair {number} of 10"
        with me.page.expect_navigation():
            me.page.locator(button(choice)).click()
    assert me.heading == "All done: thank you"
    assert me.choices() == SAID


def test_ten_pairs_in_the_dark(server, person):
    me, light = person(server, "dark", color_scheme="dark"), person(server, "light")
    ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).every(x => x < 60)"
    assert me.page.evaluate(ground)
    assert not light.page.evaluate(ground)
    me.settle()
    me.press(*KEYS)
    assert me.choices() == SAID


def button(choice: dict) -> str:
    """The selector of a choice's button."""
    return (
        "[name=both_bad]" if "both_bad" in choice else f"[name=degree][value='{choice['degree']}']"
    )


def test_responses_stand_side_by_side_and_alike_where_there_is_room(server, person):
    me = person(server, "wide", viewport={"width": 720, "height": 800})
    first, second = me.page.locator(".response").evaluate_all(
        "x => x.map(y => [y.offsetTop, y.offsetWidth, getComputedStyle(y).font])"
    )
    assert first == second


def test_a_held_key_judges_one_pair(server, person):
    me = person(server, "held")
    me.settle()
    with me.moving():
        me.page.keyboard.down("2")
    for _ in range(5):
        me.page.keyboard.down("2")  # what a keyboard sends while the key is held
        me.settle()
    assert me.heading == "Pair 2 of 10"
    assert len(me.posts) == 1
    me.page.keyboard.up("2")
    me.press("2")
    assert len(me.rows()) == 2


def test_keys_wait_for_the_first_moment_of_a_pair(server, person):
    me = person(server, "hasty")
    me.settle()
    me.page.clock.pause_at(me.page.evaluate("Date.now() / 1000 + 1"))
    key = me.key()
    me.page.keyboard.press("2")
    me.page.wait_for_function(browsers.KEY, arg=key)
    for ms in (0, 200, 199):
        me.page.clock.run_for(ms)
        me.page.keyboard.press("2")
        assert me.heading == "Pair 2 of 10"
        assert len(me.posts) == 1
    me.page.clock.run_for(2)
    me.page.keyboard.press("2")
    me.page.get_by_role("heading", name="Pair 3 of 10").wait_for()
    assert len(me.rows()) == 2


def test_a_double_click_makes_one_row_with_and_without_a_script(server, person):
    for script in (True, False):
        me = person(server, f"double {script}", java_script_enabled=script)
        me.page.locator("[name=degree]").first.dblclick()
        me.page.get_by_role("heading", name="Pair 2 of 10").wait_for()
        assert [row.kind for row in me.rows()] == ["judge"]


def test_a_second_click_waits_for_the_first_moment_of_a_pair(server, person):
    me = person(server, "click")
    for name in ("degree", "both_bad"):
        box = me.page.locator(f"[name={name}]").first.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for ms in (0, 399):
            me.page.evaluate(HELD, ms)
            me.page.mouse.click(*middle)
            assert me.heading.startswith(f"Pair {len(me.rows()) + 1} ")
        before = len(me.posts)
        me.page.evaluate("document.getAnimations().forEach(x => x.finish())")
        with me.moving():
            me.page.mouse.click(*middle)
        assert len(me.posts) == before + 1 == len(me.rows())


def test_back_makes_no_second_row_of_a_pair(server, person):
    me = person(server, "back", java_script_enabled=False)
    for _ in range(2):
        with me.page.expect_navigation():
            me.page.locator("[name=degree]").first.click()
        me.page.go_back()
        with me.page.expect_navigation():
            me.page.locator("[name=degree]").last.click()
    items = [row.item for row in me.rows("judge")]
    assert len(items) == len({*items})


def test_an_old_page_with_another_answer_is_refused_and_loses_no_text(server, person):
    me = person(server, "old")
    old = me.tab()
    old.goto("/")
    body = {x.get_attribute("name"): x.input_value() for x in old.locator("[type=hidden]").all()}
    answers = [{**body, "degree": degree, "comment": "why"} for degree in ("1", "1", "2")]
    replies = [old.request.post("/judge", form=x) for x in answers]
    assert [x.status for x in replies] == [200, 200, 409]
    assert "why</textarea>" in replies[2].text()
    assert [row.choice for row in me.rows()] == [{"degree": 1}]


def test_nothing_that_has_the_focus_lies_under_the_bar(server, person):
    me = person(server, "tabs", **PHONE)
    for letter in "cw":
        me.settle()
        me.page.keyboard.press(letter)
    me.page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    seen = set()
    for _ in range(25):
        me.page.keyboard.press("Tab")
        assert not me.page.evaluate(COVERED)
        seen.add(me.page.evaluate("document.activeElement.outerHTML"))
    assert len(seen) > 15
