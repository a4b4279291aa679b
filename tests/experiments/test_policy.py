"""Training that starts from a policy while another model is its reference (`policy`), in every method."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import runs

import launch
from rlhf_jax.data import tokenizer
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.tasks import reviews

parts = str.split  # of a command line
SHAPE = ModelConfig(context=34, d_model=16, heads=2, layers=1)
PYTHON = f"--rl.reward {runs.ROOT}/tests/python_rewards.py:short"
ALIKE = "--devices device --eval-draws 1 --data.prompt-length 10 --sample.length 24"
LOOP = f"{PYTHON} --data.prompts P --rl.iterations 2 --rl.batch-size 8"
PAIRS = "--data.comparisons C --data.prompts P"
METHODS = {  # after the settings that all share
    "rloo": LOOP,
    "ppo": f"{LOOP} --ppo.epochs 2 --ppo.minibatches 2",
    "online_dpo": LOOP,
    "raft": f"{LOOP} --raft.draws 2 --raft.batch-size 4",
    "dpo": f"{PAIRS} --dpo.batch-size 8",
    "kto": f"{PAIRS} --kto.batch-size 8",
}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Folders of policies F and G, D of another width and U of another tokenizer, and a reward model R;
    files of prompts P and pairs C."""
    place = tmp_path_factory.mktemp("policies")
    said = reviews.generate(0, 80, reviews.prompts())
    words = tokenizer.train((f"{prompt} {x}" for prompt, x in said), 400, place / "W")
    other = tokenizer.train(
        ["x"] * 9 + [f"{prompt} {x}" for prompt, x in said[:40]], 400, place / "V"
    )
    cfg = dataclasses.replace(SHAPE, vocab_size=tokenizer.size(words))
    for seed, (name, own, its) in enumerate(
        [
            ("F", cfg, words),
            ("G", cfg, words),
            ("D", dataclasses.replace(cfg, d_model=24), words),
            ("U", dataclasses.replace(cfg, vocab_size=tokenizer.size(other)), other),
        ]
    ):
        params = jax.jit(networks.language_model(own).init)(jax.random.key(seed))
        params = jax.tree.map(lambda x: 3 * x, params)  # far enough from each other
        writing.save(place / name, own, params, tokenizer=its)
    network = networks.reward_model(networks.language_model(cfg))
    reward = network.init(jax.random.key(9), huggingface.load(str(place / "F")).params)
    writing.save(place / "R", cfg, reward, is_reward=True, tokenizer=words)
    for name, fields in (("P", ["prompt"]), ("C", ["prompt", "chosen", "rejected"])):
        rows = [{x: f"{x} {i}" for x in fields} for i in range(40)]
        rows = [row | {"prompt": f"prompt {i}"} for i, row in enumerate(rows)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {x: str(place / x) for x in "FGDUR"} | {x: str(place / f"{x}.jsonl") for x in "PC"}


@pytest.fixture(scope="module")
def start(names, tmp_path_factory):
    """`start(method, *settings)`: the folder of such a run, each started once."""
    done = {}

    def run(method, settings):
        if (method, settings) not in done:
            folder = tmp_path_factory.mktemp(method) / "run"
            command = command_of(names, method, settings, folder)
            assert launch.main(command) == 0
            done[method, settings] = folder
        return done[method, settings]

    return run


def command_of(names, method, settings, folder):
    words = parts(f"{ALIKE} {METHODS.get(method, '')} {settings}")
    return [method, *(names.get(x, x) for x in words), "--run", str(folder)]


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def texts_of(folder, side):
    return [json.loads(row)[side] for row in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapters", ["", " --lora.rank 2"])
def test_the_reference_itself_as_the_policy_changes_no_bit(start, adapters):
    plain, named = (start("rloo", f"--reference F{x}{adapters}") for x in ("", " --policy F"))
    got, want = (runs.arrays(folder, "rloo") for folder in (named, plain))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(want) > 10 and runs.untimed(named) == runs.untimed(plain)
    assert (named / "samples.jsonl").read_text() == (plain / "samples.jsonl").read_text()
    before, after = results_of(plain), results_of(named)
    assert after["kl"] == before["kl"]
    assert after["kl before training"]["mean"] == pytest.approx(0, abs=1e-4)  # by two programs


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(x, marks=pytest.mark.more) if x in ("online_dpo", "raft") else x
        for x in METHODS
    ],
)
def test_a_method_goes_on_from_the_policy_of_a_run_and_stays_near_the_reference(start, method):
    first = start("rloo", "--reference F")
    folder = start(method, f"--reference F --policy {first}")
    old, new = results_of(first), results_of(folder)
    assert texts_of(folder, "before") == texts_of(first, "after")  # with the same noise
    assert new["kl before training"]["mean"] == pytest.approx(old["kl"]["mean"], rel=1e-4)
    assert new["kl before training"]["mean"] > 1e-3 and new["kl"] != new["kl before training"]
    assert new["the policy before training"] == str(first)
    wins = [name for name in new if name.startswith("win rate")]
    assert all("over the policy before training" in name for name in wins)
    assert len(wins) == (method not in ("dpo", "kto"))  # which have no reward in files
    assert "the policy before training" in (folder / "report.html").read_text()


def test_rloo_goes_on_from_the_best_policy_of_a_ppo_run(start):
    """A run that stopped early keeps the best actor-critic beside the last one."""
    first = start("ppo", "--reference F --rl.eval-every 1 --rl.patience 1")
    folder = start("rloo", f"--reference F --policy {first}")
    assert texts_of(folder, "before") == texts_of(first, "after")


def test_another_policy_is_far_from_the_reference_at_the_first_step(start):
    first = lambda folder: next(row for row in runs.untimed(folder) if "objective/kl" in row)
    assert first(start("rloo", "--reference F"))["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert first(start("rloo", "--reference F --policy G"))["objective/kl"] > 1


def test_adapters_lie_over_the_policy_and_not_over_the_reference(start, names, tmp_path):
    folder = start("rloo", "--reference F --policy G --lora.rank 2 --rl.kl-coef 0")
    export = ["export", "--run", str(folder), "--to"]
    assert launch.main([*export, str(tmp_path / "whole")]) == 0
    assert launch.main([*export, str(tmp_path / "adapter"), "--adapter"]) == 0
    whole, adapter, base, reference = (
        huggingface.load(x).params["blocks"]
        for x in (str(tmp_path / "whole"), str(tmp_path / "adapter"), names["G"], names["F"])
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, whole, adapter)
    for name in ("key", "up"):  # which have no adapter
        np.testing.assert_array_equal(whole[name]["kernel"], base[name]["kernel"])
        assert np.abs(whole[name]["kernel"] - reference[name]["kernel"]).max() > 0.01
    # a run that goes on from those adapters has them over that base too
    again = start("rloo", f"--reference F --policy {folder}")
    assert texts_of(again, "before") == texts_of(folder, "after")


def test_adapters_over_the_policy_of_a_run_are_exported_over_its_export(start, tmp_path, capsys):
    first = start("rloo", "--reference F")
    folder = start("rloo", f"--reference F --policy {first} --lora.rank 2")
    export = lambda run, to, *more: launch.main(
        ["export", "--run", str(run), "--to", str(tmp_path / to), *more]
    )
    assert export(folder, "adapter", "--adapter") == 1
    said = capsys.readouterr().err
    assert f"the adapters stand over the policy of {first}: export that run, and name that" in said
    assert export(first, "base") == export(folder, "whole") == 0
    assert export(folder, "adapter", "--adapter", "--base", str(tmp_path / "base")) == 0
    whole, adapter = (huggingface.load(str(tmp_path / x)).params for x in ("whole", "adapter"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, adapter
    )


def test_a_policy_is_known_by_its_content(start, names, tmp_path, capsys):
    shutil.copytree(names["G"], tmp_path / "G")
    shutil.copytree(start("rloo", "--reference F"), tmp_path / "first")
    for name, changed in (("G", "config.json"), ("first", "stages/rloo/2.manifest.json")):
        command = command_of(
            names, "rloo", f"--reference F --policy {tmp_path / name}", tmp_path / f"run-{name}"
        )
        assert launch.main(command) == 0
        path = tmp_path / name / changed
        content = json.loads((tmp_path / f"run-{name}" / "config.json").read_text())["content"]
        assert str(path) in content["policy"]
        path.write_text(path.read_text() + " ")
        assert launch.main(command) == 1
        assert re.search(f"{changed} of policy has changed", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("rloo", "--policy R", r'policy = ".*R" is a reward model: name a language model'),
        ("rloo", "--policy D", r'policy = ".*D" has d_model = 24, and its reference 16: name two models'),
        ("rloo", "--policy U", r'policy = ".*U" has another tokenizer than the reference: name a policy'),
        ("kto", "--policy D", r"has d_model = 24, and its reference 16"),
        ("rloo", "--policy nowhere/to", "'nowhere/to' is no folder, and no model of a hub"),
        ("rloo", "--policy F --sample.length 60", "do not fit the model's 34 positions"),
        ("rloo", "--policy STOPPED", r"is a run whose stage rloo has not ended: start its command again"),
        ("rloo", "--policy DRAWN", "is a run that trained no policy: name another run"),
        ("best_of_n", f"{PYTHON} --data.prompts P --policy F", "policy = .* because no policy is trained"),
    ],
)  # fmt: skip
def test_what_cannot_start_is_refused_in_one_sentence(
    names, start, tmp_path, capsys, monkeypatch, method, settings, words
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first, mine = start("rloo", "--reference F"), dict(names)
    for name, gone in (("STOPPED", "done.json"), ("DRAWN", "")):
        shutil.copytree(first, tmp_path / name)
        (tmp_path / name / "stages" / "rloo" / gone).unlink() if gone else (
            tmp_path / name / "metrics.jsonl"
        ).write_text("")
        mine[name] = str(tmp_path / name)
    capsys.readouterr()
    command = command_of(mine, method, f"--reference F {settings}", tmp_path / "run")
    assert launch.main(command) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(words, said) and said.count("\n") == 0, said
    assert not (tmp_path / "run").exists()
