"""Judges: both orders, rewards, and an endpoint on a loopback server that is late, busy, or malformed."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

from rlhf_jax.people import judges


@contextlib.contextmanager
def stub(*replies):
    """A server that gives these replies in turn, the last one ever after: (status, body); None hangs up."""
    asked, left = [], list(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(
                (self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"])))
            )
            reply = left.pop(0) if len(left) > 1 else left[0]
            if reply is None:
                self.connection.close()
                return
            status, body = reply
            body = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def at(url, **more):
    return judges.endpoint(url, "a-model", pauses=(0.0, 0.0), **more)


def test_the_endpoint_is_asked_as_the_interface_wants():
    with stub(says("A")) as (url, asked):
        assert at(url, key="secret")("why {a}?", "one {b}", "two") == 1.0
    ((path, headers, body),) = asked
    said = json.loads(body)
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert said["model"] == "a-model" and said["temperature"] == 0
    text = said["messages"][0]["content"]
    assert (
        "why {a}?" in text and "[Response A]\none {b}\n" in text and "[Response B]\ntwo\n" in text
    )


def test_verdicts_of_many_wordings():
    for said, value in {
        "A": 1,
        " b.": 0,
        "**TIE**": 0.5,
        "A is better": 1,
        "tie": 0.5,
        "[[B]]": 0,
        "A tie.": 0.5,
        "a": 1,
    }.items():
        assert judges.verdict(said) == value
    for said in (
        "",
        "both",
        "Answer: A",
        "The better response is B",
        "AB",
        "4",
        "a better one",
        "A and B are equal",
        "B or A",
    ):
        with pytest.raises(judges.MalformedError, match="none of A, B and TIE"):
            judges.verdict(said)


def test_busy_servers_are_asked_again_and_refusals_are_not():
    with stub((429, "slow down"), None, says("B")) as (url, asked):
        assert at(url)("x", "y", "z") == 0.0
        assert len(asked) == 3
    with stub((401, '{"error": "no key"}')) as (url, asked):
        with pytest.raises(ValueError, match=r"refuses \(401\): no key"):
            at(url)("x", "y", "z")
        assert len(asked) == 1
    with stub((503, "later")) as (url, asked):
        with pytest.raises(ConnectionError, match="does not answer: 503 later"):
            at(url)("x", "y", "z")
        assert len(asked) == 3
    with pytest.raises(ConnectionError, match="does not answer"):
        judges.endpoint("http://127.0.0.1:9/v1", "m", pauses=())("x", "y", "z")


def test_a_late_reply_is_asked_for_again():
    gate = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            gate.wait()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    judge = judges.endpoint(
        f"http://127.0.0.1:{server.server_port}", "m", timeout=0.05, pauses=(0.0,)
    )
    with pytest.raises(ConnectionError, match="timed out"):
        judge("x", "y", "z")
    gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "body",
    [
        "<html>",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {"content": null}}]}',
        "[]",
        b"\xff",
    ],
)
def test_malformed_replies_are_counted_and_end_nothing(body):
    with (
        stub((200, body)) as (url, _),
        pytest.raises(judges.MalformedError, match="has no choices"),
    ):
        at(url)("x", "y", "z")
    with stub(says("A"), says("B"), (200, body)) as (url, _):
        found = judges.verdicts(at(url), [("p", "y", "z"), ("q", "y", "z")])
    assert found.malformed == 1 and found.probability[0] == 1.0 and np.isnan(found.probability[1])


def test_both_orders_cancel_a_preference_for_a_place():
    first = lambda prompt, a, b: 1.0
    assert judges.both_orders(first)("p", "x", "y") == 0.5
    leaning = lambda prompt, a, b: min(1.0, (0.8 if len(a) > len(b) else 0.2) + 0.2)
    found = judges.verdicts(leaning, [("p", "long", "s"), ("p", "s", "long")])
    np.testing.assert_allclose(found.probability, [0.8, 0.2])
    assert found.first_place == pytest.approx(0.4)
    assert judges.verdicts(first, [("p", "x", "y")]).first_place == 1.0


def test_rewards_judge_and_are_held_against_people():
    judge = judges.by_reward(lambda prompts, responses: [len(x) for x in responses])
    found = judges.verdicts(
        judge, [("p", "ab", "a"), ("p", "a", "ab"), ("p", "a", "b"), ("p", "abc", "a")]
    )
    assert found.probability.tolist() == [1.0, 0.0, 0.5, 1.0] and found.first_place == 0.0
    assert found.agreement(np.array([1.0, 0.8, 0.2, 0.5])) == (pytest.approx(0.5), 3)
    assert found.agreement(np.array([np.nan] * 4))[1] == 0
