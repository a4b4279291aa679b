"""Foreign formats: what their rows become, what is refused, and what is kept of judgements made elsewhere."""

import gzip
import json

import pytest
import sqlalchemy as sa

from feedback import formats
from feedback.formats import importing
from feedback.formats.found import Said
from feedback.store import schema

USER = {"role": "user", "content": "why?"}
PAIR = {"prompt": "p", "responses": ["x", "y"]}


def say(text):
    return {"role": "assistant", "content": text}


def completion(text, score, **more):
    return {"model": f"m{score}", "response": text, "fine-grained_score": score} | more


def annotation(value, who=1, **more):
    return {"completed_by": who, "result": [{"type": "any", "value": value}]} | more


ULTRA = {
    "source": "evol_instruct",
    "instruction": "do it",
    "completions": [
        completion("w", 4.25, overall_score=1.0),
        completion("x", 2.0),
        completion("y", 4.25),
        completion("z", 3.5),
    ],
}
SAFE = {
    "prompt": "p",
    "response_0": "x",
    "response_1": "y",
    "response_0_source": "Alpaca-7B",
    "is_response_0_safe": True,
    "better_response_id": 1,
    "safer_response_id": 0,
}
BATTLE = {
    "question_id": "q7",
    "model_a": "vicuna",
    "model_b": "gpt",
    "judge": "user 5",
    "conversation_a": [USER, say("x")],
    "conversation_b": [USER, say("y")],
}
TASK = {
    "id": 3,
    "data": {"prompt": "p", "answer1": "x", "answer2": "y"},
    "annotations": [
        annotation({"selected": "right"}, {"id": 4, "email": "ann@example.org"}),
        annotation({"selected": "left"}),
        annotation({"selected": "left"}, was_cancelled=True),
        annotation({"choices": ["other"]}),
    ],
}
LISTED = {
    "data": {"prompt": "p", "items": [{"id": x, "title": x, "body": f"text {x}"} for x in "abc"]},
    "annotations": [
        annotation({"ranker": {"rank": ["c", "a", "b"]}}),
        annotation({"ranker": ["a"]}),
    ],
}
RATED = {"data": {"prompt": "p", "text": "x"}, "annotations": [annotation({"rating": 4})]}
RECORD = {
    "id": "r1",
    "fields": {"instruction": "p", "response1": "x", "response2": "y"},
    "metadata": {},
    "suggestions": {},
    "responses": {
        "preference": [
            {"value": "response2", "user_id": "u1"},
            {"value": [{"value": f"response{n}", "rank": 1} for n in (1, 2)], "user_id": "u2"},
            {"value": "a free text", "user_id": "u3"},
        ]
    },
}  # fmt: skip
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "role": "prompter",
        "text": "first",
        "replies": [
            {"role": "assistant", "text": "worse", "rank": 1, "replies": [
                {"role": "prompter", "text": "next", "replies": [
                    {"role": "assistant", "text": text, "rank": rank, "replies": []}
                    for text, rank in (("c", 2), ("a", 0), ("b", 1))
                ]}
            ]},
            {"role": "assistant", "text": "better", "rank": 0, "model_name": "m", "replies": []},
        ],
    },
}  # fmt: skip
HH = {
    "chosen": "\n\nHuman: why?\n\nAssistant: so\n\nHuman: ok\n\nAssistant: yes",
    "rejected": "\n\nHuman: why?\n\nAssistant: so\n\nHuman: ok\n\nAssistant: yoghurt\n\nHuman: !",
}
BEGUN = [{"role": "user", "content": "first"}]

CASES = {
    # format, row, [(kind, prompt, texts, judgements as (by, what))]
    "ultrafeedback": (
        ULTRA,
        [("ranking", "do it", ["w", "x", "y", "z"], [("", [1, 4, 1, 3])])],
    ),
    "safe_rlhf": (
        SAFE,
        [("pair", "p", ["x", "y"], [("", "b")]), ("pair", "p", ["x", "y"], [("", "a")])],
    ),
    "oasst": (
        TREE,
        [
            ("pair", BEGUN, ["better", "worse"], [("", "a")]),
            ("ranking", [*BEGUN, say("worse"), {"role": "user", "content": "next"}],
             ["a", "b", "c"], [("", [1, 2, 3])]),
        ],
    ),
    "label_studio": (
        TASK,
        [("pair", "p", ["x", "y"], [("label_studio: ann@example.org", "b"), ("label_studio: 1", "a")])],
    ),
    "argilla": (
        RECORD,
        [("pair", "p", ["x", "y"], [("argilla: u1", "b"), ("argilla: u2", "tie")])],
    ),
    "chosen": (
        HH,
        [("pair", "\n\nHuman: why?\n\nAssistant: so\n\nHuman: ok\n\nAssistant:",
          [" yes", " yoghurt\n\nHuman: !"], [("", "a")])],
    ),
    "ours": (PAIR | {"preference": 1, "annotator": "ann"}, [("pair", "p", ["x", "y"], [("ann", "b")])]),
}  # fmt: skip


def said_of(one: Said):
    return one.by, next(x for x in (one.preference, one.rating, one.ranks) if x is not None)


def told(found):
    return [
        (
            x.item["kind"],
            x.item["prompt"],
            [y if isinstance(y, str) else y["text"] for y in x.item["responses"]],
            [said_of(y) for y in x.said],
        )
        for x in found
    ]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_format_is_known_by_its_fields_and_gives_items_and_what_was_said(tmp_path, name):
    row, want = CASES[name]
    found = formats.read(write(tmp_path / "a.jsonl", row))
    assert {x.source for x in found} == {name} == {formats.detect(row)}
    assert told(found) == want
    assert told(formats.read(tmp_path / "a.jsonl", name)) == want


def test_two_questions_about_one_pair_are_two_items(tmp_path):
    found = formats.read(write(tmp_path / "a.jsonl", SAFE))
    assert [x.item["question"] for x in found] == [
        "Which response is more helpful?",
        "Which response is safer?",
    ]
    assert found[0].item["responses"][0] == {"text": "x", "policy": "Alpaca-7B"}
    one = formats.read(write(tmp_path / "b.jsonl", SAFE | {"better_response_id": None}))
    assert [said_of(x.said[0]) for x in one] == [("", "a")]


@pytest.mark.parametrize(
    ("winner", "want"),
    [("model_a", "a"), ("model_b", "b"), ("tie", "tie"), ("tie (bothbad)", "both_bad")],
)
def test_two_bad_answers_in_a_battle_are_no_tie(tmp_path, winner, want):
    (found,) = formats.read(write(tmp_path / "a.jsonl", BATTLE | {"winner": winner}))
    assert told([found]) == [("pair", [USER], ["x", "y"], [("arena: user 5", want)])]
    assert found.item["responses"][1]["policy"] == "gpt"
    assert found.item["metadata"] == {"source": "arena", "question_id": "q7"}


def test_a_battle_of_several_turns_answers_what_both_have_in_common(tmp_path):
    more = {"role": "user", "content": "and?"}
    row = BATTLE | {
        "winner": "tie",
        "conversation_a": [USER, say("x"), more, say("x2")],
        "conversation_b": [USER, say([{"type": "text", "text": "y"}])],
    }
    (found,) = formats.read(write(tmp_path / "a.jsonl", row))
    want = ["x\n\nHuman: and?\n\nAssistant: x2", "y"]
    assert told([found])[0][:3] == ("pair", [USER], want)


def test_label_studios_lists_and_ratings(tmp_path):
    """As a JSON array, which is how it exports; a list that was ranked in part says nothing."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([LISTED, RATED]))
    assert told(formats.read(path)) == [
        ("ranking", "p", ["text a", "text b", "text c"], [("label_studio: 1", [2, 3, 1])]),
        ("single", "p", ["x"], [("label_studio: 1", 4)]),
    ]


def test_argillas_questions_are_told_apart_by_their_names(tmp_path):
    fields = {"prompt": [USER], "response": "x"}
    rating = lambda value: [{"value": value, "user_id": "u"}]
    row = {
        "fields": fields,
        "responses": {"help": rating(5), "harm": rating(1), "note": rating("?")},
    }
    found = formats.read(write(tmp_path / "a.jsonl", row))
    assert told(found) == [("single", [USER], ["x"], [("argilla: u", n)]) for n in (5, 1)]
    assert [x.item["question"] for x in found] == ["help", "harm"]
    (alone,) = formats.read(write(tmp_path / "b.jsonl", row | {"responses": {}}))
    assert (alone.said, "question" in alone.item) == ((), False)


def test_answers_without_ranks_and_more_than_a_page_can_show(tmp_path):
    answers = [
        {"role": "assistant", "text": f"{n}", "rank": n, "replies": []} for n in reversed(range(11))
    ]
    prompt = {"role": "prompter", "text": "first", "replies": answers}
    (found,) = formats.read(write(tmp_path / "a.jsonl", TREE | {"prompt": prompt}))
    assert told([found])[0][2:] == ([*"01234567"], [("", [*range(1, 9)])])
    del answers[3]["rank"]
    (found,) = formats.read(write(tmp_path / "b.jsonl", TREE | {"prompt": prompt}))
    assert len(found.item["responses"]) == 8 and found.said == []


OURS = [
    # every layout that rlhf_jax learns from
    (PAIR | {"preference": 0}, "pair", [("", "a")]),
    (PAIR | {"preference": "tie"}, "pair", [("", "tie")]),
    (PAIR, "pair", []),
    (PAIR | {"probability": 0.75, "weight": 4}, "pair", [("", x) for x in "aaab"]),
    (PAIR | {"probability": 0.833333, "weight": 3}, "pair", [("", x) for x in ("a", "a", "tie")]),
    (PAIR | {"probability": 0.0}, "pair", [("", "b")]),
    (PAIR | {"probability": 0.3, "weight": 0.5}, "pair", []),  # no votes
    ({"prompt": "p", "responses": [*"xyz"], "preference": 2}, "ranking", [("", [2, 2, 1])]),
    ({"prompt": "p", "responses": [*"xyz"], "ranks": [7.5, 2, 2]}, "ranking", [("", [3, 1, 1])]),
    ({"prompt": "p", "responses": [*"xy"], "ranks": [2, 1]}, "ranking", [("", [2, 1])]),
    ({"prompt": "p", "chosen": "x", "rejected": "y"}, "pair", [("", "a")]),
    ({"chosen": [USER, say("x")], "rejected": [USER, say("y")]}, "pair", [("", "a")]),
    ({"prompt": [USER], "chosen": [say("x")], "rejected": [say("y")]}, "pair", [("", "a")]),
    ({"prompt": "p", "response": "x", "rating": 4}, "single", [("", 4)]),
    ({"prompt": "p", "response": "x", "rating": 3.5, "weight": 2}, "single", [("", 4), ("", 3)]),
    ({"prompt": "p", "response": "x", "label": True}, "single", [("", 1)]),
    ({"prompt": "p", "response": "x", "score": 7.2}, "single", []),  # on no scale of the page
    ({"text": "x", "label": 0}, "single", [("", 0)]),
    ({"kind": "single", "scale": "stars", "prompt": "p", "responses": [{"text": "x"}]}, "single", []),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "want"), OURS)
def test_every_layout_of_our_own_is_read(tmp_path, row, kind, want):
    (found,) = formats.read(write(tmp_path / "a.jsonl", row))
    assert found.item["kind"] == kind and [said_of(x) for x in found.said] == want


def test_an_item_comes_as_it_is(tmp_path):
    item = {
        "id": "one",
        "kind": "pair",
        "prompt": [USER],
        "responses": [{"text": "x", "policy": "m", "sampling": {"seed": 3}}, {"text": "y"}],
        "wanted": 3,
        "purpose": "training",
        "gold": "a",
        "reason": "x is right",
        "question": "which?",
        "metadata": {"n": 1},
    }
    (found,) = formats.read(write(tmp_path / "a.jsonl", item))
    assert found == formats.Found(item, [], "ours")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "no format has the fields 'a': known are raw, ultrafeedback, safe_rlhf,"),
        ("x", "a row is 'x', and must be an object"),
        (PAIR | {"responses": ["x"] * 9}, "a ranking has 9 responses, and must have 2 to 8"),
        (PAIR | {"responses": "x"}, "field 'responses' is 'x', and must be a list"),
        (PAIR | {"probability": "high"}, "field 'probability' is 'high', and must be a whole number or"),
        (BATTLE | {"winner": "me"}, "field 'winner' is 'me', and must be model_a, model_b, tie,"),
        (BATTLE | {"winner": "tie", "conversation_b": [say("?")]}, "do not answer the same question"),
        (SAFE | {"better_response_id": 2}, "field 'better_response_id' is 2, and must be 0 or 1"),
        (HH | {"rejected": "\n\nHuman: who?\n\nAssistant: I"}, "do not begin with the same turns"),
        ({"chosen": "x", "rejected": []}, "'chosen' and 'rejected' must both be texts, or both lists"),
        (ULTRA | {"completions": [{"model": "m"}] * 4}, "field 'response' is missing, and the fields are"),
        (TREE | {"prompt": {"role": "prompter"}}, "field 'text' is missing, and the fields are 'role'"),
        (RECORD | {"fields": {"prompt": "p"}}, "the record has 0 responses in its fields"),
        ({"key": "k", "kind": "judge", "item": {}, "annotator": "a"}, "field 'at' is missing"),
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_refused_by_line_in_one_sentence(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(ValueError) as caught:
        formats.read(path)
    assert str(caught.value).startswith(f"{path}:1: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_are_plain_or_compressed_lines_or_an_array_and_others_are_refused(tmp_path):
    lines = json.dumps(PAIR) + "\n\n" + json.dumps(PAIR | {"prompt": "q"}) + "\n"
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps([PAIR, PAIR | {"prompt": "q"}]))
    want = formats.read(tmp_path / "a.jsonl")
    assert len(want) == 2
    assert formats.read(str(tmp_path / "b.jsonl.gz")) == formats.read(tmp_path / "c.json") == want
    (tmp_path / "d.jsonl").write_text("{}\n{")
    with pytest.raises(ValueError, match=r"d.jsonl:1: no format has the fields none"):
        formats.read(tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl").write_text(json.dumps(PAIR) + "\n{")
    with pytest.raises(ValueError, match=r"e.jsonl:2 is no JSON"):
        formats.read(tmp_path / "e.jsonl")
    (tmp_path / "f.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"f.jsonl is no JSON in UTF-8"):
        formats.read(tmp_path / "f.jsonl")
    (tmp_path / "g.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"g.jsonl holds nothing to judge"):
        formats.read(tmp_path / "g.jsonl")
    with pytest.raises(ValueError, match="format is 'csv', and must be one of raw, "):
        formats.read(tmp_path / "a.jsonl", "csv")


# in the database


def bring(db, *rows, **more):
    found = formats.read([(f"row {n}", row) for n, row in enumerate(rows)])
    with db.write() as c:
        return importing.bring(c, found, **more)


def judgements(db):
    columns = (
        schema.annotator.c.name,
        *(schema.judgement.c[x] for x in ("kind", "preference", "shown")),
    )
    with db.read() as c:
        query = sa.select(*columns).join(schema.annotator).order_by(schema.judgement.c.id)
        return [tuple(x) for x in c.execute(query)]


def test_what_was_judged_elsewhere_is_kept_with_its_source_and_once(db):
    rows = [BATTLE | {"winner": "model_a"}, BATTLE | {"winner": "tie (bothbad)", "judge": None}]
    assert bring(db, *rows) == {"created": 1, "unchanged": 0, "judgements": 2, "known": 0}
    assert judgements(db) == [
        ("arena: user 5", "judge", "a", None),
        ("arena", "judge", "both_bad", None),
    ]
    assert bring(db, *rows) == {"created": 0, "unchanged": 1, "judgements": 0, "known": 2}
    with db.read() as c:
        (one,) = c.execute(sa.select(schema.item)).all()
        slots = c.execute(sa.select(schema.slot).order_by(schema.slot.c.number)).all()
        (event,) = c.execute(
            sa.select(schema.event).where(schema.event.c.kind == "import").limit(1)
        )
    assert one.metadata == {"source": "arena", "question_id": "q7"}
    assert (one.wanted, one.state) == (3, "open")  # one more is wanted of the people here
    assert [x.done is not None for x in slots] == [False, True, True]
    assert event.detail == {"sources": "arena", "new": 2}


def test_items_come_without_judgements_where_none_are_wanted(db):
    found = formats.read([("row", CASES["ultrafeedback"][0])])
    with db.write() as c:
        assert importing.bring(c, found, judgements=False) == {"created": 1, "unchanged": 0}
    assert judgements(db) == []


def test_unnamed_people_are_as_many_as_their_votes_and_a_person_has_one_on_an_item(db):
    rows = [PAIR | {"probability": 0.75, "weight": 4}]
    assert bring(db, *rows, *rows)["judgements"] == 8
    names = [x[0] for x in judgements(db)]
    assert names == ["ours", *(f"ours {n}" for n in range(2, 9))]
    thrice = [PAIR | {"preference": n, "annotator": "ann"} for n in (0, 1, 0)]
    assert [bring(db, *thrice)["judgements"] for _ in range(2)] == [3, 0]
    own = [x[1:3] for x in judgements(db) if x[0] == "ann"]
    assert own == [("judge", "a"), ("surplus", "b"), ("surplus", "a")]


def test_an_item_with_other_contents_under_a_known_id_is_refused_whole(db):
    bring(db, PAIR | {"id": "one", "preference": 0})
    with pytest.raises(ValueError, match="item 'one' is known with other contents"):
        bring(
            db, PAIR | {"prompt": "new"}, PAIR | {"id": "one", "prompt": "other", "preference": 1}
        )
    assert len(judgements(db)) == 1
    with db.read() as c:
        assert c.scalar(sa.select(sa.func.count()).select_from(schema.item)) == 1
