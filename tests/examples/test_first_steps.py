"""The notebook: valid, with the outputs of one run from its top, and executed as a whole under a marker.

`jupyter execute --inplace examples/first_steps.ipynb` writes its outputs anew; those in stderr are removed.
"""

import ast
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PATH = ROOT / "examples" / "first_steps.ipynb"
MISSING = [x for x in ("nbclient", "ipykernel") if not importlib.util.find_spec(x)]
RUN = """
import sys, nbformat
from nbclient import NotebookClient
page = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(page, timeout=900, kernel_name="python3").execute()
nbformat.write(page, sys.argv[2])
"""


def code(page):
    return [cell for cell in page["cells"] if cell["cell_type"] == "code"]


def said(page):
    """What a notebook printed."""
    outputs = [x for cell in code(page) for x in cell["outputs"]]
    return "".join("".join(x["text"]) for x in outputs if x["output_type"] == "stream")


def gold(page):
    """Mean gold before and after, as the last cell prints them."""
    lines = [x for x in said(page).splitlines() if x.startswith(("before: gold", "after: gold"))]
    return [float(x.split()[2].rstrip(",")) for x in lines]


def test_its_outputs_are_of_one_run_and_have_one_picture():
    page = json.loads(PATH.read_text())
    cells = code(page)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [x for cell in cells for x in cell["outputs"]]
    assert {x["output_type"] for x in outputs} <= {"stream", "display_data"}
    assert {x.get("name", "stdout") for x in outputs} == {"stdout"}
    assert sum("image/png" in x.get("data", {}) for x in outputs) == 1
    assert PATH.stat().st_size < 150_000
    before, after = gold(page)
    assert after > before + 0.5


def test_it_imports_public_names_that_exist():
    source = "\n".join("".join(cell["source"]) for cell in code(json.loads(PATH.read_text())))
    found = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.ImportFrom)]
    assert len(found) > 8
    for node in found:
        for alias in node.names:
            assert not alias.name.startswith("_")
            module = importlib.import_module(node.module)
            assert hasattr(module, alias.name) or importlib.import_module(
                f"{node.module}.{alias.name}"
            )


@pytest.mark.notebook
@pytest.mark.skipif(bool(MISSING), reason='the notebook needs pip install -e ".[notebook]"')
def test_it_runs_from_top_to_bottom(tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, PATH, tmp_path / "done.ipynb"],
        cwd=PATH.parent,
        env=os.environ | {"PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = gold(json.loads((tmp_path / "done.ipynb").read_text()))
    assert after > before + 0.5
