"""The labelling page stands apart from JAX, takes of rlhf_jax the people alone, and has floors of its own."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MAY = {
    "settings": set(),
    "store": {"settings", "store"},
    "formats": {"settings", "store", "formats"},
    "entry": {"settings", "store", "entry"},
    "web": {"settings", "store", "formats", "entry", "web"},
    "commands": {"settings", "store", "formats", "entry", "web"},
    "command_line": {"settings", "store", "formats", "entry", "web", "commands"},
    "__main__": {"command_line"},
}
"""What each folder, and each file beside the folders, may import of the package."""


def imported(path: pathlib.Path) -> set[str]:
    """The dotted names that a file imports, `from a import b` as a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_all_of_the_page_runs_without_jax():
    program = """if True:
        import importlib, pkgutil, sys
        import feedback
        for module in pkgutil.walk_packages(feedback.__path__, "feedback."):
            if not module.name.endswith("__main__") and ".migrations" not in module.name:
                importlib.import_module(module.name)
        print("rlhf_jax.people.summary" in sys.modules)  # which it imports where a page asks for it
        import rlhf_jax.people.summary
        others = {"jax", "jaxlib", "flax", "transformers"}
        print(*(others & {*sys.modules}), "feedback.web.app" in sys.modules)
    """
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.split() == ["False", "True"]


def test_the_library_never_imports_the_page():
    files = [*(ROOT / "rlhf_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    assert len(files) > 100
    assert not [
        path for path in files if any(x.split(".")[0] == "feedback" for x in imported(path))
    ]


def test_of_the_library_it_takes_the_people_alone():
    files = (ROOT / "feedback").rglob("*.py")
    found = {x for path in files for x in imported(path) if x.split(".")[0] == "rlhf_jax"}
    assert found == {"rlhf_jax.people.summary", "rlhf_jax.people.aggregation"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "feedback").rglob("*.py")), ids=lambda x: str(x.relative_to(ROOT))
)
def test_imports_point_down(path):
    floor = path.relative_to(ROOT / "feedback").parts[0].removesuffix(".py")
    found = {x.split(".")[1] for x in imported(path) if x.startswith("feedback.")}
    assert found <= MAY.get(floor, set())
