"""Docstrings stand alone: `--help` prints each setting's by itself, and readers open one function."""

import ast
import pathlib
import re

import pytest

from rlhf_jax import launcher
from rlhf_jax.runs import command_line, submit

ROOT = pathlib.Path(__file__).parent.parent
NAMES = [*launcher.experiments(launcher.EXPERIMENTS)]
HEADS = (
    *("Of", "What", "The same", "Whether", "And", "That", "Those", "Where it", "Whose"),
    *("It", "Its", "They"),
)
"""Words that make a riddle, or that lean on a sentence elsewhere."""
ELSEWHERE = r"\b(the former|the latter|likewise|as before|(?:above|below)(?! \d))\b"
"""Pointers into other docstrings; a comparison with a number is none."""


def head_of(said: str) -> str:
    """The head of a docstring that leans on something else; empty where it has none."""
    found = re.match(rf"({'|'.join(HEADS)})\b", said, flags=re.IGNORECASE)
    return found[0] if found else ""


def complaint(said: str) -> str:
    """The first fault of a setting's docstring; empty where it has none."""
    if not said:
        return "has no docstring"
    if not re.match(r'[A-Z0-9`"]', said):
        return "does not begin with a capital letter"
    if not said.endswith("."):
        return "does not end with a full stop"
    if head := head_of(said):
        return f"begins with {head!r}"
    if pointer := re.search(ELSEWHERE, said, flags=re.IGNORECASE):
        return f"points elsewhere: {pointer[0]!r}"
    return ""


def headings(tree: ast.Module):
    """(line, docstring) of a file, and of its public classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if getattr(node, "name", "").startswith("_"):
                continue
            yield getattr(node, "lineno", 1), ast.get_docstring(node) or ""


def trees():
    """(name, tree of settings) of all that has a `--help`."""
    yield from ((name, launcher.load(name).config) for name in NAMES)
    yield from ((f"--on {name}", kind()) for name, kind in submit.KINDS.items())


def test_every_setting_has_a_sentence_that_stands_alone():
    found = [(name, x) for name, tree in trees() for x in command_line.settings(type(tree), tree)]
    assert {"--on slurm", "sentiment", "export"} <= {name for name, _ in found}
    assert len({x.name for _, x in found}) > 150
    bad = {f"--{x.name}: {fault}" for _, x in found if (fault := complaint(x.about))}
    bad |= {f"{x.part}: {fault}" for _, x in found if x.part and (fault := complaint(x.part_about))}
    assert sorted(bad) == []


TOPS = (".", "rlhf_jax")
FOLDERS = [
    f"{top}/{path.name}"
    for top in ("rlhf_jax", "experiments")
    for path in sorted((ROOT / top).iterdir())
    if (path / "__init__.py").exists()
]


@pytest.mark.parametrize("folder", [*TOPS, *FOLDERS])
def test_no_docstring_begins_with_a_riddle(folder):
    files = sorted((ROOT / folder).glob("*.py" if folder in TOPS else "**/*.py"))
    assert files
    bad = [
        f"{path.relative_to(ROOT)}:{line} begins with {head!r}"
        for path in files
        for line, said in headings(ast.parse(path.read_text(encoding="utf-8")))
        if (head := head_of(said))
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "has no docstring"),
        ("slope of the logit.", "does not begin with a capital letter"),
        ("Slope of the logit", "does not end with a full stop"),
        ("Discount (1: Ziegler et al., 2019)", "does not end with a full stop"),
        (
            "Weight of the loss, with the coefficient of the field above.",
            "points elsewhere: 'above'",
        ),
        ("Weight of the loss; see below.", "points elsewhere: 'below'"),
        ("Weight of the latter.", "points elsewhere: 'the latter'"),
        ("Likewise the weight.", "points elsewhere: 'Likewise'"),
        ("Weight of the loss, likewise a float.", "points elsewhere: 'likewise'"),
        *((f"{head} something or other.", f"begins with {head!r}") for head in HEADS),
    ],
)
def test_a_planted_fault_is_found(said, fault):
    assert complaint(said) == fault


@pytest.mark.parametrize(
    "said",
    [
        "Discount factor (1: Ziegler et al., 2019).",
        "Values below 1 are clipped.",
        "Offset of the mean.",
        "Items per batch; 0: all.",
        "Whatever remains.",
    ],
)
def test_plain_words_are_left_alone(said):
    assert complaint(said) == ""


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "code", ['"""{}."""', 'class A:\n    """{}."""', 'def f():\n    """{}."""']
)
def test_a_planted_riddle_is_found_in_files_classes_and_functions(head, code):
    said = [said for _, said in headings(ast.parse(code.format(f"{head} the rows")))]
    assert [head_of(x) for x in said if x] == [head]


def test_private_functions_may_speak_as_they_like():
    assert [*headings(ast.parse('def _f():\n    """Of the rows."""'))] == [(1, "")]
