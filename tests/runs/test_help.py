"""What --help says: the settings that people change, all of them, and what takes the place of TRL's names."""

import dataclasses
import re
import warnings

import pytest
import tyro

import launch
from rlhf_jax.runs import command_line

NAMES = [*launch.experiments(launch.EXPERIMENTS)]
MAIN = """seed run start-from devices reference reward-model data.corpus data.comparisons data.prompts
    data.prompt-length model.d-model model.layers model.dtype lora.rank sft.steps sft.batch-size
    sft.optimizer.lr reward.epochs reward.optimizer.lr sample.length sample.temperature rl.iterations
    rl.batch-size rl.kl-coef rl.optimizer.lr rl.reward ppo.epochs eval-draws"""


@pytest.fixture
def said(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def said(*args):
        with pytest.raises(SystemExit) as stopped:
            launch.main([*args])
        assert stopped.value.code == (0 if args[-1].startswith("--help") else 2)
        out, err = capsys.readouterr()
        return out or err

    return said


def test_help_is_the_settings_that_people_change_and_says_how_to_see_the_rest(said):
    out = said("sentiment", "--help")
    assert out.count("\n") < 100 and max(map(len, out.splitlines())) <= 110
    for name in MAIN.split():
        assert f"\n  --{name} " in out
    assert "--ppo.gamma" not in out
    shown = len(re.findall("^  --", out, flags=re.MULTILINE))
    assert 25 <= shown <= 36
    everything = said("sentiment", "--help-all")
    assert everything.count("\n") < 330
    rest = len(re.findall("^  --", everything, flags=re.MULTILINE)) - shown
    assert f"python launch.py sentiment --help-all shows {rest} more settings.\n" in out
    assert "\n  --rl.optimizer.lr FLOAT > 0 (0.0005)" in everything and "\nrl: " in everything


@pytest.mark.parametrize("name", NAMES)
def test_help_has_every_flag_that_is_parsed_its_value_and_a_sentence(name):
    default = launch.load(name).config
    found = [*command_line.settings(type(default), default)]
    with warnings.catch_warnings(action="ignore"):
        parser = tyro.extras.get_parser(type(default), default=default)
    taken = {flag for action in parser._actions for flag in action.option_strings}
    flags = {flag for x in found for flag in x.flags}
    hidden = {"--model.vocab-size", "--sample.top-k", "--model.rope-scaling.factor"}
    assert flags < taken and not flags & hidden
    assert all(x.about and x.value for x in found)
    assert 0 < sum(x.main for x in found) < 45 or name == "export"


@pytest.mark.parametrize("name", NAMES)
def test_every_main_setting_is_a_field(name):
    def check(value):
        fields = {x.name for x in dataclasses.fields(value)}
        for cls in type(value).__mro__:
            assert {*vars(cls).get("_main", ())} <= fields
        for field in fields:
            if dataclasses.is_dataclass(inner := getattr(value, field)):
                check(inner)

    check(launch.load(name).config)


@pytest.mark.parametrize(
    ("name", "word", "use"),
    [
        (
            "rloo",
            "--learning-rate=1e-5",
            "--rl.optimizer.lr or --reward.optimizer.lr or --sft.optimizer",
        ),
        ("dpo", "--learning_rate", "--dpo.optimizer.lr or"),
        ("dpo", "--beta", "--preference.beta (Weight of the implied KL"),
        ("rloo", "--beta", "--rl.kl-coef (Weight of the KL penalty"),
        ("grpo", "--num-generations", "--pg.group (Draws of one prompt"),
        ("raft", "--num-generations", "--raft.draws (Draws of each prompt"),
        ("rloo", "--per-device-train-batch-size", "--rl.batch-size or"),
        ("rloo", "--max-steps", "--rl.iterations or --sft.steps"),
        ("dpo", "--num-train-epochs", "--dpo.epochs or --reward.epochs"),
        ("rloo", "--max-completion-length", "--sample.length (Most tokens"),
        ("rloo", "--max-prompt-length", "--data.prompt-length (Columns of a prompt"),
        ("rloo", "--output-dir", "--run (Run directory"),
        ("rloo", "--report-to", "--wandb (Log to Weights & Biases"),
        ("rloo", "--temperature", "--sample.temperature ("),
        ("rloo", "--model.layer", "--model.layers or"),
        ("rloo", "--model", "--pretrained or --reference"),
        ("raft", "--rl.value", ""),
        ("sentiment", "--rl.refill", ""),
        ("rloo", "--sample.pad", ""),
        ("rloo", "--sample.top-k", ""),
        ("rloo", "--model.vocab-size", "--data.vocab-size"),
    ],
)
def test_a_name_of_trls_or_a_misspelt_one_answers_with_ours_in_one_line(said, name, word, use):
    err = said(name, word, "1")
    option = word.partition("=")[0]
    assert err.startswith(
        f"error: there is no setting {option} here" + f": use {use}" * bool(use)
    ), err
    assert err.count("\n") == 1 and err.endswith(f"; python launch.py {name} --help explains\n")


def test_the_pretrained_model_is_found_by_trls_name(said):
    err = said("rloo", "--model-name-or-path", "gpt2")
    assert (
        re.search(r"here: use --(reference or --)?(model|pretrained)\b", err)
        and "--reference" in err
    )


def test_every_name_of_trls_leads_to_a_setting_of_some_experiment():
    trees = [launch.load(name).config for name in NAMES]
    trees = [[*command_line.settings(type(x), x)] for x in trees]
    for name in command_line.TRL:
        own = f"--{name}" in {f"--{x.name}" for tree in trees for x in tree}
        assert own or any(
            ": use --" in (command_line.misnamed(f"--{name}", tree) or "") for tree in trees
        )


def test_words_that_do_not_look_like_a_setting_are_left_to_the_parser(said):
    assert "there is no setting --zebra-crossing here; python" in said("rloo", "--zebra-crossing")
    assert "seven" in said("rloo", "--seed", "seven")
