"""Whole experiments, tiny: what they leave, that they go on after a kill, and what they refuse."""

import dataclasses
import gzip
import json
import re
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import runs

import launch
from rlhf_jax.data import dialogues, tokenizer
from rlhf_jax.evaluation import intervals
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.pipeline import finished, keys, questions, reading, texts
from rlhf_jax.pipeline.pretrained import stops
from rlhf_jax.rewards import features
from rlhf_jax.runs import checkpoint, conclusion, disk, metrics
from rlhf_jax.tasks import reviews

parts = str.split  # of a command line
SFT, STAGES, WORLD = runs.SFT, runs.STAGES, runs.WORLD
SMALL = SFT + STAGES + runs.SHAPE
LOOP = ["sentiment", *runs.LOOP, *runs.PPO]
TINY = ["sentiment", *runs.TINY, *runs.PPO]
WITH_FILES, WITH_MODEL, WITH_REFERENCE = (
    LOOP + SMALL,
    LOOP + SFT + STAGES + WORLD,
    LOOP + STAGES + WORLD,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert launch.main([*TINY, "--run", str(folder)]) == 0
    return folder


def test_a_run_leaves_all_that_it_promises(whole):
    results = json.loads((whole / "results.json").read_text())
    for side in ("before", "after"):
        gold = results["gold"][side]
        assert gold["low"] <= gold["mean"] <= gold["high"]
    assert 0 <= results["win rate of PPO over SFT, by gold"]["mean"] <= 1
    assert 0.5 <= results["reward accuracy ceiling (annotator noise)"] < 1
    config = json.loads((whole / "config.json").read_text())
    assert config["settings"]["rl"]["iterations"] == 5 and config["versions"]["jax"]
    stages = {row["stage"] for row in metrics.read(whole / "metrics.jsonl")}
    assert stages == {"sft", "reward", "held_out_reward", "ppo"}
    assert {p.name for p in (whole / "tensorboard").iterdir()} == stages
    for name, fields in {
        "samples": {"method", "prompt"}
        | {f"{x}{y}" for x in ("before", "after") for y in ("", "_gold", "_score")},
        "tokens": {"prompt", "tokens", "kl", "value", "advantage", "reward"},
    }.items():
        rows = [json.loads(line) for line in (whole / f"{name}.jsonl").read_text().splitlines()]
        assert rows and all(fields == row.keys() for row in rows)
    assert "<svg" in (whole / "report.html").read_text()


def test_held_out_prompts_were_used_in_no_stage(whole):
    held_out = set(reviews.split_prompts(0.05, 0)[1])
    compared = [json.loads(row) for row in (whole / "comparisons.jsonl").read_text().splitlines()]
    assert len(compared) == 96 and not held_out & {row["prompt"] for row in compared}
    judged = [json.loads(row) for row in (whole / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in judged} == held_out


def test_an_interval_that_one_value_leaves_open_is_printed_as_unknown(tmp_path, capsys):
    gold = intervals.bootstrap_interval(np.ones(3), ["one prompt"] * 3)._asdict()
    disk.write_json(tmp_path / "results.json", {"gold": gold, "rows": [{"gold": gold}]})
    conclusion.show(tmp_path, "the same")
    assert capsys.readouterr().out.count("unknown") == 2


def test_the_same_command_on_a_finished_run_prints_the_result_and_how_to_start_another(
    whole, capsys
):
    before = (whole / "report.html").stat().st_mtime_ns
    assert launch.main([*TINY, "--run", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "this run is finished" in said and "--seed 1" in said and "gold, after" in said
    assert said.splitlines()[-1] == str(whole)
    assert (whole / "report.html").stat().st_mtime_ns == before


def test_another_config_in_the_folder_is_refused_and_nothing_is_overwritten(whole, capsys):
    before = (whole / "config.json").read_bytes()
    assert launch.main([*TINY, "--run", str(whole), "--seed", "7"]) == 1
    said = capsys.readouterr().err
    assert re.search(r"error: run .* another config \(seed is 0 there and 7 here\)", said)
    assert (whole / "config.json").read_bytes() == before


def test_another_method_goes_on_from_the_policy_of_a_run_and_its_sft_stays_the_reference(
    whole, tmp_path
):
    command = ["rloo", *runs.TINY, "--start-from", str(whole), "--policy", str(whole)]
    assert launch.main([*command, "--run", str(tmp_path / "run")]) == 0
    results, before = (
        json.loads((x / "results.json").read_text()) for x in (tmp_path / "run", whole)
    )
    assert results["gold"]["before"] == before["gold"]["after"]
    assert results["kl before training"]["mean"] == pytest.approx(before["kl"]["mean"], rel=1e-4)
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {
        *("sft", "reward", "held_out_reward", "rloo")
    }


@pytest.mark.parametrize("stage", [pytest.param("reward", marks=pytest.mark.more), "ppo"])
def test_a_run_killed_in_the_middle_of_a_stage_ends_with_the_same_bits(whole, tmp_path, stage):
    folder = tmp_path / "run"
    command = [*TINY, "--run", str(folder)]
    runs.kill(command, stage, 3)
    assert not (folder / "results.json").exists()
    assert launch.main(command) == 0
    got, want = runs.arrays(folder, "ppo"), runs.arrays(whole, "ppo")
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert len(want) > 50
    for name in ("samples.jsonl", "tokens.jsonl", "comparisons.jsonl"):
        assert (folder / name).read_text() == (whole / name).read_text()
    assert runs.untimed(folder) == runs.untimed(whole)


@pytest.mark.layouts
def test_a_run_killed_on_a_mesh_goes_on_on_one_device(whole, tmp_path):
    folder = tmp_path / "run"
    command = [*TINY, "--run", str(folder)]
    runs.kill([*command, "--devices", "mesh:data=2,fsdp=2,tensor=2"], "ppo", 3)
    assert launch.main(command) == 0
    got, want = runs.arrays(folder, "ppo"), runs.arrays(whole, "ppo")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), got, want)


SHAPES = {
    "gpt2": ModelConfig(context=64, d_model=16, heads=2),
    "qwen3": ModelConfig(
        context=64, d_model=16, heads=4, kv_heads=2, head_dim=8, d_mlp=24, positions="rotary",
        norm="rmsnorm", activation="swiglu", bias=False, qk_norm="head", tied=False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The folder of a tokenizer of 400 tokens; `whole` has one too, and takes a run of PPO to make."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer.train(
        (f"{p} {r}" for p, r in reviews.generate(0, 80, reviews.prompts())), 400, folder
    )
    return folder


@pytest.fixture(params=SHAPES)
def pretrained(request, larger, tmp_path):
    """A folder in the Hugging Face format, with a tokenizer that has no pad token."""
    words = tokenizer.load(larger)
    words.pad_token = None
    cfg = dataclasses.replace(SHAPES[request.param], vocab_size=len(words))
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(1))
    writing.save(tmp_path / "model", cfg, params, tokenizer=words, stops=(320,))
    path = tmp_path / "model" / "generation_config.json"
    path.write_text('{"eos_token_id": [2, 321], "top_k": 20}')
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == request.param
    )
    return tmp_path / "model"


@pytest.mark.more  # the next one takes the same way, with adapters
@pytest.mark.parametrize("pretrained", ["gpt2"], indirect=True)
def test_all_stages_run_from_a_pretrained_model(pretrained):
    folder = pretrained.parent / "run"
    assert launch.main([*WITH_MODEL, "--pretrained", str(pretrained), "--run", str(folder)]) == 0
    assert json.loads((folder / "results.json").read_text())["kl"]["mean"] > 0
    assert not (folder / "tokenizer").exists()  # the model's own is used


@pytest.mark.parametrize("pretrained", ["qwen3"], indirect=True)
def test_what_a_run_with_adapters_learned_is_exported_and_another_run_starts_there(pretrained):
    place = pretrained.parent
    of = lambda name: str(place / name)
    adapters = ["--lora.rank", "2", "--lora.matrices", "query", "down", "--rl.kl-coef", "0.0"]
    command = [*WITH_MODEL, *adapters]
    assert launch.main([*command, "--pretrained", of("model"), "--run", of("run")]) == 0
    saved = runs.arrays(place / "run", "ppo")
    assert not any("kernel" in path for path in saved)
    assert (
        sum("lora_a" in path for path in saved) == 3 * 2 * 2
    )  # two moments, two trunks, two matrices
    sft, export = ["--stage", "sft", "--to", of("sft")], ["export", "--run", of("run")]
    for more in (
        sft,
        ["--stage", "reward", "--to", of("reward")],
        ["--to", of("policy")],
        ["--adapter", "--base", of("sft"), "--to", of("adapter")],
    ):
        assert launch.main([*export, *more]) == 0
    named = lambda name: SimpleNamespace(pretrained=of(name), reference="")
    for name in ("model", "sft", "policy", "adapter"):
        assert stops(named(name), tokenizer.load(of(name))) == (2, 320, 321)
        kept = json.loads((place / name / "generation_config.json").read_text())
        assert kept["top_k"] == 20 and set(kept["eos_token_id"]) >= {2, 321}
    params = lambda name: huggingface.load(of(name)).params
    centre = json.loads((place / "run" / "stages" / "reward" / "centre.json").read_text())
    assert params("reward")["bias"] == -np.float32(centre["mean"]) != 0
    same = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(same, params("policy"), params("adapter"))
    start = ["--reference", of("policy"), "--reward-model", of("reward"), "--run", of("again")]
    assert launch.main([*WITH_REFERENCE, *adapters, *start]) == 0
    assert {path.name for path in (place / "again" / "stages").iterdir()} == {"ppo"}
    rows = [
        [json.loads(row) for row in (place / name / "samples.jsonl").read_text().splitlines()]
        for name in ("run", "again")
    ]
    for old, new in zip(*rows, strict=True):
        assert new["before"] == old["after"]
        assert new["before_score"] == pytest.approx(old["after_score"], abs=1e-4)
    assert any(row["before"] != row["after"] for row in rows[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--shard-gb", "-1"], r"shard_gb = -1\.0: it must be above 0"),
        (["--base", "x"], "base = 'x' has no effect because no adapter is written"),
        (["--adapter"], r"stage ppo trained the whole model \(lora.rank = 0\): no adapter"),
        (["--stage", "dpo"], 'stage = "dpo" is none of .*: held_out_reward, ppo, reward, sft'),
        (["--stage", "../sft"], r'stage = "\.\./sft" is none of'),
        (["--stage", "sft", "--best"], "best = True, and no checkpoint of stage sft"),
    ],
)
def test_settings_of_an_export_that_cannot_be_are_refused(whole, tmp_path, capsys, settings, words):
    command = ["export", "--run", str(whole), "--to", str(tmp_path / "it")]
    assert launch.main([*command, *settings]) == 1
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "it").exists()


def test_the_best_checkpoint_of_a_run_is_exported(whole, tmp_path):
    """It stands where the mean reward on the way to it was highest: of iterations 0 and 1, 2 and 3, or 4."""
    rows = [row for row in metrics.read(whole / "metrics.jsonl") if row["stage"] == "ppo"]
    rewards = [row["objective/reward"] for row in rows]
    values = {2: np.mean(rewards[:2]), 4: np.mean(rewards[2:4]), 5: rewards[4]}
    step = max(values, key=values.__getitem__)
    assert launch.main(["export", "--run", str(whole), "--best", "--to", str(tmp_path / "it")]) == 0
    saved = checkpoint.read(whole / "stages" / "ppo", step, "['state'].params['policy']")
    written = huggingface.load(str(tmp_path / "it")).params
    np.testing.assert_array_equal(
        written["embedding"]["embedding"], saved["['embedding']['embedding']"]
    )


@pytest.fixture(scope="module")
def folders(larger, tmp_path_factory):
    """A policy and a reward model in the Hugging Face format, with a small tokenizer, and a larger one."""
    place = tmp_path_factory.mktemp("folders")
    words = tokenizer.train(["a good film"] * 9, 300, place / "small")
    cfg = dataclasses.replace(SHAPES["gpt2"], vocab_size=300)
    lm = networks.language_model(cfg)
    params = jax.jit(lm.init)(jax.random.key(0))
    reward = networks.reward_model(lm).init(jax.random.key(1), params)
    writing.save(place / "gpt2", cfg, params, tokenizer=words)
    writing.save(place / "reward", cfg, reward, is_reward=True, tokenizer=words)
    return {name: str(place / name.lower()) for name in ("GPT2", "REWARD")} | {"WORDS": str(larger)}


@pytest.fixture
def files(tmp_path):
    """Texts with labels, as JSONL and .gz: clauses of the generated world."""
    said = reviews.generate(0, 160, reviews.prompts())
    rows = [{"text": f"{p} {r}", "label": int(reviews.gold(p, r) > 0)} for p, r in said]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(lines)
    return tmp_path


def test_sentiment_on_files_takes_a_held_out_reward_model_for_gold(files, capsys):
    folder = files / "run"
    settings = [
        *("--data.corpus", str(files / "b.jsonl.gz"), "--data.comparisons", f"{files}/*.jsonl"),
        *("--data.prompts", str(files / "a.jsonl"), "--data.held-out", "0.2"),
    ]
    assert launch.main([*WITH_FILES, *settings, "--run", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results.keys() >= {"score of the reward model", "score of the held-out reward model"}
    assert (
        "gold" not in results
        and "win rate of PPO over SFT, by score of the held-out reward model" in results
    )
    assert "ceiling" not in (folder / "results.json").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)


WORTHS = 0.5, -0.25  # of a letter


@pytest.fixture
def asked(tmp_path):
    """The file of prompts that stand in two rows each, with other columns."""
    rows = [{"prompt": f"the {x}", "worth": w} for x in reviews.GENRES for w in WORTHS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "asked.jsonl").write_text(lines)
    return tmp_path / "asked.jsonl"


REWARDS = f"{runs.ROOT}/tests/python_rewards.py"
METHODS = {
    "sentiment": "--rl.value shared --rl.scorer.processes --rl.scorer.threads 1 --rl.kl-coef 0",
    "rloo": "--pg.group 4",
    "online_dpo": "",
    "raft": "--raft.draws 4 --raft.batch-size 2",
    "best_of_n": "--best.draws 4",
}


@pytest.mark.parametrize(
    "method", ["sentiment", *(pytest.param(x, marks=pytest.mark.more) for x in list(METHODS)[1:])]
)
def test_with_a_reference_and_a_python_reward_prompts_are_enough(folders, asked, method):
    folder = asked.parent / "run"
    settings = [method, "--devices", "device", "--reference", folders["GPT2"], "--eval-draws", "1"]
    settings += ["--data.prompts", str(asked), "--data.held-out", "0.3", "--sample.length", "6"]
    settings += ["--rl.reward", f"{REWARDS}:letters", *parts(METHODS[method]), "--run", str(folder)]
    if method != "best_of_n":
        settings += ["--rl.iterations", "2", "--rl.batch-size", "8"]
        settings += ["--rollout.missing-eos-penalty", "0"]
    assert launch.main(settings) == 0
    results = json.loads((folder / "results.json").read_text())
    first, second, *_ = results
    assert first == "Python reward" and results[first].keys() == {"before", "after"}
    assert second.endswith("over the reference, by Python reward")
    told = (folder / "results.json").read_text()
    assert not any(part in told for part in ("gold", "score of", "SFT held-out loss", "accuracy"))
    samples = [json.loads(row) for row in (folder / "samples.jsonl").read_text().splitlines()]
    columns = {"method", "prompt", "before", "after", "before_python_reward", "after_python_reward"}
    counted = {}
    for row in samples:
        assert row.keys() == columns
        got = row["after_python_reward"]
        assert got == WORTHS[counted.get(row["prompt"], 0)] * len(row["after"])
        counted[row["prompt"]] = counted.get(row["prompt"], 0) + 1
    assert set(counted.values()) == {2} and any(row["after_python_reward"] for row in samples)
    if method == "best_of_n":
        assert [row.keys() for row in results["best of n"]] == [{"n", "kl", "proxy"}] * 3
        return
    stage = "ppo" if method == "sentiment" else method
    assert [path.name for path in (folder / "stages").iterdir()] == [stage]
    rows = metrics.read(folder / "metrics.jsonl")
    assert len(rows) == 2 and not any(
        {"objective/gold", "objective/held_out_score"} & row.keys() for row in rows
    )
    assert all(
        row["score/letters"] == pytest.approx(row["objective/score"], abs=1e-6) for row in rows
    )
    if method == "sentiment":  # without a KL penalty the tokens' rewards are what was trained on
        worth = [(row["prompt"], row["after_python_reward"]) for row in samples]
        for row in map(json.loads, (folder / "tokens.jsonl").read_text().splitlines()):
            assert (row["prompt"], round(sum(row["reward"]), 5)) in worth


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        *((method, "nowhere.py:f", "there is no file 'nowhere.py'") for method in METHODS),
        ("grpo", "REWARDS:gone", "there is no 'gone' in the file, which has 'short', 'letters'"),
        ("raft", "REWARDS:letters", "asks for the column 'worth', and the columns are none"),
        ("rloo", "REWARDS:letters --rl.scorer.processes", "asks for the column 'worth', and the columns are"),
        ("ensemble", "nowhere.py:f --rl.reward-model-weight 1", "there is no file 'nowhere.py'"),
        ("ensemble", "REWARDS:short", "rl.reward_model_weight = 0.0 leaves the ensemble out"),
        ("online_dpo", "REWARDS:letters --data.prompts ASKED --reference GPT2 --rl.reward-model-weight 1",
         "data.comparisons is empty while other files are given"),
        ("rloo", "REWARDS:letters --data.prompts ASKED", "data.corpus is empty while other files"),
        ("rloo", "REWARDS:short --data.prompts ASKED --reference GPT2 --reward-model REWARD",
         "has no effect because a Python reward alone is maximised"),
        ("sentiment", "REWARDS:short --data.prompts ASKED --reference GPT2 --rl.value-from reward",
         'rl.value_from = "reward" needs a reward model'),
    ],
)  # fmt: skip
def test_a_python_reward_that_cannot_be_is_refused_before_the_run_has_a_folder(
    folders, asked, capsys, method, settings, said
):
    names = folders | {"ASKED": str(asked)}
    settings = [names.get(x, x.replace("REWARDS", REWARDS)) for x in settings.split()]
    few = ["--data.held-out", "0.3"]  # of eight prompts
    settings += few if "--data.prompts" in settings else ["--data.demonstrations", "80"]
    run = str(asked.parent / "run")
    assert launch.main([method, "--rl.reward", *settings, "--run", run]) == 1
    errors = capsys.readouterr().err.strip()
    assert said in errors and errors.count("\n") == 0
    assert not (asked.parent / "run").exists()


def test_no_text_that_is_learned_from_begins_with_a_held_out_prompt(files):
    same = str(files / "a.jsonl")
    cfg = texts.DataConfig(corpus=same, comparisons=same, prompts=same, held_out=0.2)
    read = reading.from_files(cfg, 0)
    learned = [text for _, text in read.corpus + read.corpus_held_out]
    pairs = read.pairs
    assert pairs is not None
    learned += [text for c in pairs.train for text in (c.chosen, c.rejected)]
    begins = tuple(f"{row.prompt} " for row in read.rows_held_out)
    every = [json.loads(line)["text"] for line in (files / "a.jsonl").read_text().splitlines()]
    assert any(text.startswith(begins) for text in every)  # so there was something to leave out
    assert learned and not any(text.startswith(begins) for text in learned)
    assert not {text for c in pairs.held_out for text in (c.chosen, c.rejected)} & set(learned)


def test_reward_prints_accuracy_beside_length_and_a_calibration_table(files, capsys):
    settings = ["--data.comparisons", str(files / "a.jsonl"), "--sample.length", "32"]
    settings += ["--data.prompt-length", "4"]
    assert launch.main(["reward", *SMALL, *settings, "--run", str(files / "run")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"reward accuracy, held-out pairs +0\.\d+ +0\.\d+ to [01]\.\d+", said)
    assert "length alone" in said and "the model is this sure" in said
    results = json.loads((files / "run" / "results.json").read_text())
    pairs = results["pairs"]
    assert sum(row["count"] for row in results["calibration"]) == pairs["held out"] > 0


def test_a_finished_run_opens_again_with_the_responses_that_it_had(whole):
    run = finished.opened(whole)
    rows = [row for row in run.texts.rows_held_out for _ in range(run.cfg.eval_draws)]
    key = keys.key_of(run.cfg.seed, "results")
    said = {x: run.generator.generate(run.policy(x), rows, key).texts for x in ("sft", "ppo")}
    shown = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [row["before"] for row in shown] == said["sft"]
    assert [row["after"] for row in shown] == said["ppo"]
    assert said["sft"] != said["ppo"]
    with pytest.raises(ValueError, match=r'"reward" of .* is a reward model: name a policy'):
        run.policy("reward")


def test_a_finished_run_gives_pairs_that_people_judge(whole):
    run = finished.opened(whole)
    of = lambda stages, kind, n: questions.of_policies(run, stages, run.texts.rows, kind, n, 0)
    pairs = of(["ppo", "sft"], "pair", 6)
    assert 0 < len(pairs) <= 6 and {item["prompt"] for item in pairs} <= {
        x.prompt for x in run.texts.rows
    }
    for item in pairs:
        a, b = item["responses"]
        assert a["text"] != b["text"]
        assert (a["policy"], b["policy"]) == (f"{whole}:ppo", f"{whole}:sft")
    assert of(["ppo"] * 2, "pair", 6) != pairs == of(["ppo", "sft"], "pair", 6)
    (single,) = of(["sft"], "stars", 1)
    assert (single["kind"], single["scale"], len(single["responses"])) == ("single", "stars", 1)


def test_features_of_the_responses_stand_in_the_results(whole, tmp_path, capsys, monkeypatch):
    command = [*TINY, "--run", str(tmp_path / "run"), "--text-features"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "spacy", None)
        features._pipeline.cache_clear()
        assert launch.main(command) == 1 and not (tmp_path / "run").exists()
        assert "with the extra rlhf_jax[spacy]" in capsys.readouterr().err
    pytest.importorskip("spacy")
    assert launch.main([*command, "--start-from", str(whole)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    shown = [
        json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    ]
    for name, fn in features.REWARDS.items():
        for side in ("before", "after"):
            mean = np.mean(fn((), [row[side] for row in shown]))
            assert results[name][side]["mean"] == pytest.approx(mean)


def test_what_wants_a_gpu_is_refused_before_the_run_has_a_folder(tmp_path, capsys):
    command = [*TINY, "--model.attention", "cudnn", "--model.dtype", "bfloat16"]
    assert launch.main([*command, "--run", str(tmp_path / "run")]) == 1
    assert 'model.attention = "cudnn" needs an NVIDIA GPU' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # where the same command with "xla" would be refused


def test_what_is_not_installed_is_refused_before_the_run_has_a_folder(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for command in (TINY, ["game"]):
        assert launch.main([*command, "--wandb", "--run", str(tmp_path / "run")]) == 1
        assert 'pip install "rlhf_jax[wandb]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--data.corpus", "none.jsonl"],
         "data.comparisons and data.prompts are empty while other files are given"),
        (["--data.corpus", "none.jsonl", "--data.comparisons", "A", "--data.prompts", "A"],
         "no such file: 'none.jsonl'"),
        (["--data.corpus", "A", "--data.comparisons", "BAD", "--data.prompts", "A"],
         r"bad.jsonl:2: .*'responses'"),
        (["--rl.batch-size", "12", "--devices", "mesh"], "rl.batch_size = 12 does not divide over 8"),
        (["--rl.batch-size", "24", "--devices", "mesh", "--ppo.minibatches", "6"],
         "rl.batch_size / ppo.minibatches = 4 does not divide over 8 devices: use 8"),
        (["--ppo.minibatches", "3"], "ppo.minibatches = 3 does not divide rl.batch_size = 8"),
        (["--pretrained", "GPT2", "--sample.length", "60"], "= 60 do not fit the model's 64 positions"),
        (["--pretrained", "GPT2", "--reference", "GPT2"], "are both given"),
        (["--pretrained", "GPT2", "--tokenizer", "WORDS"],
         r"has token \d+, and the embedding of .* ends at 299"),
        (["--reward-model", "GPT2"], "reward_model = .*for sequence classification"),
        (["--pretrained", "REWARD"], "is a reward model, not a policy"),
        (["--reward-model", "REWARD"], "has another tokenizer than the policy: .* rl.reward"),
        (["--lora.rank", "2", "--lora.matrices", "gate"], 'lora.matrices has "gate"'),
        (["--ppo.microbatches", "3"], "ppo.microbatches = 3 does not divide rl.batch_size / ppo.minib"),
        (["--rl.best", "ppo/los"], 'rl.best = "ppo/los" is no metric of ppo: did you mean ppo/loss'),
        (["--rl.kl-target", "6", "--rl.kl-horizon", "1"], "rl.kl_horizon = 1.0 .* must be above 1.6"),
        (["--rl.kl-target", "6", "--rl.kl-coef", "0"], "rl.kl_target = 6.0 cannot adapt rl.kl_coef = 0"),
        (["--pretrained", "GPT2", "--model.d-model", "8"], "model.d_model = 8 has no effect because"),
        (["--pretrained", "GPT2", "--sample.stop", "999"], "sample.stop = .* has an id beyond the tokenizer"),
        (["--reference", "GPT2", "--sft.steps", "9"], "sft.steps = 9 has no effect because a reference"),
        (["--devices", "moon"], 'devices = "moon"'),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_sentence_before_any_training(
    files, folders, capsys, settings, words
):
    (files / "bad.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{"text": "c"}\n')
    names = folders | {"A": str(files / "a.jsonl"), "BAD": str(files / "bad.jsonl")}
    settings = [names.get(x, x) for x in settings]
    given = set(settings)
    tiny = WITH_MODEL if "--pretrained" in given else TINY
    tiny = WITH_REFERENCE if "--reference" in given else tiny
    tiny = WITH_FILES if "--data.corpus" in given else tiny
    assert launch.main([*tiny, "--run", str(files / "run"), *settings]) == 1
    said = capsys.readouterr().err.strip()
    assert re.search(words, said) and said.count("\n") == 0
    assert not (files / "run" / "stages").exists()


PAIR = lambda i: {"prompt": f"p{i}", "chosen": f"{i} a", "rejected": "b"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pairs": 1},
         "data.pairs = 1 by data.held_out: all 1 rows, of 1 different prompts, fall on one side"),
        ({"comparisons": [PAIR(0), PAIR(1)] * 3},
         "data.comparisons by data.held_out: all 6 rows, of 2 different prompts, fall on one side"),
        ({"comparisons": [PAIR(0), PAIR(2)]},  # the second is held out
         "the halves of data.comparisons, for the reward model and for the held-out one: all 1 rows"),
        ({"comparisons": [PAIR(0) | {"preference": "tie", "responses": ["a", "b"]}]},
         "all 1 preferences are ties"),
        ({"prompts": [{"prompt": "p", "n": 1}, {"prompt": "p", "n": 2}]},
         "data.prompts by data.held_out: all 2 rows, of 1 different prompts, fall on one side"),
        ({"prompts": [{"prompt": "p"}, {"prompt": ""}]}, r"prompts\.jsonl:2: the prompt is empty"),
        ({"corpus": [{"prompt": "p2", "response": "r"}]}, "data.corpus: all rows answer or repeat"),
        ({"corpus": [{"prompt": "p0", "response": "r"}]}, "data.corpus by data.held_out: all 1 rows"),
        ({"corpus": [{"text": " "}]}, r"corpus\.jsonl:1: the text is blank"),
    ],
)  # fmt: skip
def test_files_of_too_little_are_refused_as_they_are_read(tmp_path, given, words):
    files = {
        "corpus": [{"prompt": f"p{i}", "response": "r"} for i in range(40)],
        "comparisons": [PAIR(i) for i in range(40)],
        "prompts": [{"prompt": f"p{i}"} for i in range(40)],
    }
    names = {}
    for name, lines in (files | given).items() if "pairs" not in given else ():
        names[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    cfg = texts.DataConfig(**(names or given), demonstrations=10)
    task = None if names else reviews.TASK
    with pytest.raises(ValueError, match=words) as caught:
        reading.read(cfg, task, 0, dialogues.NO_TEMPLATE, texts.ALL)
    assert "\n" not in str(caught.value)


def test_fields_of_files_that_are_not_given_are_refused():
    for kind, fields in (
        ("corpus", "corpus_fields"),
        ("comparisons", "fields"),
        ("prompts", "prompts_fields"),
    ):
        named = dataclasses.replace(getattr(texts.DataConfig(), fields), prompt="question")
        cfg = texts.DataConfig(**{fields: named})
        with pytest.raises(
            ValueError, match=f"data.{fields} names fields of files, and data.{kind} is empty"
        ):
            reading.read(cfg, reviews.TASK, 0, dialogues.NO_TEMPLATE, texts.ALL)
