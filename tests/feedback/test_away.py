"""A choice outlives a server that is away, and a lease that ends; either is said on the page."""

import signal

import sqlalchemy as sa
from browsers import BOTH, kept

from feedback.store import schema

OVER = "The time for this one is over"


def execute(server, statement) -> None:
    with server.writing() as c:
        c.execute(statement)


def test_words_and_choice_survive_a_killed_server(server, person):
    me = person(server, "killed")
    server.stop(signal.SIGKILL)
    me.write()
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
    me.write()
    execute(server, sa.update(schema.slot).values(until=0))
    other = server.script("other")
    for _ in range(3):
        other.judge(other.post("/api/lease").json)
    with me.page.expect_response("**/lease/extend"):
        me.page.clock.fast_forward(400_000)
    me.page.get_by_text(OVER).wait_for()
    assert me.texts() == BOTH
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
