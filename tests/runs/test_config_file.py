"""Settings from a file are the command line of its values: typed ones come after, wrong ones are refused."""

import json
from dataclasses import replace

import pytest

import launch
from rlhf_jax.runs import command_line, disk

DEFAULT = launch.load("rloo").config


def parsed(*args):
    return command_line.parse(type(DEFAULT), [*args], prog="rloo", default=DEFAULT)


def write(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


def test_names_may_be_nested_or_dotted_and_what_is_typed_comes_after(tmp_path):
    file = write(
        tmp_path, "seed: 3\nrl: {kl-coef: 0.02, batch_size: 32}\nsft.steps: 7\nwandb: true\n"
    )
    found = parsed("--config", file)
    assert (found.seed, found.rl.kl_coef, found.rl.batch_size) == (3, 0.02, 32)
    assert (found.sft.steps, found.wandb) == (7, True)
    found = parsed("--rl.kl-coef", "0.5", f"--config={file}", "--no-wandb")
    assert (found.seed, found.rl.kl_coef, found.wandb) == (3, 0.5, False)
    assert parsed("--config", write(tmp_path, "# nothing yet\n")) == DEFAULT


def test_a_runs_config_is_such_a_file_and_its_folder_stays_its_own(tmp_path):
    used = replace(DEFAULT, seed=5, run="runs/there", sft=replace(DEFAULT.sft, steps=9))
    used = replace(used, rl=replace(used.rl, kl_coef=1e-4))
    record = {"experiment": "rloo", "settings": disk.plain(used), "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert parsed("--config", str(tmp_path / "config.json")) == replace(used, run=DEFAULT.run)


def test_lists_and_numbers_in_any_notation_are_read_as_they_are_typed(tmp_path):
    config = launch.load("compare").config
    file = write(tmp_path, "methods: [ppo, dpo]\nlrs: [1e-4, 3.0e-4]\nseeds: 4\n")
    args = {"prog": "compare", "default": config}
    found = command_line.parse(type(config), ["--config", file], **args)
    assert (found.methods, found.lrs, found.seeds) == (("ppo", "dpo"), (1e-4, 3e-4), 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rl: {kl-coef: -1}", r"rl\.kl_coef = -1"),
        ("- 1\n- 2", "holds no settings"),
        ("rl: {kl-coef: [{a: 1}]}", "rl.kl-coef is"),
        ("a: b: c", "is neither YAML nor JSON"),
        ("rl: {reward-model-weight: 0.5}", "has no effect"),
    ],
)
def test_what_no_command_line_could_say_is_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        parsed("--config", write(tmp_path, text))


def test_unknown_settings_are_refused_by_their_names(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parsed("--config", write(tmp_path, "ppo: {gamma: 0.9}\n"))
    assert stopped.value.code == 2
    assert "there is no setting --ppo.gamma here" in capsys.readouterr().err


def test_a_file_that_is_missing_or_named_twice_is_refused(tmp_path):
    file = write(tmp_path, "seed: 1")
    with pytest.raises(ValueError, match="nowhere is no file"):
        parsed("--config", "nowhere")
    with pytest.raises(ValueError, match="names no file"):
        parsed("--config", "--seed", "1")
    with pytest.raises(ValueError, match="given twice"):
        parsed("--config", file, f"--config={file}")
