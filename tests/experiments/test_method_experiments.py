"""Experiments that compare methods, tiny, on one SFT policy and one reward model: what each leaves."""

import json
import re

import jax
import numpy as np
import pytest
import runs

import launch
from rlhf_jax.algorithms import best_of_n, preference
from rlhf_jax.batches import Comparisons, PreferenceBatch, Sequences
from rlhf_jax.runs import checkpoint, metrics

parts = str.split  # of a command line
SHARED = parts(
    """--devices device --model.d-model 16 --model.layers 1 --model.heads 2 --data.vocab-size 400
    --data.demonstrations 80 --data.pairs 96 --data.held-out 0.05 --sft.steps 12 --sft.batch-size 8
    --sft.eval-every 6 --eval-draws 1"""
)
REWARD = parts("--reward.batch-size 8 --reward.save-every 4")
LOOP = "--rl.iterations 4 --rl.batch-size 16 --rl.save-every 2 "
PYTHON = f"--rl.reward {runs.ROOT}/tests/python_rewards.py:short --rl.reward-model-weight 0.5 "
OBJECTIVE = {"objective/kl", "objective/gold", "objective/score"}
PREFERENCE = {"preference/loss", "preference/accuracy", "preference/margin"}
WITHOUT_REWARD = "dpo", "kto"  # which train no reward model
OWN = {  # settings of each, the stage that is its own, and metrics of that
    "dpo": (
        "--dpo.batch-size 8 --dpo.eval-every 2 --dpo.epochs 0.6",
        "dpo",
        PREFERENCE | {"preference/held_out_accuracy"},
    ),
    "kto": (
        "--kto.batch-size 8 --kto.eval-every 2 --kto.epochs 0.3",
        "kto",
        PREFERENCE | {"preference/z_ref", "preference/held_out_auc"},
    ),
    "online_dpo": (LOOP + PYTHON, "online_dpo", PREFERENCE | OBJECTIVE | {"score/short"}),
    "best_of_n": ("--best.draws 6", None, set()),
    "raft": (
        LOOP + PYTHON + "--raft.draws 2 --raft.batch-size 4",
        "raft",
        {"sft/loss"} | OBJECTIVE,
    ),
    "ensemble": (
        LOOP + "--ensemble.members 2 --ensemble.combine min",
        "ensemble",
        {"reward/loss", "reward/accuracy"},
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run with the shared stages finished, that all others start from."""
    folder = tmp_path_factory.mktemp("base") / "run"
    settings = [*SHARED, *REWARD, "--best.draws", "2", "--run", str(folder)]
    assert launch.main(["best_of_n", *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """`finished(name, *settings)`: the folder of a run, each run once."""
    done = {}

    def run(name, *settings):
        if (name, settings) not in done:
            folder = tmp_path_factory.mktemp(name) / "run"
            assert launch.main([*command(name, base, folder), *settings]) == 0
            done[name, settings] = folder
        return done[name, settings]

    return run


def command(name, base, folder):
    own = parts(OWN[name][0]) + ([] if name in WITHOUT_REWARD else REWARD)
    return [name, *SHARED, *own, "--start-from", str(base), "--run", str(folder)]


def read(folder):
    rows = metrics.read(folder / "metrics.jsonl")
    return json.loads((folder / "results.json").read_text()), rows


@pytest.mark.parametrize("name", OWN)
def test_a_method_starts_from_the_stages_of_another_and_leaves_its_own(finished, base, name):
    folder = finished(name)
    results, rows = read(folder)
    _, stage, names = OWN[name]
    own = [row for row in rows if row["stage"] == stage]
    assert names <= {key for row in own for key in row}
    assert all(np.isfinite(row[key]) for row in own for key in names & row.keys())
    assert not {"sft", "reward", "held_out_reward"} & {
        row["stage"] for row in rows
    }  # copied, not trained
    for shared in ("sft",) if name in WITHOUT_REWARD else ("sft", "reward", "held_out_reward"):
        jax.tree.map(
            np.testing.assert_array_equal, runs.arrays(folder, shared), runs.arrays(base, shared)
        )
    assert results["gold"]["before"] == read(base)[0]["gold"]["before"]
    assert abs(results["kl"]["mean"]) > 1e-4 and (folder / "report.html").exists()
    assert sum("win rate of" in key for key in results) == 1
    rewarded = [json.loads(row) for row in (folder / "samples.jsonl").read_text().splitlines()]
    if "--rl.reward" in OWN[name][0]:  # shown beside the reward model, and by gold none the less
        assert all(
            row["after_python_reward"] == np.float32(-0.1 * len(row["after"])) for row in rewarded
        )
        assert results["Python reward"]["after"]["mean"] < 0
    else:
        assert "Python reward" not in results and "after_python_reward" not in rewarded[0]


def test_dpo_does_not_lose_the_pairs_that_it_was_taught(finished):
    _, rows = read(finished("dpo"))
    losses = [row["preference/loss"] for row in rows if row["stage"] == "dpo"]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5)  # the policy is its reference
    assert min(losses) < losses[0]


def test_kto_learns_from_every_response_by_itself(finished):
    """An epoch has twice as many steps as pairs have; the policy begins as its reference."""
    results, rows = read(finished("kto"))
    own = [row for row in rows if row["stage"] == "kto"]
    _, pairs = read(finished("dpo"))
    assert len(own) == pytest.approx(sum(row["stage"] == "dpo" for row in pairs), abs=1)
    assert own[0]["preference/z_ref"] == pytest.approx(0, abs=1e-5)
    assert own[0]["preference/loss"] == pytest.approx(0.5, abs=1e-5)
    auc = results["AUC of the policy's own reward, held-out responses"]
    last = [row["preference/held_out_auc"] for row in own if "preference/held_out_auc" in row][-1]
    assert auc["mean"] == pytest.approx(last, abs=1e-6)


def pairs(rng, prompts, T=3):
    """Comparisons whose prompt is one token and whose response tokens are all different."""
    n = len(prompts)
    sides = []
    for side in range(2):
        said = 100 * (side + 1) + np.arange(n * T).reshape(n, T)
        mask = np.arange(T) < rng.integers(1, T + 1, (n, 1))
        tokens = np.concatenate([np.array(prompts)[:, None], said], axis=1)
        attended = np.concatenate([np.ones((n, 1), bool), mask], axis=1)
        sides.append(Sequences(tokens, attended, mask))
    refs = rng.normal(size=(2, n)).astype(np.float32)
    ones = np.ones(n, np.float32)
    return PreferenceBatch(Comparisons(*sides, weight=ones, probability=ones), *refs)


@pytest.mark.parametrize("kind", ["dpo", "simpo"])
def test_margins_are_of_the_reward_that_the_kind_believes_in(kind):
    made = pairs(np.random.default_rng(0), [1, 2, 3])
    sums = {100: [-3.0, -4.0, -5.0], 200: [-6.0, -2.0, -5.5]}
    found = preference.margins(made, np.array(sums[100]), np.array(sums[200]), kind)
    for n in range(3):
        if kind == "dpo":
            want = (sums[100][n] - made.ref_chosen[n]) - (sums[200][n] - made.ref_rejected[n])
        else:
            lengths = [side.mask[n].sum() for side in made.comparisons.sides]
            want = sums[100][n] / lengths[0] - sums[200][n] / lengths[1]
        assert found[n] == pytest.approx(want, rel=1e-6)


def test_best_of_n_estimates_end_at_what_it_chose(finished):
    results, _ = read(finished("best_of_n"))
    rows = results["best of n"]
    assert [row["n"] for row in rows] == [1, 2, 4, 6]
    np.testing.assert_allclose([row["kl"] for row in rows], best_of_n.kl([1, 2, 4, 6]))
    proxy = [row["proxy"]["mean"] for row in rows]
    assert proxy == sorted(proxy) and proxy[0] < proxy[-1]
    after = results["score of the reward model"]["after"]["mean"]
    assert proxy[-1] == pytest.approx(after, rel=1e-5)
    assert rows[-1]["gold"]["mean"] == pytest.approx(results["gold"]["after"]["mean"], rel=1e-5)
    assert results["kl"]["low"] == results["kl"]["high"] == pytest.approx(rows[-1]["kl"])


@pytest.mark.layouts
def test_online_pairs_are_of_one_prompt_on_any_devices(finished):
    first = lambda folder: next(row for row in read(folder)[1] if row["stage"] == "online_dpo")
    one = first(finished("online_dpo"))
    eight = first(finished("online_dpo", "--devices", "pmap"))
    picked = {"preference/chosen_logprob", "preference/rejected_logprob", "train/grad_norm"}
    # the policy is still its reference, so each side has its own reference log-probability or not this
    assert one["preference/loss"] == pytest.approx(np.log(2), abs=1e-5)
    for name in picked | OBJECTIVE:
        assert eight[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name


def test_the_first_member_of_an_ensemble_is_the_reward_model_itself(finished):
    folder = finished("ensemble")
    one, several = runs.arrays(folder, "reward"), runs.arrays(folder, "ensemble")
    params = [path for path in one if "params" in path and one[path].ndim]
    assert len(params) > 5
    for path in params:
        np.testing.assert_allclose(several[path][0], one[path], rtol=1e-3, atol=1e-5)
    assert any(np.abs(several[path][1] - one[path]).max() > 0.01 for path in params)
    results, rows = read(folder)
    names = [row["scores of"] for row in results["ensemble"]]
    assert names == ["one reward model", "member 0", "member 1", "mean", "min", "uwo", "warm"]
    assert results["disagreement of the reward models"]["after"] > 0
    accuracy = {row["scores of"]: row["held-out accuracy"] for row in results["ensemble"]}
    assert results["reward accuracy"]["held-out pairs"] == accuracy["min"]
    assert {"rloo", "ensemble"} <= {row["stage"] for row in rows}


@pytest.mark.more  # a second kill, of another method than in test_experiments
def test_a_killed_run_ends_with_the_same_bits(finished, base, tmp_path):
    whole, folder = finished("raft"), tmp_path / "run"
    again = command("raft", base, folder)
    runs.kill(again, "raft", 3)
    assert checkpoint.latest(folder / "stages" / "raft") == 2
    assert launch.main(again) == 0
    got, want = runs.arrays(folder, "raft"), runs.arrays(whole, "raft")
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(want) > 20
    assert runs.untimed(folder) == runs.untimed(whole)
    assert (folder / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def test_a_lengthened_run_ends_with_the_bits_of_one_of_that_length(base, tmp_path, capsys):
    constant = "--rl.optimizer.schedule constant --rl.optimizer.warmup 1 --rl.batch-size 16 "
    settings = [*SHARED, *REWARD, *parts(constant + "--rl.save-every 2"), "--start-from", str(base)]
    go = lambda name, n, *more: launch.main(
        ["rloo", *settings, "--rl.iterations", str(n), "--run", str(tmp_path / name), *more]
    )
    assert [go("whole", 5), go("run", 3)] == [0, 0]
    short = read(tmp_path / "run")[0]
    assert go("run", 5) == 0
    assert "rl.iterations is 3 there and 5 here" in capsys.readouterr().out
    got, want = (runs.arrays(tmp_path / name, "rloo") for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(want) > 20
    assert runs.untimed(tmp_path / "run") == runs.untimed(tmp_path / "whole")
    results = [read(tmp_path / name)[0]["kl"] for name in ("run", "whole")]
    assert results[0] == results[1] != short["kl"]
    assert (tmp_path / "run" / "report.html").exists()
    # another seed of RL alone has the shared stages of this run, and an end of its own
    assert go("other", 3, "--rl.seed", "1") == 0
    other = read(tmp_path / "other")[0]
    assert other["kl"] != short["kl"]
    assert other["reward accuracy"] == short["reward accuracy"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("dpo --seed 7", r"start_from = .* trained with other settings \(seed is 0 there and 7 here\)"),
        ("raft --reward.loss.centring 1", r"start_from = .* \(reward.loss.centring is .* and 1.0 here\)"),
        ("raft --start-from nowhere", 'start_from = "nowhere" holds no config.json'),
        ("online_dpo --online.draws 3", "online.draws = 3 .* divide rl.batch_size = 16"),
        ("online_dpo --devices mesh --rl.batch-size 8",
         "rl.batch_size / online.draws = 4 does not divide over 8 devices: use 8"),
        ("online_dpo --rl.kl-coef 0.1", "rl.kl_coef = 0.1 .* set preference.beta"),
        ("online_dpo --sample.temperature 0.5", "sample.temperature = 0.5"),
        ("raft --raft.draws 3", "raft.draws = 3 does not divide rl.batch_size = 16"),
        ("raft --raft.microbatches 5", "raft.microbatches = 5 does not divide raft.batch_size"),
        ("dpo --dpo.microbatches 5", "dpo.microbatches = 5 does not divide dpo.batch_size"),
        ("kto --kto.microbatches 5", "kto.microbatches = 5 does not divide kto.batch_size"),
        ("online_dpo --online.microbatches 3", "online.microbatches = 3 .* rl.batch_size / online.draws"),
        ("raft --rl.best pg/loss", 'rl.best = "pg/loss" is no metric of sft: did you mean sft/loss'),
        ("dpo --preference.gamma 1", "preference.gamma = 1.0 has no effect .* use simpo"),
        ("best_of_n --best.draws 1", "best.draws = 1: it must be 2 or more"),
        ("ensemble --ensemble.members 1", "ensemble.members = 1: it must be 2 or more"),
        ("dpo --rollout.missing-eos-penalty 2", "rollout.missing_eos_penalty = 2.0 has no effect"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_sentence(base, tmp_path, capsys, settings, words):
    name, *more = settings.split()
    assert launch.main([*command(name, base, tmp_path / "run"), *more]) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(words, said) and said.count("\n") == 0, said
    assert not (tmp_path / "run" / "stages").exists()


def test_a_word_that_is_none_is_refused_with_those_there_are(base, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        launch.main([*command("dpo", base, tmp_path / "run"), "--preference.kind", "ppo"])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert all(kind in said for kind in ("dpo", "ipo", "simpo", "orpo"))
    assert not (tmp_path / "run").exists()


@pytest.mark.more
def test_in_bfloat16_log_probabilities_are_recomputed_and_the_gap_is_told(tmp_path):
    command = [
        "rloo",
        *SHARED,
        *parts(LOOP),
        "--model.dtype",
        "bfloat16",
        "--run",
        str(tmp_path / "run"),
    ]
    assert launch.main(command) == 0
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    gaps = [row["objective/sampler_gap"] for row in rows if row["stage"] == "rloo"]
    assert gaps and all(0 < gap < 0.1 for gap in gaps)
