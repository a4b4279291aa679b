"""Results over seeds: their names, their means, the best combination and what it is told apart from."""

import numpy as np
import pytest

from rlhf_jax.sweeps import picture, table
from rlhf_jax.sweeps.table import Cell

HELD_OUT = "score of the held-out reward model, after"
RESULTS = {
    "Python reward": {"before": {"mean": 0.1, "low": 0, "high": 1}, "after": {"mean": 0.5}},
    "gold": {"before": {"mean": -1.0}, "after": {"mean": 2}},
    "win rate of RLOO over SFT, by gold": {"mean": 0.7},
    "kl": {"mean": None, "low": None, "high": None},
    "SFT held-out loss, nats a token": 3.5,
    "reward accuracy": {"held-out pairs": {"mean": 0.8}},
    "the reward model beats": {"length": "yes"},
    "calibration": [{"pairs": 1}],
    "bounded": True,
    "seconds": {"sft": 4.0},
    "peak memory, GiB": 1.5,
}


def cell(values, **columns) -> Cell:
    many = len(next(iter(columns.values())))
    rows = [{name: x[i] for name, x in columns.items()} for i in range(many)]
    return Cell(values, [*range(many)], rows)


def test_every_number_has_the_name_that_a_run_prints():
    assert table.numbers(RESULTS) == {
        "Python reward, before": 0.1, "Python reward, after": 0.5, "gold, before": -1.0,
        "gold, after": 2.0, "win rate of RLOO over SFT, by gold": 0.7,
        "SFT held-out loss, nats a token": 3.5, "reward accuracy, held-out pairs": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "wanted", "measure"),
    [
        (["a, after", "gold, after", "kl"], "", "gold, after"),
        (["a, after", HELD_OUT], "", HELD_OUT),
        (["reward accuracy", "a, before", "a, after"], "", "a, after"),
        (["loss", "kl"], "", "loss"),
        (["accuracy", "kl", "different responses, of all, after"], "", "accuracy"),
        (["a, after", "kl"], "kl", "kl"),
        (["a, before", "a, after"], "a", "a, after"),
        (["a, after"], "b", None),
        ([], "", None),
    ],
)  # fmt: skip
def test_the_measure_is_gold_or_what_was_maximised_or_the_one_asked_for(names, wanted, measure):
    assert table.measure_of(names, wanted) == measure


def test_less_of_a_loss_is_better():
    lower = ("kl", "SFT held-out loss, nats a token", "reward calibration error")
    assert all(map(table.is_lower_better, lower))
    assert not any(
        map(table.is_lower_better, ("gold, after", "score of the reward model, after", "words"))
    )


def test_the_best_is_told_apart_by_differences_that_are_paired_by_seed():
    seeds = np.array([0.0, 5.0, -5.0, 2.0])  # which moves all alike, and hides no difference
    noise = np.array([0.0, 0.02, -0.01, 0.01])
    cells = [
        cell({"x": "1"}, gold=seeds),
        cell({"x": "2"}, gold=seeds + 1 + noise),
        cell({"x": "3"}, gold=seeds + 1 - noise),
    ]
    best, close = table.best_of(cells, "gold")
    assert best.values == {"x": "2"} and [c.values["x"] for c in close] == ["3"]
    assert (
        table.best_of([c._replace(runs=[{"kl": -x["gold"]} for x in c.runs]) for c in cells], "kl")[
            0
        ].label
        == "x 2"
    )
    assert table.best_of(cells[:1], "gold") is None
    alone = [cell({"x": str(n)}, gold=[float(n)]) for n in range(3)]
    assert len(table.best_of(alone, "gold")[1]) == 2  # one seed tells nothing apart


def test_unequal_seeds_are_compared_on_those_that_both_have():
    a = Cell({"x": "1"}, [0, 1, 2], [{"gold": x} for x in (0.0, 10.0, 20.0)])
    b = Cell({"x": "2"}, [1, 2], [{"gold": x} for x in (11.0, 21.01)])
    best, close = table.best_of([a, b], "gold")
    assert best is b and close == []


def test_values_that_all_seeds_share_have_no_interval():
    shared = cell({}, gold=[2.0, 2.0])
    assert table.ends(shared.over("gold"), shared.column("gold")) == "equal in all seeds"
    alone = cell({}, gold=[2.0])
    assert table.ends(alone.over("gold"), alone.column("gold")) == "unknown, of one seed"
    assert table.said(alone.over("gold")) == "2.000" and table.said(None) == "-"
    some = Cell({}, [0, 1], [{"gold": 1.0}, {}])
    assert some.over("gold") is None


def test_the_csv_has_a_line_a_run_and_keeps_names_with_commas():
    text = table.as_csv([cell({"rl.kl-coef": "0.1"}, **{"gold, after": [1.0, 2.5]})])
    assert text == 'rl.kl-coef,seed,"gold, after"\n0.1,0,1.0\n0.1,1,2.5\n'


def test_values_stand_where_their_numbers_are_and_words_apart():
    assert picture.placed(["1", "2", "4"]) == ({"1": 1.0, "2": 2.0, "4": 4.0}, "")
    places, scale = picture.placed(["0.01", "0.1", "1e0"])
    assert scale == " (log scale)" and places == pytest.approx({"0.01": -2, "0.1": -1, "1e0": 0})
    assert picture.placed(["0", "100"])[1] == "" == picture.placed(["-1", "-100"])[1]
    assert picture.placed(["none", "0.1", "nan"]) == ({"none": 0.0, "0.1": 1.0, "nan": 2.0}, "")


@pytest.mark.parametrize("seeds", [1, 2, 4])
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_a_picture_is_drawn_of_any_grid(tmp_path, axes, seeds):
    values = [{f"a{n}": str(n * x + 1) for n in range(axes)} for x in range(1 + bool(axes))]
    columns = {"gold, before": [0.0] * seeds, "gold, after": [*range(seeds)], "kl": [1.0] * seeds}
    cells = [cell(x, **columns) for x in values] + [
        Cell({f"a{n}": "9" for n in range(axes)}, [], [])
    ] * bool(axes)
    for measure in ("gold, after", "kl"):
        picture.draw(tmp_path / "a.png", cells, measure, "toy")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
