"""Settings from a file: the config.json of a run, or a file of one's own in YAML or JSON.

    --config runs/rloo/1f0c5a77b2/config.json --rl.kl-coef 0.02
    --config mine.yaml

The file nests settings as their dotted names do, `rl: {kl-coef: 0.02}`, or holds the names themselves. It
stands for the command line of its values, so each is checked as if it were typed, and what is typed comes
after it.
"""

import json
import pathlib
from typing import Any

import yaml

from rlhf_jax.devices.process import cut_at
from rlhf_jax.runs.disk import plain
from rlhf_jax.runs.identity import current, flat

OPTION = "--config"


def expanded(args: list[str], default: Any) -> list[str]:
    """`args` with the settings of the file that they name, where these differ from `default`'s, in front.

    Raises ValueError for a file that cannot be read, or is no tree of settings.
    """
    before, file, after = cut_at(args, OPTION)
    if file is None:
        return args
    if cut_at(after, OPTION)[1] is not None:
        raise ValueError(f"{OPTION} is given twice: name one file")
    if not file:
        raise ValueError(f"{OPTION} names no file: give a config.json of a run, or a YAML file")
    known = {written(name): value for name, value in flat(plain(default)).items()}
    words = []
    for setting, value in read(pathlib.Path(file)).items():
        if setting not in known or known[setting] != value:
            words += words_of(setting, value)
    return words + before + after


def read(file: pathlib.Path) -> dict[str, Any]:
    """The settings of a file by their dotted names; those of a run's config.json without its folder.

    Raises ValueError for a file that cannot be read, or is no tree of settings.
    """
    if not file.is_file():
        raise ValueError(f"config = {file} is no file: name a config.json of a run, or a YAML file")
    try:
        text = file.read_text(encoding="utf-8")
        try:
            tree = json.loads(text)
        except ValueError:  # to YAML, 1e-05 is a text
            tree = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"config = {file} is neither YAML nor JSON: {said}") from None
    if isinstance(tree, dict) and {"experiment", "settings"} <= tree.keys():  # of a run
        tree = {name: value for name, value in current(tree["settings"]).items() if name != "run"}
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"config = {file} holds no settings: write a line NAME: VALUE for each")
    found = {}
    for name, value in flat(named(tree)).items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(x, dict | list) for x in parts):
            raise ValueError(
                f"config = {file}: {name} is {value!r:.80}, and must be a value or a list"
            )
        found[written(name)] = value
    return found


def named(tree: dict) -> dict[str, Any]:
    """The tree with texts as names."""
    return {str(k): named(v) if isinstance(v, dict) else v for k, v in tree.items()}


def written(name: str) -> str:
    """A setting's dotted name as on the command line."""
    return name.replace("_", "-")


def words_of(setting: str, value: Any) -> list[str]:
    """The words of the command line that give a setting a value."""
    if isinstance(value, bool):
        head, dot, last = setting.rpartition(".")
        return [f"--{setting}" if value else f"--{head}{dot}no-{last}"]
    if isinstance(value, list):
        return [f"--{setting}", *map(str, value)]
    return [f"--{setting}={value}"]
