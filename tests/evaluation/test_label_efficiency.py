"""Labels needed to match random: closed forms, paired resamples, calibration, and the verdict on power."""

import numpy as np
import pytest

from rlhf_jax.studies import label_efficiency as efficiency

LABELS = np.array([0.0, 100.0, 200.0])


def test_the_first_reach_is_linear_between_points():
    curves = np.tile([0.0, 1.0, 3.0], (4, 1))
    found = efficiency.first_reach(LABELS, curves, np.array([2.0, 3.0, -1.0, 3.1]))
    assert found.tolist() == [150, 200, 0, np.inf]
    flat = efficiency.first_reach(LABELS, np.array([[0.0, 0.0, 0.0]]), np.array([0.0]))
    assert flat.tolist() == [0]


def test_random_needs_all_of_its_labels_and_a_curve_of_twice_the_slope_half():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(10, 1)) * 0.01
    random = start + np.array([0.0, 1.0, 2.0])
    assert tuple(efficiency.labels_to_match(LABELS, random, random)) == pytest.approx(
        (200, 200, 200)
    )
    twice = start + np.array([0.0, 2.0, 4.0])
    found = efficiency.labels_to_match(LABELS, twice, random)
    assert found == pytest.approx((100, 100, 100))  # the common start cancels
    worse = efficiency.labels_to_match(LABELS, random - 0.5, random)
    assert worse.mean == np.inf and efficiency.in_words(worse, 200.0) == (
        "over 200 (over 200 to over 200)"
    )


def test_the_interval_covers_the_labels_of_the_true_curves():
    """Of 200 worlds with noisy seeds, 95 % intervals hold the truth, 100 labels, in 91 % or more."""
    held = 0
    for world in range(200):
        rng = np.random.default_rng(world)
        noise = lambda rng=rng: rng.normal(size=(10, 3)) * 0.2
        random = np.array([0.0, 1.0, 2.0]) + noise()
        twice = np.array([0.0, 2.0, 4.0]) + noise()
        found = efficiency.labels_to_match(LABELS, twice, random, seed=world)
        held += found.low <= 100 <= found.high
    assert held / 200 > 0.91


def test_calibration_is_the_mean_gap_of_each_bin():
    predicted = np.array([0.1, 0.15, 0.9, 1.0])
    assert efficiency.calibration_error(predicted, predicted) == pytest.approx(0)
    said = np.array([0.0, 0.25, 1.0, 0.5])
    want = (abs(0.25 - 0.25) + abs(1.9 - 1.5)) / 4
    assert efficiency.calibration_error(predicted, said) == pytest.approx(want)
    assert efficiency.calibration_error(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize(
    ("duplicates", "gold", "said"),
    [
        ((-0.3, -0.1), (0.1, 0.2), "the controls came out"),
        ((-0.3, 0.1), (0.1, 0.2), "none: duplicates cannot be told from random"),
        ((-0.3, 0.1), (-0.1, 0.2), "none: duplicates and gold cannot be told"),
        ((0.1, 0.3), (0.1, 0.2), "none: duplicates"),
        (None, (0.1, 0.2), "not known without duplicates"),
    ],
)
def test_power_needs_both_controls(duplicates, gold, said):
    ends = lambda x: {"accuracy beyond random": {"mean": 0, "low": x[0], "high": x[1]}}
    named = {"duplicates": duplicates, "gold": gold}
    rows = [{"strategy": name} | ends(x) for name, x in named.items() if x]
    assert efficiency.verdict(rows).startswith(said)


def made(slope: float, seeds: int = 6) -> list[dict]:
    """Runs whose gold and accuracy rise by `slope` a round, with people of one mind."""
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(seeds):
        shift = rng.normal() * 0.01
        names = ("gold", "accuracy", "win rate", "accuracy by majority", "right by majority")
        rounds = [
            {"labels": 60 * (r + 1), **dict.fromkeys(names, shift + slope * (r + 1))}
            | {f"{x} by dawid_skene": shift + slope * (r + 1) + 0.05 for x in ("accuracy", "right")}
            for r in range(3)
        ]
        pairs = [
            {"predicted": p, "votes": [v, v]} for p, v in ((None, 1.0), (0.9, 1.0), (0.1, 0.0))
        ]
        runs.append({"rounds": rounds, "uniform": [*pairs, {"predicted": 0.5, "votes": []}]})
    return runs


def test_results_and_picture_of_a_study_with_known_curves(tmp_path):
    runs = {"random": made(0.1), "bald": made(0.2), "duplicates": made(0.05), "gold": made(0.3)}
    found = efficiency.results("strategies", runs, 0.0)
    table = {row["strategy"]: row for row in found["strategies"]}
    assert found["power"].startswith("the controls came out")
    assert table["bald"]["labels for random's gold"] == "90 (90 to 90)"
    assert table["bald"]["gold beyond random"]["mean"] == pytest.approx(0.2)
    assert table["bald"]["rise"]["mean"] == pytest.approx(0.4)
    assert table["duplicates"]["labels for random's accuracy"].startswith("over 180")
    assert found["reward accuracy by Dawid-Skene, beyond that"]["mean"] == pytest.approx(0.05)
    assert table["random"]["agreement"]["mean"] == 1
    assert table["random"]["calibration error"] == pytest.approx(0.1)
    efficiency.picture(tmp_path / "circle.png", runs, 0.0)
    assert (tmp_path / "circle.png").stat().st_size > 20_000
    assert list(efficiency.results("t", {"bald": made(0.1)}, 0.0)) == ["t", "gold of the reference"]
