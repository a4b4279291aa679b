"""Early stopping of RL on a held-out reward, and what a run writes of held-out prompts on the way."""

import json

import jax
import numpy as np
import pytest
import runs

import launch
from rlhf_jax.evaluation import diversity
from rlhf_jax.pipeline import early_stop, finished, keys
from rlhf_jax.pipeline.texts import plain_row
from rlhf_jax.runs import checkpoint, metrics

ALONE = [  # with a Python reward alone
    *("rloo", *runs.LOOP, *runs.SFT, *runs.SHAPE, "--pg.group", "2", "--devices", "device"),
    *("--sft.batch-size", "8", "--data.demonstrations", "80"),
]
RLOO = ["rloo", *runs.TINY, "--pg.group", "2", "--rl.eval-every", "2"]


def test_the_best_is_a_copy_and_evaluations_without_a_better_one_are_counted():
    kept = early_stop.begin({"w": np.zeros(2)})
    since = []
    for loss in (3.0, 1.0, np.nan, 1.0, 2.0, 0.5):
        kept = early_stop.after(kept, {"w": np.full(2, loss)}, np.float32(loss))
        since.append((int(kept["since"]), float(kept["best"]["w"][0]), float(kept["lowest"])))
    assert since == [(0, 3, 3), (0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (0, 0.5, 0.5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch.main([*RLOO, "--run", str(folder)]) == 0
    return folder


def test_held_out_prompts_are_answered_by_the_policy_of_that_iteration(whole):
    """At iteration 0 the policy is the reference, and its responses are those of the finished run's SFT."""
    rows = [json.loads(x) for x in (whole / metrics.SAMPLES).read_text().splitlines()]
    measured = {r["iteration"]: r for r in metrics.read(whole / metrics.FILE) if "eval/kl" in r}
    assert list(measured) == [0, 2, 4] == sorted({row["iteration"] for row in rows})
    done = finished.opened(whole, 8)
    asked = done.texts.rows_held_out[:8]
    said = done.generator.generate(done.policy("sft"), asked, keys.key_of(0, "eval")).texts
    first = [row for row in rows if row["iteration"] == 0]
    assert [row["response"] for row in first] == said[: len(first)]
    assert [row["prompt"] for row in first] == [row.prompt for row in asked[: len(first)]]
    gold = done.texts.task.gold([plain_row(row) for row in asked], said)
    np.testing.assert_allclose([row["gold"] for row in first], gold[: len(first)], rtol=1e-6)
    now = measured[0]
    np.testing.assert_allclose(now["eval/gold"], gold.mean(), rtol=1e-6)
    assert abs(now["eval/kl"]) < 1e-4 < abs(measured[4]["eval/kl"])
    assert now["eval/distinct_2"] == pytest.approx(diversity.distinct(said, 2))
    assert {"eval/score", "eval/held_out_score", "eval/length", "eval/eos_rate"} <= now.keys()
    times = [k for k in now if k.startswith("time/")]
    assert {"time/sample", "time/evaluate", "time/update", "time/tokens_per_second"} <= {*times}
    assert now["train/learning_rate"] == pytest.approx(1e-3)
    last = max(measured.values(), key=lambda row: row["iteration"])
    assert last["train/learning_rate"] == pytest.approx(1e-3 * (1 - 4 / 5))
    page = (whole / "report.html").read_text()
    assert "Samples over time" in page and "Iteration 4" in page


def test_evaluation_changes_no_bit_of_what_is_learned(whole, tmp_path):
    other = ["--rl.eval-every", "0", "--start-from", str(whole)]
    assert launch.main([*RLOO, *other, "--run", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / metrics.SAMPLES).exists()
    jax.tree.map(
        np.testing.assert_array_equal,
        runs.arrays(whole, "rloo"),
        runs.arrays(tmp_path / "run", "rloo"),
    )


def test_training_stops_without_a_new_best_and_keeps_the_best(tmp_path):
    """A reward that only falls: the best is the reference, and the stop comes at the next save."""
    falling = tmp_path / "falling.py"
    falling.write_text(
        "calls = []\n\n"
        "def reward(prompts, responses):\n"
        "    calls.append(1)\n"
        "    return [-float(len(calls)) - (len(x) % 3) for x in responses]\n"
    )
    more = ["--rl.reward", f"{falling}:reward", "--rl.iterations", "9", "--rl.eval-every", "1"]
    stop = [*ALONE, *more, "--rl.patience", "3"]
    folder = tmp_path / "run"
    assert launch.main([*stop, "--run", str(folder)]) == 0
    told = json.loads((folder / "stages" / "rloo" / "done.json").read_text())
    assert told["iterations"] == 4  # evaluated at 0 (the best), 1, 2 and 3; saved after 2 and 4
    kept = checkpoint.read(folder / "stages" / "rloo", 4)
    best = {k: v for k, v in kept.items() if "best" in k}
    reference = jax.tree.leaves(finished.opened(folder, 8).policy("sft"))
    sums = lambda arrays: sorted(float(np.abs(x).sum()) for x in arrays)
    assert best and sums(best.values()) == pytest.approx(sums(reference), rel=1e-6)
    results = json.loads((folder / "results.json").read_text())
    assert results["kl"]["mean"] == pytest.approx(0, abs=1e-5)  # the policy is the reference


def test_patience_without_evaluations_is_refused(capsys):
    assert launch.main(["rloo", "--rl.patience", "2", "--rl.eval-every", "0"]) == 1
    assert "set rl.eval_every to 1 or more" in capsys.readouterr().err
