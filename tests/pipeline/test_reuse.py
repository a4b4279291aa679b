"""The shared stages of another run are taken where they would end alike, and refused by name elsewhere."""

import dataclasses
import json

import pytest

import launch
from rlhf_jax.pipeline import reuse, rl_settings
from rlhf_jax.pipeline.settings import RunConfig
from rlhf_jax.runs import command_line, disk, identity, run

FILES = "--data.corpus c.jsonl --data.comparisons p.jsonl --data.prompts q.jsonl "
ALONE = "--data.corpus c.jsonl --data.prompts q.jsonl --rl.reward r.py:score "


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """`begun(settings, **more)`: a run of these settings whose SFT is finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reuse.inputs, "content", lambda cfg: {})

    def begin(settings, **more):
        start = run.open_run("sentiment", of(settings), str(tmp_path / "start"))
        for stage in reuse.STAGES:
            disk.write_json(start / "stages" / stage / "done.json", {"iterations": 1})
        for name, content in more.items():
            disk.write_json(start / f"{name}.json", content)
        return start

    return begin


def of(settings, name="sentiment"):
    default = launch.load(name).config
    return command_line.parse(type(default), settings.split(), prog=name, default=default)


FREE = [  # (both, there, here)
    ("", "", "--rl.seed 3"),
    ("", "", "--rl.iterations 7 --rl.optimizer.lr 1 --ppo.epochs 1 --eval-draws 1"),
    ("", "--sample.slots 8", "--sample.buckets 2"),
    ("", "--model.remat", ""),
    ("", "--model.scan-decode", ""),
    ("--model.dtype bfloat16", "", "--model.attention cudnn"),
    ("", "--devices device", "--devices mesh"),
    ("", "--sft.microbatches 2", "--reward.microbatches 4 --reward.save-every 7"),
    ("", "", "--reward-model m"),
    ("", "--policy p", "--policy q"),
    ("", "", "--model.context 128"),
    ("--tokenizer t", "", ""),
    (FILES, "", "--sample.temperature 0.7 --sample.stop 3"),
    (ALONE, "", "--lora.rank 4 --lora.alpha 8"),
    (ALONE + "--reference m ", "", "--lora.rank 4"),
    (FILES + "--reference m ", "", "--sample.temperature 0.7"),
    (FILES + "--data.prompt-length 9 --sample.length 9 ", "--model.context 64", "--reward-model m"),
]
REFUSED = [  # (both, there, here, the setting that is named)
    ("", "", "--seed 1", "seed is 0 there and 1 here"),
    ("", "", "--task translate", "task is '' there and 'translate' here"),
    ("", "", "--sample.temperature 0.7", "sample.temperature is 1.0 there and 0.7 here"),
    ("", "", "--sample.length 30", "sample.length"),
    ("", "--annotators.noise 0", "", "annotators.noise is 0.0 there"),
    ("", "", "--data.pairs 7", "data.pairs"),
    ("", "", "--data.vocab-size 300", "data.vocab_size"),
    ("", "", "--lora.rank 4", "lora.rank is 0 there and 4 here"),
    ("--lora.rank 4 ", "", "--lora.alpha 8", "lora.alpha"),
    ("", "", "--model.layers 3", "model.layers"),
    ("", "", "--model.dtype bfloat16", "model.dtype"),
    ("", "", "--sft.steps 7", "sft.steps"),
    ("", "", "--sft.optimizer.lr 1", "sft.optimizer.lr"),
    ("", "", "--reward.epochs 1", "reward.epochs"),
    ("", "", "--reward.loss.centring 1", "reward.loss.centring"),
    ("", "", "--tokenizer t", "tokenizer is '' there and 't' here"),
    ("--model.positions learned ", "", "--model.context 128", "model.context"),
    ("", "", FILES, "data.corpus is '' there"),
    (FILES, "", "--data.held-out 0.2", "data.held_out"),
    (FILES, "", "--sample.length 30", "sample.length is 0 there and 30 here"),
    (FILES, "", "--reward-model m", "reward_model"),
    (FILES, "", "--model.context 128", "model.context"),
    (FILES, "", "--lora.rank 4", "lora.rank"),
    (FILES, "", "--reference m", "reference"),
    (ALONE + "--pretrained m ", "", "--lora.rank 4", "lora.rank"),
    (ALONE, "", "--data.comparisons p.jsonl", "data.comparisons"),
]


@pytest.mark.parametrize(("both", "there", "here"), FREE)
def test_stages_are_taken_where_no_setting_that_differs_decides_them(begun, both, there, here):
    start = begun(f"{both} {there}")
    reuse.check(start, of(f"{both} {here}"), RunConfig())


@pytest.mark.parametrize(("both", "there", "here", "named"), REFUSED)
def test_stages_of_other_settings_are_refused_by_name(begun, both, there, here, named):
    start = begun(f"{both} {there}")
    with pytest.raises(ValueError, match=rf"other settings \(.*{named}.*\): give the same, or"):
        reuse.check(start, of(f"{both} {here}"), RunConfig())


def test_another_method_takes_them(begun):
    start = begun("--sft.steps 7")
    for name in ("grpo", "dpo", "best_of_n", "ilql", "raft"):
        reuse.check(start, of("--sft.steps 7", name), RunConfig())


def test_the_task_that_an_application_sets_is_free_where_files_are_given(begun):
    reuse.check(begun(FILES), of(FILES + "--reward.epochs 2", "translate"), RunConfig())


@pytest.mark.parametrize("cut", [False, True])
def test_longer_lengths_take_them_where_none_of_the_files_was_cut(begun, cut):
    lines = ["lengths that hold the data: ...", "data.prompts: none of 40 prompts is cut"]
    lines += ["data.corpus: 3 of 40 answers are cut to 20 tokens (...)"] if cut else []
    start = begun(FILES, lengths={"lengths": [10, 20], "context": 64, "lines": lines})
    longer = FILES + "--data.prompt-length 16 --sample.length 40"
    named = r"data.prompt_length is 0 there and 16 here, .*sample.length is 0"
    for settings in (f"{longer} --model.context 56", longer):
        if cut:
            with pytest.raises(ValueError, match=named):
                reuse.check(start, of(settings), RunConfig())
        else:
            reuse.check(start, of(settings), RunConfig())
    for shorter in ("--data.prompt-length 16 --sample.length 19", "--sample.length 40"):
        with pytest.raises(ValueError, match=r"sample.length is 0"):
            reuse.check(start, of(FILES + shorter), RunConfig())
    folder = run.open_run("sentiment", of(longer), "longer")
    reuse.copy(start, folder, of(longer))
    assert not (folder / "lengths.json").exists()  # it tells of other lengths
    folder = run.open_run("sentiment", of(FILES + "--rl.seed 1"), "equal")
    reuse.copy(start, folder, of(longer))
    assert (folder / "lengths.json").exists()


def test_a_setting_that_a_run_is_older_than_stood_at_its_default(begun):
    cfg = rl_settings.PPORun()
    start = begun("")
    config = json.loads((start / "config.json").read_text())
    del config["settings"]["model"]["window"], config["settings"]["model"]["rope_scaling"]
    disk.write_json(start / "config.json", config)
    reuse.check(start, cfg, RunConfig())
    other = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, window=8))
    with pytest.raises(ValueError, match=r"settings \(model.window is 0 there and 8 here\)"):
        reuse.check(start, other, RunConfig())
    for stage in reuse.STAGES:
        (start / "stages" / stage / "done.json").unlink()
    with pytest.raises(ValueError, match="has finished none of the shared stages"):
        reuse.check(start, cfg, RunConfig())


def test_every_setting_of_the_shared_stages_is_known():
    """What is added to a part is refused until it is shown to be free."""
    settings = identity.flat(disk.plain(RunConfig()))
    for name in (*reuse.COMPUTED, *reuse.DECIDED, *reuse.LENGTHS):
        assert name in settings
    others = {n.partition(".")[0] for n in settings} - set(reuse.PARTS)
    assert others == {
        "run",
        "start_from",
        "devices",
        "wandb",
        "profile",
        "policy",
        "rollout",
        "eval_draws",
        "text_features",
    }
