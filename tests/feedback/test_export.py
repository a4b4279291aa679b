"""Exports: which judgements they hold, in which shape, and that import and export give the same bytes."""

import json
import shutil

import pytest
import sqlalchemy as sa
import world

from feedback import command_line, formats
from feedback.entry import access
from feedback.formats import export, importing, omissions
from feedback.settings import Settings
from feedback.store import schema
from feedback.store.database import Database
from feedback.store.leasing import Lease
from feedback.web import exports

ODD = "línea\n\u2028 ‮ <b> =1+1 \x00 \ud800 end"
"""Text that files, databases and spreadsheets trip over."""
OTHERS = {"single": {"rating": 1}, "ranking": {"ranks": [1, 2, 2]}}
SETTINGS = Settings(gold_share=0.2, repeat_share=0.2, repeat_after=2, training_count=2)


def rows(db, kind, **more):
    with db.read() as c:
        return getattr(export, kind)(c, **more)


def text(db, kind="raw", **more):
    with db.read() as c:
        return exports.text(c, kind, **more)


def bring(db, path, judgements=True):
    found = formats.read(path)
    with db.write() as c:
        return importing.bring(c, found, judgements)


def vote(db, *votes, **fields):
    """One pair, on which as many people vote, as said in the item's own order."""
    world.put(
        db, [{"id": "p", "prompt": "?", "responses": ["x", "y"], "wanted": len(votes), **fields}]
    )
    for n, said in enumerate(votes):
        (who,) = world.people(db, f"{fields.get('id', 'p')} {n}")
        say(db, who, said)


def say(db, who, said, **more):
    held = world.lease(db, who)
    assert isinstance(held, Lease)
    if said != "both_bad":
        first = {"x": 1, "y": -1}[held.responses[0]]
        said = {"degree": {"a": -first, "b": first, "tie": 0}[said]}
    else:
        said = {"both_bad": True}
    return held, world.judge(db, who, held, said, **more)


SELECTION = {"round": "round 1", "strategy": "bald", "score": 0.25, "model": "reward 3"}


@pytest.fixture(scope="module")
def template(templates, tmp_path_factory):
    """The file of a database with everything that may happen."""
    path = tmp_path_factory.mktemp("full") / "feedback.db"
    shutil.copy(templates("sqlite").removeprefix("sqlite:///"), path)
    db = Database(f"sqlite:///{path}")
    fill(db)
    db.close()
    return path


@pytest.fixture
def full(template, tmp_path):
    """A copy of it, of one's own."""
    shutil.copy(template, tmp_path / "full.db")
    db = Database(f"sqlite:///{tmp_path}/full.db")
    yield db
    db.close()


def fill(db):
    """All kinds of items, rows and purposes, and odd texts."""
    others = [
        {"id": "thumb", "prompt": [{"role": "user", "content": ODD}], "responses": ["x"]},
        {"id": "order", "prompt": "?", "responses": [{"text": "x", "policy": "m"}, "y", "z"]},
    ]
    world.put(db, others)
    ann, ben, eve = world.people(db, "ann", "ben", "Eve ♞")
    for _ in others:
        held = world.lease(db, ann)
        world.judge(db, ann, held, OTHERS[held.kind])
    known = {"gold": "a", "reason": "because"}
    many = world.pairs(30, wanted=2, metadata={"b": 1, "a": [ODD.replace("\ud800", "")]})
    many = [x | ({"selection": SELECTION} if n % 3 else {}) for n, x in enumerate(many)]
    many += [x | {"id": f"t{x['id']}", "purpose": "training"} | known for x in world.pairs(2)]
    many += [x | {"id": f"g{x['id']}", "purpose": "gold"} | known for x in world.pairs(6)]
    world.put(db, many)
    for n in range(60):
        who = (ann, ben, eve)[n % 3]
        held = world.lease(db, who, SETTINGS)
        if not isinstance(held, Lease):
            continue
        key, more = f"key {n}", {"settings": SETTINGS}
        if held.kind != "pair":  # a repeat
            world.judge(db, who, held, OTHERS[held.kind], key, **more)
        elif held.purpose == "training":
            first = held.responses[0].startswith("first")
            world.judge(db, who, held, {"degree": -1 if first else 1}, key, **more)
        elif n % 17 == 16:
            world.skip(db, who, held, "cannot_tell", key, comment=ODD)
        else:
            choice = {"both_bad": True} if n % 13 == 12 else {"degree": n % 5 - 2}
            more |= {
                "comment": ODD if n % 7 == 0 else "",
                "better": f"better {n} {ODD}" * (n % 11 == 10),
            }
            world.judge(db, who, held, choice, key, visible_ms=n, page_version="7", **more)
            if n % 9 == 8:
                world.undo(db, who, key, f"undo {n}")
    late(db, ann, ben)
    with db.write() as c:
        access.block(c, eve)


def late(db, first, second):
    """An answer that comes after another person got its place, and has answered."""
    world.put(db, [{"id": "late", "prompt": "?", "responses": ["x", "y"]}])
    held = lease_of(db, first, "late")
    with db.write() as c:
        mine = (schema.slot.c.annotator == first, schema.slot.c.done.is_(None))
        c.execute(sa.update(schema.slot).where(*mine).values(until=0))
    world.judge(db, second, lease_of(db, second, "late"), {"degree": 1}, "in time")
    assert world.judge(db, first, held, {"degree": 1}, "too late").status == 202


def lease_of(db, who, external):
    """The lease of one item, after as many others as come before it."""
    while True:
        held = world.lease(db, who)
        assert isinstance(held, Lease)
        with db.read() as c:
            item = sa.select(schema.item.c.external).where(schema.item.c.id == held.item)
            if c.scalar(item) == external:
                return held
        world.judge(db, who, held, {"degree": 1})


@pytest.mark.parametrize(
    ("votes", "want"),
    [
        (["a", "a", "b"], (0.666667, 3)),
        (["a", "tie"], (0.75, 2)),
        (["tie"], (0.5, 1)),
        (["b", "both_bad", "b"], (0.0, 2)),
        (["both_bad"], None),
    ],
    ids=["two of three", "half a vote", "a tie", "no vote", "none"],
)
def test_votes_are_a_share_and_their_number_and_both_bad_is_no_vote(db, votes, want):
    vote(db, *votes)
    found = rows(db, "comparisons")
    assert [(x["probability"], x["weight"]) for x in found] == ([want] if want else [])
    if want:
        assert found[0].keys() == {"id", "prompt", "responses", "probability", "weight"}
        assert (found[0]["id"], found[0]["responses"]) == ("p", ["x", "y"])
    with db.read() as c:
        assert omissions.counts(c)["both bad"] == votes.count("both_bad")


def test_what_blocked_people_said_is_no_vote_until_they_are_let_in_again(db):
    vote(db, "a", "b", "both_bad")
    shares = [(0.5, 2), (1.0, 1), (0.5, 2)]
    for blocked, want in zip((False, True, False), shares, strict=True):
        with db.write() as c:
            for name in ("p 1", "p 2"):
                access.block(c, access.named(c, name), blocked)
        (row,) = rows(db, "comparisons")
        assert (row["probability"], row["weight"]) == want
        assert [x["blocked"] for x in rows(db, "raw")] == [False, blocked, blocked]
        with db.read() as c:
            said = "2 by blocked people" if blocked else "1 both bad"
            assert omissions.told(c) == said


def test_trl_has_the_winner_and_the_loser_and_no_ties(db):
    vote(db, "b", "b", "a")
    vote(db, "tie", id="tie")
    messages = [{"role": "user", "content": "?"}]
    vote(db, "a", id="chat", prompt=messages)
    answer = lambda x: [{"role": "assistant", "content": x}]
    assert rows(db, "trl") == [
        {"prompt": messages, "chosen": answer("x"), "rejected": answer("y")},
        {"prompt": "?", "chosen": "y", "rejected": "x"},
    ]


def test_ratings_are_means_and_rankings_stay_as_each_person_gave_them(db):
    items = [
        {"id": "stars", "prompt": "p", "responses": ["x"], "scale": "stars", "wanted": 2},
        {"id": "order", "prompt": "p", "responses": [*"xyz"], "kind": "ranking", "wanted": 2},
        {"id": "same", "prompt": "p", "responses": [*"xxz"], "kind": "ranking"},
    ]
    world.put(db, items)
    for who in world.people(db, "ann", "ben"):
        while isinstance(held := world.lease(db, who), Lease):
            ranks = [{"x": 2, "y": 1, "z": 3}[x] for x in held.responses]
            world.judge(db, who, held, {"rating": 4 + who % 2} if held.kind == "single" else
                        {"ranks": ranks if 1 in ranks else [1, 1, 2]})  # fmt: skip
    assert rows(db, "ratings") == [
        {
            "id": "stars",
            "prompt": "p",
            "response": "x",
            "rating": 4.5,
            "weight": 2,
            "scale": "stars",
        }
    ]
    one = {"id": "order", "prompt": "p", "responses": [*"xyz"], "ranks": [2, 1, 3], "weight": 1}
    assert rows(db, "rankings") == [one, one]  # no reader takes one text twice
    world.put(db, [{"id": "thumb", "prompt": "p", "responses": ["x"]}])
    (eve,) = world.people(db, "eve")
    world.judge(db, eve, world.lease(db, eve), {"rating": 0})
    with pytest.raises(ValueError, match="ratings on the scales stars and thumbs: name one"):
        rows(db, "ratings")
    assert [x["rating"] for x in rows(db, "ratings", scale="thumbs")] == [0.0]


def test_answers_to_different_questions_are_never_mixed(db):
    vote(db, "a", id="p1", question="better?")
    vote(db, "b", id="p2", question="safer?")
    vote(db, "tie", id="p3")
    with pytest.raises(ValueError, match="ask 3 questions, '', 'better\\?', 'safer\\?': name one"):
        rows(db, "comparisons")
    asked = lambda x: [(y["id"], y.get("question")) for y in rows(db, "comparisons", question=x)]
    assert asked("safer?") == [("p2", "safer?")] and asked("") == [("p3", None)]


def test_better_responses_are_demonstrations_and_if_wanted_comparisons(db):
    world.put(db, [{"id": "p", "prompt": "?", "responses": ["x", "y"], "wanted": 2}])
    ann, ben = world.people(db, "ann", "ben")
    say(db, ann, "a", better="best")
    say(db, ben, "b", better="  ")
    assert rows(db, "demonstrations") == [{"id": "p", "prompt": "?", "response": "best"}]
    assert len(rows(db, "comparisons")) == 1
    more = [x["responses"] for x in rows(db, "comparisons", better=True) if x["weight"] == 1]
    assert more == [["best", "x"], ["best", "y"]]
    assert '"chosen": "best"' in text(db, "trl", better=True)
    with pytest.raises(ValueError, match="better is about comparisons, and kind is raw: name"):
        text(db, "raw", better=True)


def test_dawid_and_skene_weigh_people_by_their_accuracy(db):
    """Twelve pairs of three people, of whom one is always alone."""
    pair = {"prompt": "?", "responses": ["x", "y"], "wanted": 3}
    world.put(db, [pair | {"id": f"p{n}"} for n in range(12)])
    names = world.people(db, "ann", "ben", "odd")
    for who, said in zip(names, ("a", "a", "b"), strict=True):
        for _ in range(12):
            say(db, who, said)
    assert {x["probability"] for x in rows(db, "comparisons")} == {0.666667}
    model = rows(db, "comparisons", aggregate="dawid_skene")
    assert all(x["probability"] > 0.95 and x["weight"] == 3 for x in model) and len(model) == 12
    assert '"chosen": "x"' in text(db, "trl", aggregate="dawid_skene")
    with pytest.raises(ValueError, match="aggregate is about comparisons, and kind is ratings"):
        text(db, "ratings", aggregate="dawid_skene")
    assert rows(db, "comparisons", aggregate="dawid_skene", question="none") == []


def test_what_is_no_work_or_does_not_stand_is_in_the_raw_rows_alone(full):
    db = full
    raw = rows(db, "raw")
    purposes = {x["item"]["purpose"] for x in raw}
    kinds = {x["kind"] for x in raw}
    assert purposes == {"work", "training", "gold", "repeat"}
    assert kinds == {"judge", "skip", "undo", "surplus"}
    undone = {x["undoes"] for x in raw} - {None}
    work = [x for x in raw if x["kind"] == "judge" and x["item"]["purpose"] == "work"]
    standing = [x for x in work if x["key"] not in undone and not x["blocked"]]
    assert {x["annotator"] for x in raw if x["blocked"]} == {"Eve ♞"}
    assert undone and all(
        x["stands"] == (x["key"] not in undone) for x in raw if x["kind"] == "judge"
    )
    votes = [x for x in standing if x["item"]["kind"] == "pair" and x["preference"] != "both_bad"]
    assert sum(x["weight"] for x in rows(db, "comparisons")) == len(votes)
    assert {x["id"] for x in rows(db, "comparisons")} == {x["item"]["id"] for x in votes}
    assert len(rows(db, "demonstrations")) == sum(bool(x["better"]) for x in standing)
    with db.read() as c:
        counts = omissions.counts(c)
    assert sum(counts.values()) + len(votes) + 2 == len(raw) - len(
        undone
    )  # and a rating and a ranking
    assert min(counts.values()) > 0


def test_a_raw_row_holds_all_that_was_shown_and_said(full):
    db = full
    raw = {x["key"]: x for x in rows(db, "raw")}
    assert [x["at"] for x in raw.values()] == sorted(x["at"] for x in raw.values())
    one = next(x for x in raw.values() if x["comment"] == ODD and x["kind"] == "judge")
    assert one.keys() == {
        *("key", "kind", "at", "annotator", "simulated", "blocked", "stands", "undoes", "item"),
        *("shown", "choice", "preference", "degree", "rating", "ranks", "reason", "comment"),
        *("better", "differences", "server_ms", "visible_ms", "guidelines", "page_version"),
    }
    assert one["item"].keys() == {
        *("id", "kind", "scale", "question", "prompt", "responses", "wanted", "purpose"),
        *("gold", "reason", "metadata", "repeats", "selection"),
    }
    assert one["item"]["selection"] in (None, SELECTION | {"probability": None})
    assert (one["page_version"], sorted(one["shown"])) == ("7", [0, 1])
    repeated = next(x for x in raw.values() if x["item"]["purpose"] == "repeat")
    old = next(x for x in raw.values() if x["item"]["id"] == repeated["item"]["repeats"])
    assert old["annotator"] == repeated["annotator"]
    assert old["item"]["responses"] == repeated["item"]["responses"]
    policies = {y["policy"] for x in raw.values() for y in x["item"]["responses"]}
    assert policies == {None, "m"}


def test_how_an_item_was_chosen_is_kept_with_it(new_db):
    """A drawn one has its probability, and one that a score chose has that; rounds are made once."""
    db = new_db("sqlite")
    drawn = {"round": "round 1", "strategy": "uniform", "probability": 0.125}
    scored = SELECTION | {"score": 3}
    items = [x | {"selection": y} for x, y in zip(world.pairs(2), (drawn, scored), strict=True)]
    world.put(db, items)
    world.put(db, items)  # which changes nothing
    (who,) = world.people(db, "ann")
    for _ in items:
        world.judge(db, who, world.lease(db, who))
    found = {x["item"]["id"]: x["item"]["selection"] for x in rows(db, "raw")}
    assert found["pair0"] == drawn | {"score": None, "model": None}
    assert found["pair1"] == scored | {"probability": None}
    with db.read() as c:
        assert c.execute(sa.select(schema.rounds.c.name)).all() == [("round 1",)]
    with pytest.raises(ValueError, match="known with other contents"):
        world.put(db, [items[0] | {"selection": scored}])


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        ("bald", "a selection is 'bald', and must be an object"),
        ({"round": "1"}, "a selection's strategy is None"),
        ({"round": "", "strategy": "bald"}, "a selection's round is ''"),
        ({"round": "1", "strategy": "bald\0"}, "without NUL"),
        ({"round": "1", "strategy": "bald", "why": 1}, "unknown field 'why'"),
        ({"round": "1", "strategy": "bald", "probability": 1.5}, "number from 0 to 1"),
        ({"round": "1", "strategy": "bald", "score": True}, "score is True"),
        ({"round": "1", "strategy": "bald", "score": float("nan")}, "score is nan"),
        ({"round": "1", "strategy": "bald", "score": 10**400}, "score is 1000"),
    ],
)
def test_a_selection_that_cannot_be_kept_is_refused(new_db, selection, said):
    with pytest.raises(ValueError, match=said):
        world.put(new_db("sqlite"), [world.pairs(1)[0] | {"selection": selection}])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_export_import_export_gives_the_same_bytes(full, new_db, tmp_path, kind):
    """In an empty database of either kind, and once more in the same one, where nothing is new."""
    db = full
    said = text(db)
    path = tmp_path / "raw.jsonl"
    path.write_bytes(said.encode())
    copy = new_db(kind)
    done = bring(copy, path)
    assert done["judgements"] == said.count("\n") and done["known"] == 0
    for name in exports.KINDS:
        assert text(copy, name) == text(db, name)
    again = bring(copy, path)
    assert (again["judgements"], again["created"]) == (0, 0) and again["known"] == done[
        "judgements"
    ]
    assert text(copy) == said
    assert bring(db, path)["judgements"] == 0 and text(db) == said


def test_what_was_brought_goes_on_as_it_was(full, new_db, tmp_path):
    """Slots, states and exclusions: nobody gets again what they have judged or skipped."""
    db, path = full, tmp_path / "raw.jsonl"
    path.write_bytes(text(db).encode())
    copy = new_db("sqlite")
    bring(copy, path)
    with db.read() as a, copy.read() as b:
        item, slot = schema.item, schema.slot
        judged = {x["item"]["id"] for x in rows(db, "raw")}
        query = sa.select(item.c.external, item.c.state, item.c.wanted, sa.func.count(slot.c.done))
        query = query.join(slot).group_by(item.c.external, item.c.state, item.c.wanted)
        query = query.where(item.c.purpose == "work")
        of = lambda c: {tuple(x) for x in c.execute(query) if x.external in judged}
        assert of(a) == of(b)
        people = schema.annotator
        out = sa.select(people.c.name, item.c.external, schema.exclusion.c.why)
        out = out.join(schema.exclusion, schema.exclusion.c.annotator == people.c.id)
        out = out.join(item, item.c.id == schema.exclusion.c.item)
        assert {*map(tuple, a.execute(out))} == {*map(tuple, b.execute(out))} != set()


def test_an_undo_without_what_it_undoes_and_an_item_that_changed_are_refused(
    full, new_db, tmp_path
):
    db, path = full, tmp_path / "raw.jsonl"
    raw = rows(db, "raw")
    undone = {x["undoes"] for x in raw}
    path.write_text(export.lines(x for x in raw if x["key"] not in undone))
    with pytest.raises(
        ValueError, match=r"undoes 'key .*', which is in no row: give the whole export"
    ):
        bring(new_db("sqlite"), path)
    changed = json.loads(json.dumps(raw[-1]))
    changed["item"]["responses"][0]["text"] = "another"
    path.write_text(export.lines([changed]))
    with pytest.raises(
        ValueError, match="is known with other contents: give the changed one another"
    ):
        bring(db, path)


@pytest.mark.parametrize("kind", ["comparisons", "ratings", "rankings"])
def test_exports_to_learn_from_come_back_as_they_were(db, new_db, tmp_path, kind):
    """The votes are known by their share and number, their people are not."""
    items = [
        *world.pairs(12, wanted=3),
        *({"id": f"s{n}", "prompt": f"{n}", "responses": ["x"], "scale": "stars", "wanted": 3}
          for n in range(4)),
        *({"id": f"r{n}", "prompt": f"{n}", "responses": [*"xyz"], "wanted": 2} for n in range(4)),
    ]  # fmt: skip
    world.put(db, items)
    for who in world.people(db, "ann", "ben", "eve"):
        n = 0
        while isinstance(held := world.lease(db, who), Lease):
            n += 1 + who
            degree = {"degree": (n * held.item) % 5 - 2}
            said = {
                "pair": degree,
                "single": {"rating": 1 + n % 5},
                "ranking": {"ranks": [2, 1, 1]},
            }
            world.judge(db, who, held, said[held.kind])
    said = text(db, kind)
    path = tmp_path / "rows.jsonl"
    path.write_text(said)
    copy = new_db("sqlite")
    bring(copy, path)
    assert said.count("\n") >= 4 and text(copy, kind) == said


def test_lines_are_utf8_with_sorted_keys_and_a_lone_surrogate_is_escaped():
    assert export.lines([{"b": "é♞", "a": 1}]) == '{"a": 1, "b": "é♞"}\n'
    (line,) = export.lines([{"b": "é\ud800"}]).splitlines()
    assert line == '{"b": "\\u00e9\\ud800"}' and json.loads(line) == {"b": "é\ud800"}
    assert export.lines([{"a": "x\u2028y\nz"}]).count("\n") == 1
    with pytest.raises(ValueError, match="not JSON compliant"):
        export.lines([{"a": float("nan")}])


def test_the_command_line_brings_and_writes(tmp_path, capsys):
    database = ["--database", f"sqlite:///{tmp_path}/a.db"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"chosen": "x", "rejected": "y"}\n{"chosen": "v", "rejected": "w"}\n')
    assert command_line.main(["import", str(pairs), "--judgements", *database]) == 0
    told = "new items: 2, there already: 0; new judgements: 2, there already: 0."
    assert told in capsys.readouterr().out
    assert command_line.main(["export", *database]) == 0
    found = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert sorted(x["responses"] for x in found) == [["v", "w"], ["x", "y"]]
    db = Database(database[1])
    with db.write() as c:
        access.block(c, access.named(c, "chosen"))
    db.close()
    assert command_line.main(["export", *database, "--better"]) == 0
    assert capsys.readouterr() == ("", "Left out: 2 by blocked people.\n")
    assert command_line.main(["export", *database, "--better", "--kind", "ratings"]) == 1
    assert "better is about comparisons" in capsys.readouterr().err
    assert command_line.main(["import", str(pairs), "--format", "arena", *database]) == 1
    assert "pairs.jsonl:1: field 'conversation_a' is missing" in capsys.readouterr().err
    other = ["--database", f"sqlite:///{tmp_path}/b.db"]
    assert command_line.main(["import", str(pairs), *other]) == 0
    assert command_line.main(["export", *other, "--kind", "raw"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == []
