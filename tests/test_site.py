"""The site of the documentation is built without a warning, and shows every public module."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import rlhf_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
MISSING = [x for x in ("mkdocs", "mkdocstrings_handlers") if not importlib.util.find_spec(x)]


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()


def nav():
    """Every page that mkdocs.yml lists."""
    listed, pages = [yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]], []
    for x in listed:
        if isinstance(x, str):
            pages.append(x)
        else:
            listed += x if isinstance(x, list) else x.values()
    return pages


def test_every_page_and_every_folder_is_listed_once():
    own = [path.name for path in (ROOT / "docs").glob("*.md")]
    api = [f"api/{folder}.md" for folder in HOOKS.modules()]
    assert sorted(nav()) == sorted([*own, *HOOKS.PAGES.values(), *api])


def test_modules_are_found_by_folder(tmp_path):
    for name in ("steps.py", "_hidden.py", "ops/__init__.py", "ops/kl.py", "hub/a/b.py"):
        path = tmp_path / "rlhf_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name.endswith("__init__.py") else '"""Text."""\n')
    assert HOOKS.modules(tmp_path) == {
        "hub": ["rlhf_jax.hub.a.b"],
        "ops": ["rlhf_jax.ops.kl"],
        "steps": ["rlhf_jax.steps"],
    }


@pytest.mark.parametrize(
    ("target", "source", "page", "want"),
    [
        ("docs/data.md#fields", "README.md", "index.md", "data.md#fields"),
        ("studies.md#the-circle", "docs/feedback.md", "feedback.md", "studies.md#the-circle"),
        ("../README.md", "docs/data.md", "data.md", "index.md"),
        ("../examples/recipes", "docs/models.md", "models.md", "HUB/tree/main/examples/recipes"),
        ("bench/NOTES.md", "README.md", "index.md", "HUB/blob/main/bench/NOTES.md"),
        ("#anchor", "README.md", "index.md", "#anchor"),
        ("https://jax.dev", "README.md", "index.md", "https://jax.dev"),
        ("docs/gone.md", "README.md", "index.md", "docs/gone.md"),
    ],
)
def test_a_link_leads_to_a_page_or_to_the_repository(target, source, page, want):
    assert HOOKS.moved(target, source, page, "HUB") == want


def build(config, to):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(to)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(bool(MISSING), reason='the site needs pip install -e ".[docs]"')
def test_the_site_is_built_without_a_warning_and_shows_every_module(tmp_path):
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for folder, names in HOOKS.modules().items():
        page = (tmp_path / "site" / "api" / folder / "index.html").read_text()
        assert {x for x in names if f'id="{x}"' not in page} == set()
    ids = set(
        re.findall(r'id="([\w.]+)"', (tmp_path / "site/api/algorithms/index.html").read_text())
    )
    assert {
        "rlhf_jax.algorithms.ppo.make_update",
        "rlhf_jax.algorithms.ppo.PPOConfig.epochs",
    } <= ids
    assert (tmp_path / "site/recipes/index.html").exists()
    assert not [*(tmp_path / "site").glob("*.py")]


def test_the_citation_is_of_the_package():
    """The fields that the Citation File Format 1.2.0 requires, and what pyproject.toml says of them."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (
        found["cff-version"] == "1.2.0" and found["message"] and found["title"] == project["name"]
    )
    assert found["authors"] == project["authors"]
    assert found["abstract"] == project["description"] and found["license"] == project["license"]
    assert found["repository-code"] == project["urls"]["Repository"]
    assert found["version"] == rlhf_jax.__version__
