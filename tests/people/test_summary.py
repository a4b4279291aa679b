"""The summary of a raw export: every number again, by loops over its rows."""

import collections
import itertools
import json
import math

import numpy as np
import pytest
import raw_rows
from scipy.stats import binom

from rlhf_jax.people import judgements, summary
from rlhf_jax.people.bradley_terry import Contests, fit

SIDE = {"a": 1.0, "b": 0.0, "tie": 0.5}


def close(a, b):
    return a == pytest.approx(b, abs=1e-9)


def test_counts_position_and_time():
    rows = raw_rows.world(0)
    found = summary.summary(rows)
    assert found["judgements"] == len(rows) == 180 and found["items"] == 60
    assert found["ties"] == sum(x["preference"] == "tie" for x in rows)
    assert found["both_bad"] == sum(x["preference"] == "both_bad" for x in rows) > 0
    decided = [x for x in rows if x["preference"] in ("a", "b")]
    first = sum((x["preference"] == "a") == (x["shown"][0] == 0) for x in decided)
    assert (found["position"]["first"], found["position"]["decided"]) == (first, len(decided))
    n, p = len(decided), first / len(decided)
    centre, half = (
        (p + 1.959963984540054**2 / 2 / n),
        1.959963984540054 * math.sqrt(p * (1 - p) / n + 1.959963984540054**2 / 4 / n**2),
    )
    assert close(found["position"]["low"], (centre - half) / (1 + 1.959963984540054**2 / n))
    exact = sum(binom.pmf(k, n, 0.5) for k in range(n + 1) if abs(k - n / 2) >= abs(first - n / 2))
    assert close(found["position"]["p"], min(1.0, exact))
    assert sum(x["judgements"] for x in found["over_time"]) == 180
    part = rows[:18]
    assert close(
        found["over_time"][0]["seconds"], np.median([x["visible_ms"] / 1000 for x in part])
    )
    agreed = of = 0
    for x in part:
        same = [y for y in rows if y["item"]["id"] == x["item"]["id"] and y is not x]
        others = sum(SIDE.get(y["preference"], 0.5) - 0.5 for y in same)
        if x["preference"] in ("a", "b") and others:
            of += 1
            agreed += (others > 0) == (x["preference"] == "a")
    assert (found["over_time"][0]["agreed"], found["over_time"][0]["of"]) == (agreed, of)


@pytest.mark.parametrize("level", ["degree", "side"])
def test_agreement(level):
    """Alpha by Krippendorff's definition, over all pairs of labels."""
    rows = raw_rows.world(1)
    labels = collections.defaultdict(list)
    for x in rows:
        value = x["degree"] if level == "degree" else SIDE.get(x["preference"])
        if value is not None:
            labels[x["item"]["id"]].append(value)
    units = [x for x in labels.values() if len(x) > 1]
    pool = [x for unit in units for x in unit]
    often = collections.Counter(pool)

    def distance(x, y):
        if level == "side" or x == y:
            return float(x != y)
        between = sum(n for label, n in often.items() if min(x, y) <= label <= max(x, y))
        return (between - (often[x] + often[y]) / 2) ** 2

    observed = sum(
        distance(x, y) / (len(unit) - 1)
        for unit in units
        for x, y in itertools.permutations(unit, 2)
    )
    expected = sum(distance(x, y) for x in pool for y in pool) / (len(pool) - 1)
    assert close(summary.summary(rows)["agreement"][level]["alpha"], 1 - observed / expected)


def test_each_person():
    """Accuracies are a fixed point, found by a loop of the model's two steps; agreement follows from them."""
    rows = raw_rows.world(2)
    votes = [x for x in rows if x["preference"] in ("a", "b")]
    accuracy = dict.fromkeys({x["annotator"] for x in rows}, 0.75)
    odds = lambda x: (
        math.log(accuracy[x["annotator"]] / (1 - accuracy[x["annotator"]]))
        * (1 if x["preference"] == "a" else -1)
    )
    p = {x["item"]["id"]: 0.0 for x in rows}
    for key in p:
        said = [x["preference"] == "a" for x in votes if x["item"]["id"] == key]
        p[key] = sum(said) / len(said) if said else 0.5
    for _ in range(400):
        for name in accuracy:
            mine = [x for x in votes if x["annotator"] == name]
            right = sum(
                p[x["item"]["id"]] if x["preference"] == "a" else 1 - p[x["item"]["id"]]
                for x in mine
            )
            accuracy[name] = (right + 3) / (len(mine) + 4)
        p = {
            key: 1 / (1 + math.exp(-sum(odds(x) for x in votes if x["item"]["id"] == key)))
            for key in p
        }
    for person in summary.summary(rows)["people"]:
        assert person["accuracy"] == pytest.approx(accuracy[person["name"]], abs=1e-6)
        mine = [x for x in votes if x["annotator"] == person["name"]]
        agreed = []
        for x in mine:
            rest = sum(odds(y) for y in votes if y["item"]["id"] == x["item"]["id"] and y is not x)
            if rest:
                agreed.append((rest > 0) == (x["preference"] == "a"))
        assert (person["consensus"]["k"], person["consensus"]["n"]) == (sum(agreed), len(agreed))
        half = len(agreed) // 2
        assert person["first_half"]["k"] == sum(agreed[:half])
        first = [(x["preference"] == "a") == (x["shown"][0] == 0) for x in mine]
        assert (person["position"]["k"], person["position"]["n"]) == (sum(first), len(first))
        times = [x["visible_ms"] / 1000 for x in rows if x["annotator"] == person["name"]]
        assert close(person["seconds"], np.median(times))


def test_policies():
    """Strengths are the fit of the rows written out; the stronger one wins; "both are bad" is apart."""
    rows = raw_rows.world(3, items=150)
    found = summary.summary(rows)["policies"]
    assert (
        found["names"] == ["middle", "strong", "weak"] and not found["loose"] and not found["rough"]
    )
    told = [x for x in rows if x["preference"] != "both_bad"]
    number = [[found["names"].index(y["policy"]) for y in x["item"]["responses"]] for x in told]
    a, b = np.array(number).T
    contests = Contests(
        a,
        b,
        np.array([SIDE[x["preference"]] for x in told]),
        order=np.array([1 if x["shown"][0] == 0 else -1 for x in told]),
    )
    fitted = fit(contests, found["names"])
    assert all(map(close, found["strength"], fitted.strength_against(0)))
    assert found["strength"][1] > 0 > found["strength"][2]
    assert found["win_rate"][1][2] > 0.6 and close(
        found["win_rate"][1][2] + found["win_rate"][2][1], 1
    )
    assert all(
        low <= x <= high
        for low, x, high in zip(*(found[k] for k in ("low", "strength", "high")), strict=True)
    )
    bad = [x for x in rows if x["preference"] == "both_bad"]
    assert sum(found["both_bad"].values()) == 2 * len(bad)


def test_only_what_stands_and_counts_is_counted():
    rows = raw_rows.world(4)
    more = [
        raw_rows.row(0, 0, "a", 500, kind="surplus", stands=False),
        raw_rows.row(1, 0, "a", 501, stands=False),
        raw_rows.row(5, 77, "a", 507, blocked=True),
        raw_rows.row(2, 0, "a", 502, kind="skip", stands=False),
        raw_rows.row(900, 0, "a", 503, of_item={"purpose": "gold", "gold": "a"}),
        raw_rows.row(901, 0, "b", 504, of_item={"purpose": "training", "gold": "a"}),
        raw_rows.row(902, 0, "b", 505, of_item={"purpose": "repeat", "repeats": "i0003"}),
        raw_rows.row(903, 0, "b", 506, of_item={"kind": "single"}),
    ]
    few, many = summary.summary(rows), summary.summary([*rows, *more])
    for name in ("judgements", "items", "agreement", "position", "policies", "over_time"):
        assert few[name] == many[name]
    person = next(x for x in many["people"] if x["name"] == "p0")
    assert person["gold"]["k"] == person["gold"]["n"] == 1


def test_what_was_imported_without_an_order_and_gold_that_is_bad_on_both_sides():
    rows = raw_rows.world(6)
    known = summary.summary(rows)
    for row in rows[:40]:
        row["shown"] = None
    found = summary.summary(rows)
    assert found["agreement"] == known["agreement"] and found["judgements"] == known["judgements"]
    decided = [x for x in rows[40:] if x["preference"] in ("a", "b")]
    assert found["position"]["decided"] == len(decided)
    gold = {"purpose": "gold", "gold": "both_bad"}
    rows.append(raw_rows.row(900, 0, "both_bad", 900, of_item=gold))
    rows.append(raw_rows.row(900, 1, "a", 901, of_item=gold))
    again = summary.summary(rows)
    assert again["judgements"] == found["judgements"] and again["both_bad"] == found["both_bad"]
    people = {x["name"]: x["gold"] for x in again["people"]}
    assert (people["p0"]["k"], people["p0"]["n"]) == (1, 1) and people["p1"]["k"] == 0


def test_questions_are_never_mixed():
    rows = raw_rows.world(7, items=20)
    more = raw_rows.world(8, items=10)
    for row in more:
        row["item"]["question"] = "safer?"
    with pytest.raises(ValueError, match="the pairs ask 2 questions, '', 'safer\\?': name one"):
        summary.summary([*rows, *more])
    assert summary.summary([*rows, *more], "safer?") == summary.summary(more)
    assert summary.summary([*rows, *more], "") == summary.summary(rows)


def test_nothing_at_all_and_rows_that_are_no_export():
    empty = summary.summary([])
    assert empty["judgements"] == 0 and empty["policies"] is None and empty["people"] == []
    assert empty["agreement"]["side"]["alpha"] is None
    json.dumps(empty, allow_nan=False)
    json.dumps(summary.summary(raw_rows.world(5)), allow_nan=False)
    with pytest.raises(ValueError, match="row 1 has no kind"):
        judgements.from_raw([{"prompt": "x", "chosen": "a", "rejected": "b"}])
