"""The game as an experiment: it is learned to its exact optimum, not with a wrong mask; resumes; refuses."""

import json
import re

import jax
import numpy as np
import pytest
import runs
from compiling import optimised

import launch
from experiments.applications import game
from rlhf_jax.pipeline import playing
from rlhf_jax.runs import loop, metrics
from rlhf_jax.tasks import guessing

TINY = [
    "game",
    *("--devices", "device", "--model.d-model", "16", "--model.layers", "1"),
    *("--sft.steps", "20", "--sft.batch-size", "64", "--sft.eval-every", "10"),
    *("--demonstrations", "256", "--iterations", "4", "--batch-size", "16", "--save-every", "2"),
    *("--eval-games", "24"),
]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module", params=["ppo", "rloo"])
def whole(request, tmp_path_factory):
    """(command, folder, the indices that secrets were asked of) of a tiny run."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    command, asked, secrets = [*TINY, "--algorithm", request.param], [], guessing.secrets

    def watched(index, cfg, seed):
        asked.append(index)
        return secrets(index, cfg, seed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(guessing, "secrets", watched)
        assert launch.main([*command, "--run", str(folder)]) == 0
    return command, folder, asked


def test_a_run_leaves_all_that_it_promises(whole):
    (*_, algorithm), folder, _ = whole
    results = results_of(folder)
    for name in ("return", "games won", "turns a game"):
        for side in ("before", "after"):
            value = results[name][side]
            assert value["low"] <= value["mean"] <= value["high"]
    assert results["return"]["optimum, exact"] == guessing.optimal_return(game.config.game)
    assert results["return"]["of random play, exact"] < results["return"]["optimum, exact"]
    rows = [row for row in metrics.read(folder / "metrics.jsonl") if row["stage"] == algorithm]
    assert len(rows) == 4 and rows[0]["objective/kl_coef"] > rows[-1]["objective/kl_coef"] > 0
    for row in rows:
        assert 0 <= row["game/win_rate"] <= 1 <= row["game/turns"] <= 3
        # each turn costs, each game that is won earns 1
        want = row["game/win_rate"] - game.config.game.cost * row["game/turns"]
        np.testing.assert_allclose(row["objective/score"], want, atol=1e-5)
        assert row["game/turns"] <= row["objective/length"] <= 2 * row["game/turns"]
    assert any(row["game/win_rate"] > 0 for row in rows)  # the words are known, so there is a game
    for line in (folder / "tokens.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert len(row["tokens"]) == len(row["reward"])
        heard = [word for word, x in zip(row["tokens"], row["reward"], strict=True) if x is None]
        assert heard and set(heard) <= {"higher", "lower", "right", "what"}
    assert "<svg" in (folder / "report.html").read_text()


def test_a_run_interrupted_in_the_middle_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    command, folder, _ = whole
    stage, again = command[-1], [*command, "--run", str(tmp_path / "run")]
    iterate = loop.iterate

    def interrupted(folder, name, carry, body, **settings):
        def counting(carry, i):
            if name == stage and i == 3:
                raise KeyboardInterrupt
            return body(carry, i)

        return iterate(folder, name, carry, counting, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "iterate", interrupted)
        assert launch.main(again) == 130
    assert not (tmp_path / "run" / "results.json").exists()
    assert launch.main(again) == 0

    got, want = runs.arrays(tmp_path / "run", stage), runs.arrays(folder, stage)
    assert len(want) > 20
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for name in ("samples.jsonl", "tokens.jsonl"):
        assert (tmp_path / "run" / name).read_text() == (folder / name).read_text()


def test_the_same_command_on_a_finished_run_prints_the_result(whole, capsys):
    command, folder, _ = whole
    assert launch.main([*command, "--run", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "this run is finished" in said and "return, optimum, exact" in said


def test_draws_of_a_group_share_their_secret_and_nothing_else_does(whole):
    (*_, algorithm), _, (demonstrations, *asked) = whole
    train, evaluated = asked[:4], np.concatenate(asked[4:])
    group = 8 if algorithm == "rloo" else 1
    np.testing.assert_array_equal(np.concatenate(train), np.repeat(np.arange(64 // group), group))
    others = set(demonstrations), set(np.concatenate(train)), set(evaluated)
    assert len(set.union(*others)) == sum(map(len, others)) == 256 + 64 // group + 24


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--ppo.minibatches", "3"], "ppo.minibatches = 3 does not divide batch_size = 16"),
        (["--algorithm", "rloo", "--pg.group", "5"], "pg.group = 5 does not divide batch_size = 16"),
        (["--batch-size", "12", "--devices", "mesh"], "batch_size = 12 does not divide over 8"),
        (["--ppo.microbatches", "3"], "ppo.microbatches = 3 does not divide batch_size / ppo.minibatches"),
        (["--game.turns", "20"], "game.turns = 20 make 61 tokens a game, and model.context = 32"),
        (["--pg.group", "2"], "pg.group = 2 has no effect because algorithm = \"ppo\""),
        (["--demonstrations", "4"], "demonstrations = 4: .* 8 or more"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, capsys, settings, words):
    assert launch.main([*TINY, "--run", str(tmp_path / "run"), *settings]) != 0
    said = capsys.readouterr().err
    assert re.search(words, said)
    assert not (tmp_path / "run" / "stages").exists()


# --- it is learned

LOOP = {
    "ppo": ["--iterations", "120", "--batch-size", "512"],
    "rloo": ["--iterations", "200", "--batch-size", "512"],
}


@optimised()
def learn(folder, algorithm):
    settings = ["--algorithm", algorithm, *LOOP[algorithm]]
    command = ["game", "--devices", "device", *settings, "--eval-games", "1024"]
    assert launch.main([*command, "--run", str(folder)]) == 0
    return results_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("rloo", marks=pytest.mark.more)])
def test_the_return_comes_within_5_percent_of_the_exact_optimum(tmp_path, algorithm):
    results = learn(tmp_path / "run", algorithm)
    assert results["share of the optimum"] > 0.95
    assert (
        results["games won"]["after"]["mean"] > 0.95 > 0.5 > results["games won"]["before"]["mean"]
    )
    # SFT took the words of random play alone: it plays at random, and its loss is the entropy of that
    before = results["return"]["before"]
    spread = before["high"] - before["low"]
    assert abs(before["mean"] - results["return"]["of random play, exact"]) < spread
    loss = results["SFT held-out loss, nats a token"]
    assert abs(loss - results["entropy of random play, nats a token"]) < 0.01


def everything(samples):
    """The environment's words taken for the policy's."""
    return samples.attention_mask[:, -samples.mask.shape[1] :]


def one_late(samples):
    """Each of the policy's tokens taken for the one after it."""
    return np.roll(samples.mask, 1, axis=1) & everything(samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "wrong"),
    [("rloo", everything), pytest.param("ppo", one_late, marks=pytest.mark.more)],
)
def test_a_wrong_mask_does_not_learn_it(tmp_path, monkeypatch, algorithm, wrong):
    play = playing.play

    def masked(cfg, sample_turn, params, *rest):
        samples, rewards = play(cfg, sample_turn, params, *rest)
        if params is None:  # games of random play, for SFT
            return samples, rewards
        return samples._replace(mask=wrong(samples)), rewards

    def outcomes(tokens, heard):
        return right(tokens, heard) if heard.any() else (np.zeros(1), np.zeros(1))

    right = guessing.outcomes
    monkeypatch.setattr(playing, "play", masked)
    monkeypatch.setattr(guessing, "outcomes", outcomes)
    assert learn(tmp_path / "run", algorithm)["share of the optimum"] < 0.5
