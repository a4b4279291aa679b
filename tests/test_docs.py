"""README and docs/ name what is there: files, tests, experiments and settings."""

import pathlib
import re
import shlex

import pytest

from rlhf_jax import launcher
from rlhf_jax.devices import process
from rlhf_jax.runs import command_line
from rlhf_jax.sweeps import grid

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "examples/recipes/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def commands(text: str):
    """The launcher's commands in fenced blocks, as words without comments."""
    for block in re.findall(r"^ *```bash\n(.*?)```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:python launch\.py|^rlhf-jax) (.*)", line)
            if found:
                yield shlex.split(found[1].partition("&&")[0], comments=True)


def refused(words: list[str]) -> str | None:
    """The first word that the launcher would refuse; None where there is none."""
    known = launcher.experiments(launcher.EXPERIMENTS)
    words, _ = process.cut_plan(words)
    name, *settings = launcher.cut_at(launcher.cut_at(words, "--on")[0], "--distributed")[0] or [
        "--help"
    ]
    if name == "new" or name.endswith(".py"):
        return None
    if is_grid := name == "sweep":
        name, *settings = settings
    if name == "--help":
        return None
    name = name.replace("-", "_") if name not in known else name
    if name not in known:
        return name
    cfg = launcher.load(name).config
    found = [*command_line.settings(type(cfg), cfg)]
    if is_grid or "--seeds" in settings:
        found += grid.OWN
    options = [x.partition("=")[0] for x in settings]
    options = [x for x in options if x not in ("--help", "--help-all", "--config")]
    return next((x for x in options if command_line.misnamed(x, found)), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page):
    text = page.read_text()
    for title, target in re.findall(r"\[([^\]]*)\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
        if title.startswith("`test_"):
            assert f"def {title.strip('`')}(" in (page.parent / target).read_text(), title
    for words in commands(text):
        assert refused(words) is None, " ".join(words)


def test_the_afternoon_path_is_one():
    listed = (ROOT / "docs" / "design.md").read_text().partition("**The afternoon path**")[2]
    application, *rest = listed.split("```")[1].strip().splitlines()
    paths = [ROOT / application]
    for folder, *names in map(str.split, rest):
        paths += [ROOT / folder / f"{name}.py" for name in names]
    assert sum(len(path.read_text().splitlines()) for path in paths) < 5500


def test_a_setting_that_is_not_there_is_found():
    text = "```bash\npython launch.py rloo --rl.kl-coef 1 \\\n  --rl.zebra 2  # --rl.no\n```"
    assert [refused(words) for words in commands(text)] == ["--rl.zebra"]
    assert refused(["nowhere"]) == "nowhere"


def test_the_script_of_the_readme_runs_as_it_stands_and_learns(capsys):
    (script,) = re.findall(r"^```python\n(.*?)```", PAGES[0].read_text(), flags=re.M | re.S)
    exec(compile(script.replace("range(41)", "range(21)"), "README.md", "exec"), {})
    scores = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 21 and scores[0] < 2 < 6 < scores[-1]
