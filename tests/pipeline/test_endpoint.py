"""The endpoint's replies: their form, their tokens and log-probabilities, and what it refuses."""

import http.client
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import talkers

from rlhf_jax.models import networks
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.pipeline import completion_requests, completions, endpoint, keys, speakers

PLAIN, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {
        "chat": talkers.written(place / "chat", talkers.TEMPLATE),
        "plain": talkers.written(place / "plain", seed=1),
    }


@pytest.fixture(scope="module")
def served(folders):
    """The policies by their short names, and the port of an endpoint for them."""
    found = {x: speakers.of_model(y)._replace(name=x) for x, y in folders.items()}
    server = endpoint.bound([*found.values()], 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def request(port, path, body=None, headers=None, method=None):
    """(status, reply as text)."""
    caller = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    caller.request(method or ("POST" if body else "GET"), path, data, JSON | (headers or {}))
    reply = caller.getresponse()
    text = reply.read().decode()
    caller.close()
    return reply.status, text


@pytest.fixture
def ask(served):
    """`ask(path, **fields)`: the JSON of a reply, or of the chunks of one that streams."""

    def ask(path, **fields):
        status, text = request(served[1], path, {"seed": 7, "max_tokens": 12} | fields)
        assert status == 200, text
        if not fields.get("stream"):
            return json.loads(text)
        *lines, last = text.removesuffix("\n\n").split("\n\n")
        assert last == "data: [DONE]" and all(x.startswith("data: ") for x in lines)
        return [json.loads(x.removeprefix("data: ")) for x in lines]

    return ask


def test_models_are_listed(served):
    status, text = request(served[1], "/v1/models")
    assert status == 200 and [x["id"] for x in json.loads(text)["data"]] == ["chat", "plain"]


def said(speaker, ids, index=0, draw=0, seed=7, **law):
    """Tokens of an answer, from the stream itself."""
    sample = speaker.sample.__class__(**{"length": 12, "stop": speaker.sample.stop} | law)
    return [*speaker.stream(ids, sample, keys.key_of(seed, "people"), index, draw)]


def test_answers_are_the_samplers_with_the_log_probabilities_of_the_policy(served, folders, ask):
    plain = served[0]["plain"]
    prompts = ["one", "and another"]
    reply = ask(PLAIN, model="plain", prompt=prompts, n=2, logprobs=2)
    assert [x["index"] for x in reply["choices"]] == [0, 1, 2, 3]
    loaded = huggingface.load(folders["plain"])
    policy_fn = networks.language_model(loaded.cfg).policy_fn
    read, counted = 0, 0
    for choice, (index, draw) in zip(reply["choices"], np.ndindex(2, 2), strict=True):
        ids = plain.ids(prompts[index], 12)
        tokens = said(plain, ids, index, draw)
        told = choice["logprobs"]
        assert told["tokens"] == [plain.words.decode([x.id]) for x in tokens]
        row = jnp.array([ids + [x.id for x in tokens]])
        want, _ = policy_fn(loaded.params, row, row > -1, last=len(tokens))
        np.testing.assert_allclose(told["token_logprobs"], want[0], atol=1e-4)
        ended = tokens[-1].stops
        kept = [x.id for x in tokens if not x.stops]
        assert choice["text"] == plain.words.decode(kept)
        assert choice["finish_reason"] == ("stop" if ended else "length")
        assert all(1 <= len(x) <= 2 for x in told["top_logprobs"])
        read, counted = read + len(ids) * (draw == 0), counted + len(tokens)
    usage = {"prompt_tokens": read, "completion_tokens": counted, "total_tokens": read + counted}
    assert reply["usage"] == usage and reply["object"] == "text_completion"
    assert len({x["text"] for x in reply["choices"]}) == 4


def test_a_stream_is_the_reply_in_pieces(ask):
    for path, fields in {
        PLAIN: {"model": "plain", "prompt": ["x", "y"], "logprobs": 1},
        CHAT: {"model": "chat", "messages": HELLO, "logprobs": True, "top_logprobs": 3, "n": 2},
    }.items():
        whole = ask(path, **fields)
        *chunks, last = ask(path, stream=True, stream_options={"include_usage": True}, **fields)
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        assert len(chunks) > 4
        for choice in whole["choices"]:
            own = [x["choices"][0] for x in chunks if x["choices"][0]["index"] == choice["index"]]
            assert [x["finish_reason"] for x in own] == [None] * (len(own) - 1) + [
                choice["finish_reason"]
            ]
            told = [x["logprobs"] for x in own]
            if path == PLAIN:
                assert "".join(x["text"] for x in own) == choice["text"]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                    assert [y for x in told for y in x[name]] == choice["logprobs"][name]
            else:
                assert "".join(x["delta"]["content"] for x in own) == choice["message"]["content"]
                assert [x["delta"].get("role") for x in own] == ["assistant"] + [None] * (
                    len(own) - 1
                )
                joined = [y for x in told for y in x["content"]]
                assert joined == choice["logprobs"]["content"]


def test_a_chat_is_the_template_continued(served, ask):
    chat = served[0]["chat"]
    reply = ask(CHAT, model="chat", messages=HELLO, temperature=0)
    text = "<bos><|user|>hello<eos>\n<|assistant|>"
    ids = chat.words(text, add_special_tokens=False)["input_ids"]
    tokens = said(chat, ids, temperature=0.0)
    want = chat.words.decode([x.id for x in tokens if not x.stops])
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": want}
    assert reply["usage"]["prompt_tokens"] == len(ids) and reply["object"] == "chat.completion"
    again = ask(CHAT, model="chat", messages=HELLO, temperature=0, seed=8)
    assert again["choices"] == reply["choices"] and again["id"] != reply["id"]


def test_a_stop_string_cuts_the_text_and_streams_no_part_of_itself(ask):
    whole = ask(PLAIN, model="plain", prompt="x", max_tokens=40)["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:2]
    fields = {"model": "plain", "prompt": "x", "max_tokens": 40, "stop": [stop, "never said"]}
    (choice,) = ask(PLAIN, **fields)["choices"]
    assert choice["text"] == whole[: whole.find(stop)] and choice["finish_reason"] == "stop"
    pieces = [x["choices"][0]["text"] for x in ask(PLAIN, stream=True, **fields)]
    assert "".join(pieces) == choice["text"]


def test_answers_repeat_with_a_seed_and_differ_without(served, ask):
    fields = {"model": "plain", "prompt": "x", "max_tokens": 30}
    one, two = (ask(PLAIN, **fields)["choices"][0]["text"] for _ in range(2))
    other = ask(PLAIN, **fields, seed=8)["choices"][0]["text"]
    free = {ask(PLAIN, **fields, seed=None)["choices"][0]["text"] for _ in range(3)}
    assert one == two != other and len(free) == 3


def test_two_requests_at_once_get_the_answers_of_two_in_turn(ask):
    alone = [ask(PLAIN, model="plain", prompt=x)["choices"] for x in "ab"]
    found = {}
    threads = [
        threading.Thread(target=lambda x=x: found.update({x: ask(PLAIN, model="plain", prompt=x)}))
        for x in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[x]["choices"] for x in "ab"] == alone


@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        (PLAIN, {"top_k": 3}, "top_k", "top_k is not supported here: leave it out"),
        (PLAIN, {"messages": HELLO}, "messages", "not supported"),
        (PLAIN, {"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        (PLAIN, {"echo": True}, "echo", "not supported"),
        (PLAIN, {"temperature": -1}, "temperature", "temperature = -1: it must be 0 or more"),
        (PLAIN, {"temperature": "hot"}, "temperature", "finite number"),
        (PLAIN, {"top_p": 0}, "top_p", "above 0 and at most 1"),
        (PLAIN, {"max_tokens": 0}, "max_tokens", "1 or more"),
        (PLAIN, {"n": True}, "n", "between 1 and 20"),
        (PLAIN, {"seed": 1.5}, "seed", "whole number"),
        (PLAIN, {"logprobs": True}, "logprobs", "between 0 and 20"),
        (PLAIN, {"stop": [""]}, "stop", "a text, or a list"),
        (PLAIN, {"stream": "yes"}, "stream", "true or false"),
        (PLAIN, {"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        (PLAIN, {"stream_options": 0, "stream": True}, "stream_options", "include_usage alone"),
        (PLAIN, {"\ud800": 1}, "\ud800", "not supported"),
        (PLAIN, {"prompt": "a\ud800"}, "prompt", "half of a character"),
        (CHAT, {"messages": [HELLO[0] | {"content": "\udcff"}]}, "messages", "half of a character"),
        (PLAIN, {"prompt": [[1, 2]]}, "prompt", "a text, or a list of texts"),
        (PLAIN, {"prompt": None}, "prompt", "a text, or a list of texts"),
        (PLAIN, {"prompt": "x" * 200}, "prompt", "has 201 tokens"),
        (PLAIN, {"model": None}, "model", "served are chat, plain"),
        (CHAT, {"model": "plain"}, "messages", "without a chat template"),
        (CHAT, {"prompt": "x"}, "prompt", "not supported"),
        (CHAT, {"messages": []}, "messages", "a list with a message"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages", "needs a role and a content"),
        (CHAT, {"messages": [HELLO[0] | {"name": "x"}]}, "messages", "has name"),
        (CHAT, {"messages": [{"role": "assistant", "content": "x"}]}, "messages", "nothing is asked"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        (CHAT, {"max_completion_tokens": 4}, "max_tokens", "are both given"),
        (CHAT, {"tools": [{}]}, "tools", "not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_name(served, path, fields, param, words):
    asked = (
        {"model": "plain", "prompt": "x"} if path == PLAIN else {"model": "chat", "messages": HELLO}
    )
    status, text = request(served[1], path, asked | {"max_tokens": 5} | fields)
    error = json.loads(text)["error"]
    assert status == 400 and error["param"] == param and words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_fields_that_change_nothing_pass(ask):
    fields = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": None}
    reply = ask(PLAIN, model="plain", prompt="x", **fields)
    assert reply["choices"] == ask(PLAIN, model="plain", prompt="x")["choices"]


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        (PLAIN, {"Host": "evil.example"}, b"{}", 403),
        (PLAIN, {"Host": "localhost.evil.example"}, b"{}", 403),
        (PLAIN, {"Host": "[evil"}, b"{}", 403),
        (PLAIN, {"Origin": "http://evil.example"}, b"{}", 403),
        (PLAIN, {"Origin": "null"}, b"{}", 403),
        ("/v1/models", {"Host": "evil.example"}, None, 403),
        (PLAIN, {"Content-Type": "text/plain"}, b"{}", 415),
        (PLAIN, {}, b"{", 400),
        (PLAIN, {}, b"[1]", 400),
        (PLAIN, {}, b"\xff", 400),
        (PLAIN, {}, b"[" * 100_000, 400),
        (PLAIN, {"Content-Length": "99999999999"}, b"{}", 413),
        (PLAIN, {}, b'{"model": "zebra", "prompt": "x"}', 404),
        ("/v1/edits", {}, b"{}", 404),
        ("/v1/files", {}, None, 404),
    ],
)
def test_other_requests_are_refused(served, path, headers, body, status):
    got, text = request(served[1], path, body, headers)
    assert got == status and json.loads(text)["error"]["message"]


def test_hosts_of_this_machine_and_its_own_pages_may_ask(served):
    port = served[1]
    for host in (f"localhost:{port}", "localhost", f"127.0.0.1:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert request(port, "/v1/models", None, headers)[0] == 200


def test_a_caller_who_leaves_ends_his_answer_and_the_next_one_is_served(served, ask):
    caller = http.client.HTTPConnection("127.0.0.1", served[1], timeout=60)
    body = {"model": "plain", "prompt": "x", "stream": True, "n": 20, "max_tokens": 100}
    caller.request("POST", PLAIN, json.dumps(body), JSON)
    caller.getresponse().read(10)
    caller.close()
    assert ask(PLAIN, model="plain", prompt="x")["usage"]["prompt_tokens"] == 2


def test_a_port_in_use_is_refused(served):
    with pytest.raises(ValueError, match=f"port = {served[1]} cannot be used"):
        endpoint.bound([], served[1])


def test_a_reward_model_does_not_talk(tmp_path):
    loaded = huggingface.load(talkers.written(tmp_path / "policy"))
    init = networks.reward_model(networks.language_model(loaded.cfg)).init
    params = init(jax.random.key(0), loaded.params)
    writing.save(tmp_path / "reward", loaded.cfg, params, is_reward=True)
    with pytest.raises(ValueError, match="is a reward model, not a policy"):
        speakers.of_model(str(tmp_path / "reward"))


def test_a_failure_is_told_and_the_next_request_is_served(served, ask, monkeypatch, capfd):
    def broken(*args):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(completions, "whole", broken)
        status, text = request(served[1], PLAIN, {"model": "plain", "prompt": "x"})
    assert status == 500 and "out of memory" in json.loads(text)["error"]["message"]
    assert "RuntimeError" in capfd.readouterr().err
    assert ask(PLAIN, model="plain", prompt="x")["choices"]


def test_the_only_policy_needs_no_name():
    only = tuple.__new__(speakers.Speaker, [None] * len(speakers.Speaker._fields))
    assert completion_requests.of_name(None, {"one": only}) is only
    with pytest.raises(completion_requests.RefusedError, match="model is missing: served are a, b"):
        completion_requests.of_name(None, {"a": only, "b": only})
