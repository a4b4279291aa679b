"""The circle: simulated people over HTTP, every kind of end, human people, and what the results say."""

import json
import pathlib
import sqlite3
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("fastapi")

from small_study import SHARED

from experiments.studies import circle
from rlhf_jax import bounds
from rlhf_jax.people.aggregation import Votes
from rlhf_jax.people.client import Client, work
from rlhf_jax.pipeline import page as pages
from rlhf_jax.studies import population, rounds
from rlhf_jax.studies.learners import Method
from rlhf_jax.studies.population import Setup, nested_seeds

TINY = replace(
    circle.config,
    seeds=2,
    population="vmap",
    strategies=("random", "bald"),
    rounds=2,
    pairs=10,
    prompts=8,
    members=3,
    duels=3,
    noise=(0.1, 0.9),
    size="10k",
    method=Method("rloo", iterations=2, batch_size=8),
    shared=replace(SHARED, pool_prompts=4, pool_draws=4),
)


SEED = nested_seeds(1)[0]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circle")
    return population.context_of(Setup(folder, TINY.shared, ("10k",)))


@pytest.fixture(scope="module")
def whole(context):
    """A circle that nothing ended."""
    return circle.circle(context, TINY, "bald", SEED)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of two strategies and two seeds."""
    folder = tmp_path_factory.mktemp("study") / "run"
    circle.main(replace(TINY, run=str(folder)))
    return folder


def cell(folder: pathlib.Path, strategy: str, seed: int = 0) -> dict:
    return json.loads((folder / "cells" / strategy / f"{seed}-{seed}-{seed}.json").read_text())


def test_items_keep_how_they_were_chosen_and_a_fifth_is_uniform(context, whole):
    folder = context.folder / "circles" / "bald-0"
    with sqlite3.connect(folder / "feedback.db") as db:
        chosen = db.execute(
            "SELECT round.name, strategy, score IS NULL, probability IS NULL, model_version, COUNT(*) "
            "FROM choice JOIN round ON round.id = choice.round GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2"
        ).fetchall()
        people = db.execute("SELECT name, simulated FROM annotator").fetchall()
        (votes,) = db.execute("SELECT COUNT(*) FROM slot WHERE done IS NOT NULL").fetchone()
    assert chosen == [
        ("round 0", "bald", 0, 1, "round 0", 8),
        ("round 0", "uniform", 1, 0, "round 0", 2),
        ("round 1", "bald", 0, 1, "round 1", 8),
        ("round 1", "uniform", 1, 0, "round 1", 2),
    ]
    assert people == [("person 1", 1), ("person 2", 1)]
    assert votes >= 2 * 20  # and the duels, of which equal texts are none
    assert [x["labels"] for x in whole["rounds"]] == [10, 20]
    assert [len(x["votes"]) for x in whole["uniform"]] == [2] * 4
    assert [x["predicted"] is None for x in whole["uniform"]] == [True, True, False, False]
    left = {x.name for x in folder.iterdir()}  # no model of a round that is over
    assert "feedback.db" in left and not any(x.startswith(("reward", "policy")) for x in left)


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""


def test_a_circle_that_ends_at_every_step_goes_on_and_has_the_same_bits(
    context, whole, tmp_path, monkeypatch
):
    """In the first answers, before a reward model, before the duels, and in the answers of the next round."""
    context = context._replace(folder=tmp_path)
    real, left, ended = circle.collect, 0, []

    def once(name, fn):
        def called(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed(name)
            left -= 1
            return fn(*args, **kwargs)

        return called

    def collect(page, items, tastes, what):
        nonlocal left
        if left == 0:
            page.owner.put(items)
            work(page.people[0], tastes[0], most=3)
            raise Killed("collect")
        left -= 1
        return real(page, items, tastes, what)

    monkeypatch.setattr(circle, "collect", collect)
    for name in ("learn", "improve", "held_out"):
        monkeypatch.setattr(rounds, name, once(name, getattr(rounds, name)))
    for steps in (0, 1, 3, 3, 100):
        left = steps
        try:
            found = circle.circle(context, TINY, "bald", SEED)
        except Killed as end:
            ended.append(str(end))
    assert ended == ["collect", "learn", "held_out", "collect"]
    assert json.dumps(found, default=float) == json.dumps(whole, default=float)


@pytest.mark.more
def test_a_study_has_its_table_and_its_picture_and_leaves_the_databases(finished):
    results = json.loads((finished / "results.json").read_text())
    table = {row["strategy"]: row for row in results["strategies"]}
    assert list(table) == ["random", "bald"] and table["bald"]["labels"] == 20
    assert results["power"] == "not known without duplicates and gold"
    assert table["random"]["gold beyond random"]["mean"] == 0
    assert (finished / "circle.png").stat().st_size > 10_000
    for strategy in table:
        assert [x["labels"] for x in cell(finished, strategy)["rounds"]] == [10, 20]


@pytest.mark.more
def test_all_strategies_meet_the_same_people_and_the_first_round_has_the_same_responses(finished):
    """An answer depends on the seed, the person and the pair alone, so equal pairs have equal votes."""
    said = {}
    for strategy in ("random", "bald"):
        with sqlite3.connect(finished / "circles" / f"{strategy}-0" / "feedback.db") as db:
            rows = db.execute(
                "SELECT item.prompt, x.text, y.text, judgement.annotator, judgement.preference "
                "FROM judgement JOIN item ON item.id = judgement.item AND item.purpose = 'work' "
                "JOIN response x ON x.item = item.id AND x.position = 0 "
                "JOIN response y ON y.item = item.id AND y.position = 1"
            ).fetchall()
        said[strategy] = {row[:4]: row[4] for row in rows}
    both = said["random"].keys() & said["bald"].keys()
    assert both and all(said["random"][x] == said["bald"][x] for x in both)


@pytest.mark.more
def test_human_people_judge_in_a_browser_until_the_circle_is_closed(finished, monkeypatch, capsys):
    """Whoever opens the link that is printed; here a program that takes whatever stands first."""
    cfg = replace(TINY, people="human", strategies=("bald",), run=str(finished.parent / "human"))
    cfg = replace(cfg, noise=circle.config.noise, seeds=circle.config.seeds, port=0, rounds=1)
    links, ready = [], threading.Event()

    def told(line, **_):
        if "annotator" in line:
            links.append(line.rpartition(" ")[2])
            ready.set()

    monkeypatch.setattr(pages, "print", told, raising=False)
    monkeypatch.setattr(pages, "EVERY", 0.01)
    thread = threading.Thread(target=partial(judge_all, links, ready), daemon=True)
    thread.start()
    circle.main(cfg)
    results = json.loads((finished.parent / "human" / "results.json").read_text())
    assert results["strategies"][0]["labels"] == 10 and "power" not in results


def test_a_pair_of_which_all_say_both_are_bad_has_no_side():
    votes = Votes(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([1.0, 1.0, 0.0]))
    for how in circle.HOW:
        labels = rounds.labels_of(votes, how, 4)
        assert labels[0] > 0.5 > labels[1] and labels[2:].tolist() == [0.5, 0.5]


def judge_all(links, ready):
    ready.wait(120)
    address, _, token = links[0].rpartition("/i/")
    person = Client(address, token)
    for _ in range(10_000):
        try:
            work(person, lambda item: {"degree": -1})
        except (ConnectionError, ValueError):
            return  # the page has ended


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"people": "human"}, "names 7: name one"),
        ({"people": "human", "strategies": ("bald",), "noise": (0.5,)}, "people are human"),
        ({"annotators": 2}, "people are simulated"),
        ({"method": Method("dpo")}, "has no reward to follow"),
        ({"pairs": 20, "prompts": 3}, "make 18 pairs at most"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        cfg = replace(circle.config, **settings)
        bounds.check_unread(cfg, circle.config)
