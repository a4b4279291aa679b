"""Words and choices outlive a dead server, a lost lease, a reload, the end of a session, and Skip."""

import signal

import pytest
import serving
import sqlalchemy as sa

from feedback import schema

WORDS = " ".join(f"word{i}" for i in range(500))
BOTH = WORDS, WORDS[::-1]
OVER, ENDED = "The time for this one is over", "Your session has ended"


@pytest.fixture
def server(tmp_path):
    settings = {"training_count": 0, "gold_share": 0, "repeat_share": 0}
    with serving.serving(tmp_path, **settings) as server:
        server.put(serving.pairs(3))
        yield server


def write(me, comment: str = WORDS, better: str = WORDS[::-1]) -> None:
    """Types into both fields, which their keys open, and leaves them."""
    me.settle()
    for key, said in (("c", comment), ("w", better)):
        me.page.keyboard.press(key)
        me.page.keyboard.insert_text(said[:-10])
        me.page.keyboard.type(said[-10:])
        me.page.keyboard.press("Escape")


def texts(me) -> tuple[str, str]:
    """What stands in both fields."""
    return tuple(me.page.locator(f"#{x}").input_value() for x in ("comment", "better"))


def kept(row) -> tuple[str, str]:
    return row.comment, row.better


def saved(me) -> None:
    """Waits until what was typed is on the server."""
    with me.page.expect_response("**/draft"):
        me.page.clock.run_for(1500)
    me.page.wait_for_function("store.get(draft()).saved")


def execute(server, statement) -> None:
    with server.writing() as c:
        c.execute(statement)


def test_typed_words_survive_a_reload_and_another_browser(server, person, browser):
    me = person(server, "reload")
    write(me)
    me.page.reload()  # before anything was sent
    assert texts(me) == BOTH
    assert me.page.locator("#comment").is_visible() and me.page.locator("#better").is_visible()
    saved(me)
    me.context.clear_cookies()
    elsewhere = browser.new_context(base_url=server.url)
    page = elsewhere.new_page()
    page.goto(me.link)
    assert page.locator("#comment").input_value() == WORDS
    assert page.locator("#better").input_value() == WORDS[::-1]
    elsewhere.close()


def test_a_newer_text_of_another_browser_is_not_overwritten(server, person, browser):
    me = person(server, "two")
    write(me)
    saved(me)
    elsewhere = browser.new_context(base_url=server.url, java_script_enabled=False)
    page = elsewhere.new_page()
    page.goto(me.link)
    page.locator("#comment").fill("newer")
    page.get_by_role("button", name="Keep what I typed").first.click()
    page.wait_for_load_state()
    elsewhere.close()
    me.page.reload()
    assert texts(me) == ("newer", WORDS[::-1])


def test_words_and_choice_survive_a_killed_server(server, person):
    me = person(server, "killed")
    server.stop(signal.SIGKILL)
    write(me)
    me.page.clock.run_for(1500)
    me.page.get_by_text("The server does not answer. What you typed is kept").wait_for()
    key = me.key()
    me.page.keyboard.press("2")
    me.page.get_by_text("Not saved yet: the server does not answer.").wait_for()
    me.page.keyboard.press("4")  # the first choice is on its way
    server.start()
    with me.moving():
        me.page.clock.run_for(20_000)
    assert [(x.key, x.choice, kept(x)) for x in me.rows()] == [(key, {"degree": -1}, BOTH)]
    assert me.status.inner_text() == ""


def test_a_choice_survives_a_closed_page_while_the_server_is_dead(server, person):
    me = person(server, "closed")
    me.settle()
    key = me.key()
    server.stop(signal.SIGKILL)
    me.page.keyboard.press("5")
    me.page.get_by_text("Not saved yet").wait_for()
    me.page.close()
    server.start()
    me.page = me.tab()
    me.page.goto("/")
    me.page.get_by_role("heading", name="Pair 2 of 3").wait_for()
    assert [(x.key, x.choice) for x in me.rows()] == [(key, {"degree": 2})]


def test_a_reply_that_is_lost_after_the_commit_makes_no_second_row(server, person):
    me = person(server, "lost")
    me.settle()
    lost = []

    def drop(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch(max_redirects=0).status)
        return route.abort()

    me.page.route("**/judge", drop)
    me.page.keyboard.press("1")
    me.page.get_by_text("Not saved yet").wait_for()
    with me.moving():
        me.page.clock.run_for(2000)
    assert lost == [303]
    assert me.heading == "Pair 2 of 3"
    assert len(me.rows()) == 1


def test_a_late_answer_keeps_its_words_and_is_told(server, person):
    me = person(server, "late")
    write(me)
    execute(server, sa.update(schema.slot).values(until=0))
    other = server.script("other")
    for _ in range(3):
        other.judge(other.post("/api/lease").json)
    with me.page.expect_response("**/lease/extend"):
        me.page.clock.fast_forward(400_000)
    me.page.get_by_text(OVER).wait_for()
    assert texts(me) == BOTH
    me.press("2")
    assert [(x.kind, kept(x)) for x in me.rows()] == [("surplus", BOTH)]
    assert "kept" in me.page.locator(".notice").inner_text()


def test_a_lease_is_extended_while_the_page_is_seen(server, person):
    me = person(server, "long")
    until = sa.select(schema.slot.c.until).where(schema.slot.c.annotator.isnot(None))
    execute(server, sa.update(schema.slot).values(until=1))
    with me.page.expect_response("**/lease/extend") as reply:
        me.page.clock.fast_forward(400_000)
    assert reply.value.json() == {"seconds": 900}
    with server.writing() as c:
        assert c.scalar(until) > 1
    assert me.status.inner_text() == ""


def test_words_and_choice_survive_the_end_of_a_session(server, person):
    me = person(server, "ended")
    write(me)
    execute(server, sa.update(schema.session).values(revoked=1))
    me.page.clock.run_for(1500)
    me.page.get_by_text(ENDED).wait_for()
    me.page.keyboard.press("2")
    me.page.get_by_text("Not saved yet. Your session has ended").wait_for()
    assert texts(me) == BOTH
    me.page.goto(me.link)  # the session that follows sends what was left
    me.page.get_by_role("heading", name="Pair 2 of 3").wait_for()
    assert [(x.choice, kept(x)) for x in me.rows()] == [({"degree": -1}, BOTH)]


def test_words_survive_the_end_of_a_session_without_a_script(server, person):
    me = person(server, "plain", java_script_enabled=False)
    for name, heading, said in (("comment", "Comment", WORDS), ("better", "Write", WORDS[::-1])):
        me.page.locator("summary", has_text=heading).click()
        me.page.locator(f"#{name}").fill(said)
    execute(server, sa.update(schema.session).values(revoked=1))
    me.page.locator("[name=degree]").first.click()
    assert [x.input_value() for x in me.page.locator("textarea").all()] == [*BOTH]
    assert me.rows() == []


def test_skip_asks_where_there_is_text_and_keeps_it(server, person):
    me = person(server, "skip")
    me.settle()
    me.page.keyboard.press("s")
    with me.moving():
        me.page.keyboard.press("3")  # nothing typed: nothing asked
    assert [x.reason for x in me.rows()] == ["cannot_tell"]
    write(me)
    me.page.keyboard.press("s")
    me.page.keyboard.press("2")
    me.page.get_by_role("heading", name="Skip, although you typed something?").wait_for()
    assert len(me.rows()) == 1
    me.page.get_by_role("link", name="Back to it").click()
    assert texts(me) == BOTH
    me.settle()
    me.page.locator("summary", has_text="Skip").click()
    me.page.get_by_role("button", name="Broken").click()
    with me.moving():
        me.page.get_by_role("button", name="Skip it").click()
    assert [x.reason for x in me.rows()] == ["cannot_tell", "broken"]
    assert texts(me) == ("", "")
    me.press("u")
    assert texts(me) == BOTH


def test_undo_goes_back_to_the_start_and_brings_words_and_choice(server, person):
    me = person(server, "undo")
    write(me, "the first words", "and better ones")
    me.press("1", "2", "u", "u")
    assert me.heading == "Pair 1 of 3"
    assert "You had said: A much better." in me.page.locator(".notice").inner_text()
    assert texts(me) == ("the first words", "and better ones")
    assert me.page.locator("[data-key=u]").is_disabled()
    me.press("5", "4", "3")
    standing = {x.item: x.choice["degree"] for x in me.rows("judge")}
    assert sorted(standing.values()) == [0, 1, 2]
