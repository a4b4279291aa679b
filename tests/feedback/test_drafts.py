"""Words outlive a reload, another browser, the end of a session, Skip, and Undo."""

import sqlalchemy as sa
from browsers import BOTH, WORDS, kept

from feedback.store import schema

ENDED = "Your session has ended"


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
    me.write()
    me.page.reload()  # before anything was sent
    assert me.texts() == BOTH
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
    me.write()
    saved(me)
    elsewhere = browser.new_context(base_url=server.url, java_script_enabled=False)
    page = elsewhere.new_page()
    page.goto(me.link)
    page.locator("#comment").fill("newer")
    page.get_by_role("button", name="Keep what I typed").first.click()
    page.wait_for_load_state()
    elsewhere.close()
    me.page.reload()
    assert me.texts() == ("newer", WORDS[::-1])


def test_words_and_choice_survive_the_end_of_a_session(server, person):
    me = person(server, "ended")
    me.write()
    execute(server, sa.update(schema.session).values(revoked=1))
    me.page.clock.run_for(1500)
    me.page.get_by_text(ENDED).wait_for()
    me.page.keyboard.press("2")
    me.page.get_by_text("Not saved yet. Your session has ended").wait_for()
    assert me.texts() == BOTH
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
    me.write()
    me.page.keyboard.press("s")
    me.page.keyboard.press("2")
    me.page.get_by_role("heading", name="Skip, although you typed something?").wait_for()
    assert len(me.rows()) == 1
    me.page.get_by_role("link", name="Back to it").click()
    assert me.texts() == BOTH
    me.settle()
    me.page.locator("summary", has_text="Skip").click()
    me.page.get_by_role("button", name="Broken").click()
    with me.moving():
        me.page.get_by_role("button", name="Skip it").click()
    assert [x.reason for x in me.rows()] == ["cannot_tell", "broken"]
    assert me.texts() == ("", "")
    me.press("u")
    assert me.texts() == BOTH


def test_undo_goes_back_to_the_start_and_brings_words_and_choice(server, person):
    me = person(server, "undo")
    me.write("the first words", "and better ones")
    me.press("1", "2", "u", "u")
    assert me.heading == "Pair 1 of 3"
    assert "You had said: A much better." in me.page.locator(".notice").inner_text()
    assert me.texts() == ("the first words", "and better ones")
    assert me.page.locator("[data-key=u]").is_disabled()
    me.press("5", "4", "3")
    standing = {x.item: x.choice["degree"] for x in me.rows("judge")}
    assert sorted(standing.values()) == [0, 1, 2]
