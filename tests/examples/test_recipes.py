"""Recipes of published runs: their settings exist and fit each other, though no hub is reached here."""

import pathlib
import re
import shlex

import pytest

from rlhf_jax import launcher
from rlhf_jax.pipeline import reading
from rlhf_jax.runs import command_line

FOLDER = pathlib.Path(__file__).parent.parent.parent / "examples" / "recipes"


def command(text: str) -> list[str]:
    """The words after `launch.py` of a script's only command."""
    lines = re.sub(r"\\\n", " ", text).replace('"$MODEL"', "MODEL").replace('"$@"', "")
    (line,) = [x for x in lines.splitlines() if "python launch.py" in x]
    return shlex.split(line.partition("launch.py")[2])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.stem)
def test_a_recipe_names_settings_that_exist_and_that_its_experiment_reads(path):
    text = path.read_text()
    assert "NOT RUN HERE" in " ".join(text.replace("#", " ").split())
    name, *settings = command(text)
    exp = launcher.load(name)
    cfg = command_line.parse(type(exp.config), settings, prog=name, default=exp.config)
    assert cfg != exp.config
    reading.check_files(cfg.data, cfg.needs())


def test_the_five_applications_have_one_each_and_the_page_lists_them():
    scripts = {path.name for path in FOLDER.glob("*.sh")}
    assert len(scripts) == 5
    listed = re.findall(r"^\| \[`(\w+\.sh)`\]", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(scripts)


def test_a_recipe_with_a_setting_that_is_unknown_fails(capsys):
    text = "exec python launch.py ppo --sft.stepz 3"
    name, *settings = command(text)
    exp = launcher.load(name)
    with pytest.raises(SystemExit):
        command_line.parse(type(exp.config), settings, prog=name, default=exp.config)
    assert "stepz" in capsys.readouterr().err
