"""From rated responses alone to a reward model and a policy, tiny."""

import json

import numpy as np
import pytest
import runs

import launch
from rlhf_jax.runs import metrics
from rlhf_jax.tasks import reviews

# the shapes of runs.TINY, whose programs are compiled once for all tests
SMALL = [*runs.SFT, *runs.STAGES, *runs.SHAPE]
LENGTHS = ["--data.prompt-length", "10", "--sample.length", "24"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Files of rated reviews: labels of 0 and 1, stars, and ranks of three responses to a prompt."""
    place = tmp_path_factory.mktemp("log")
    said = reviews.generate(0, 160, reviews.prompts())
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": prompt, "response": text, "stars": int(rng.integers(1, 6))}
        for prompt, text in said
    ]
    labels = [row | {"label": int(row.pop("stars") > 2)} for row in map(dict, rows)]
    ranks = [
        {"prompt": prompt, "responses": [text, f"{text} so", f"so {text}"], "ranks": [1, n % 3, 2]}
        for n, (prompt, text) in enumerate(said)
    ]
    for name, found in {"stars": rows, "labels": labels, "ranks": ranks}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return place


def learned(log, tmp_path, *command):
    """The results of a run, and its folder."""
    folder = tmp_path / "run"
    assert launch.main([*command, *SMALL, *LENGTHS, "--run", str(folder)]) == 0
    return json.loads((folder / "results.json").read_text()), folder


def test_reward_learns_from_labels_alone_and_says_whether_it_beats_the_baselines(
    log, tmp_path, capsys
):
    results, folder = learned(log, tmp_path, "reward", "--data.ratings", str(log / "labels.jsonl"))
    baselines = {"length alone", "bag of words"}
    assert results["reward AUC"].keys() == {"held-out ratings"} | baselines
    assert results["reward AUC above that of"].keys() == baselines
    assert results["the reward model beats"].keys() == baselines
    assert results["reward accuracy"].keys() >= {"held-out ratings", "commoner label"}
    assert results["ratings"]["held out"] + results["ratings"]["train"] <= 160
    assert "the reward model beats, bag of words" in capsys.readouterr().out
    # the log-odds of the labels begin at those of their mean, whatever the mean score became
    scale = json.loads((folder / "stages" / "reward" / "scale.json").read_text())
    centre = json.loads((folder / "stages" / "reward" / "centre.json").read_text())["mean"]
    assert scale == {"kind": "binary", "mean": pytest.approx(centre, abs=1e-5), "deviation": 1.0}
    losses = [
        r["reward/loss"] for r in metrics.read(folder / "metrics.jsonl") if "reward/loss" in r
    ]
    assert np.isfinite(losses).all() and 0.3 < losses[0] < 1.5


@pytest.mark.more
@pytest.mark.parametrize(
    ("setting", "file", "name"),
    [
        (["--data.ratings-fields.score", "stars", "--data.ratings"], "stars", "reward correlation"),
        (["--data.comparisons"], "ranks", "reward accuracy"),
    ],
)
def test_a_policy_is_learned_from_stars_or_ranks_alone(log, tmp_path, setting, file, name):
    loop = [*runs.LOOP, "--pg.group", "2"]
    command = ["rloo", *loop, *setting, str(log / f"{file}.jsonl")]
    if file == "ranks":
        command += ["--data.corpus", str(log / "stars.jsonl")]
        prompts = log / "stars.jsonl"
        command += ["--data.prompts", str(prompts)]
    results, folder = learned(log, tmp_path, *command)
    assert name in results and "score of the held-out reward model" in results
    stages = {row["stage"] for row in metrics.read(folder / "metrics.jsonl")}
    assert stages == {"sft", "reward", "held_out_reward", "rloo"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dpo --data.ratings F", "has no effect because nothing here is trained on it"),
        ("ensemble --data.ratings F", "has no effect because nothing here is trained on it"),
        ("reward --data.ratings F --data.comparisons F", "are both given"),
        (
            "reward --data.ratings F --reward.loss.centring 0.1",
            "ratings are learned from one by one",
        ),
        ("reward --data.ratings-fields.score stars", "no data files are given"),
        ("reward --data.comparisons R --reward.loss.centring 0.1", "data.comparisons has ranks"),
    ],
)
def test_settings_that_do_not_fit_ratings_are_refused_before_the_run(
    log, tmp_path, capsys, command, said
):
    named = {"F": str(log / "labels.jsonl"), "R": str(log / "ranks.jsonl")}
    settings = [str(named.get(x, x)) for x in command.split()]
    assert launch.main([*settings, "--run", str(tmp_path / "run")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_certain_labels_train_the_bits_of_labels_and_rows_without_weight_train_none(log, tmp_path):
    """A probability of 1 and a weight of 1 are a label; 0 is the other one; a weight of 0 is no row."""
    rows = [json.loads(line) for line in (log / "ranks.jsonl").read_text().splitlines()]
    hard, soft = [], []
    for n, row in enumerate(rows):
        pair = {"prompt": row["prompt"], "responses": row["responses"][:2]}
        hard.append(pair | {"preference": n % 2})
        soft.append(pair | {"probability": 1 - n % 2, "weight": 1.0})
        if n % 3 == 0:
            soft.append({"prompt": f"of no weight {n}", "responses": ["a b c", "d e"], "weight": 0})
            soft[-1]["probability"] = 0.3
    trained = []
    for name, found in (("hard", hard), ("soft", soft)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        (tmp_path / name).mkdir()
        _, folder = learned(log, tmp_path / name, "reward", "--data.comparisons", str(path))
        trained.append(
            (runs.arrays(folder, "reward"), json.loads((folder / "results.json").read_text()))
        )
    (one, told), (other, same) = trained
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert told["reward accuracy"] == same["reward accuracy"]


def test_a_reward_model_of_soft_labels_is_measured_against_the_likelier_response(
    log, tmp_path, capsys
):
    rows = [json.loads(line) for line in (log / "ranks.jsonl").read_text().splitlines()]
    found = [
        {"prompt": row["prompt"], "responses": row["responses"][:2], "weight": 1 + n % 3}
        | {"probability": (0.5, 0.9, 0.25)[n % 3]}
        for n, row in enumerate(rows)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    results, _ = learned(log, tmp_path, "reward", "--data.comparisons", str(path))
    said = capsys.readouterr().out
    assert "held-out pairs of data.comparisons, of which neither is better" in said
    assert results["pairs"]["ties left out"] == 0
    assert 0 <= results["reward accuracy"]["held-out pairs"]["mean"] <= 1
    assert (
        sum(row["pairs"] if "pairs" in row else row["count"] for row in results["calibration"])
        == (results["pairs"]["held out"])
    )
