"""Imports point down: folders are floors, and a table says which folder may import which."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

VOCABULARY = {
    "batches",
    "train_step",
    "epochs",
    "sampling",
    "slots",
    "optimizer",
    "transformations",
}
"""The files at the top of the library beside `bounds`, which every file may import."""
BELOW = {"ops", *VOCABULARY}
WINGS = {"models", "data", "rewards", "tasks", "people", "devices", "runs", "evaluation"}
MAY = {
    "ops": set(),
    "bounds": set(),
    **dict.fromkeys(VOCABULARY, BELOW),
    "algorithms": BELOW,
    "models": {"ops"},
    "data": {"batches"},
    "rewards": {"data"},
    "tasks": {"batches"},
    "people": set(),
    "devices": {"ops", "train_step"},
    "runs": {"devices", "train_step"},
    "evaluation": set(),
    "pipeline": BELOW | WINGS | {"algorithms"},
    "studies": BELOW | WINGS | {"algorithms", "pipeline"},
    "sweeps": WINGS | {"pipeline"},
    "experiments": BELOW | WINGS | {"algorithms", "pipeline", "studies"},
}
"""What each folder, and each file beside the folders, may import besides `bounds` and itself."""
FILES = {"bounds", *VOCABULARY}

# What may be imported from outside the standard library, by those whose list is short.
MATHS = {"jax", "jaxtyping"}
ON_HOST = {"best_of_n", "episodes"}  # algorithms that NumPy computes
OUTSIDE = {
    **{name: MATHS for name in ("ops", "algorithms", "sampling", "slots", "epochs")},
    "train_step": MATHS | {"optax"},
    "batches": MATHS | {"numpy"},
    "bounds": set(),
    "data": MATHS
    | {"numpy", "rich", "tokenizers", "transformers"}
    | {"tensorflow_datasets", "grain", "pyarrow", "datasets"},
    "rewards": MATHS | {"numpy", "math_verify", "regex", "rouge_score", "sacrebleu", "spacy"},
    "tasks": MATHS | {"numpy", "scipy", "gymnasium"},
    "people": MATHS | {"numpy", "scipy"},
    "evaluation": MATHS | {"numpy", "scipy", "rouge_score", "sacrebleu"},
}
NUMPY_ONLY = {
    "data",
    "rewards",
    "tasks",
    "people",
}  # of jax they have its trees and the name of its arrays
OF_JAX = {"tree", "tree_util", "Array"}
AT_RUN_TIME = "a name made at run time"
BY_NAME = {"rlhf_jax/pipeline/texts.py"}  # it loads the task that a setting names
ALONE = {"flax": "models", "orbax": "runs"}  # who alone imports it


def imports(source: str, module: str, is_package: bool):
    """(line, dotted name) of all that a file imports, in all forms, inside functions too.

    `from a import b` gives a.b, since b may be a module; relative ones are made absolute.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                up = here[: len(here) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            yield node.lineno, AT_RUN_TIME


def numpy_only(source: str):
    """(line, expression) of every use of jax that computes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
            yield from [(node.lineno, ast.unparse(node))] * (node.attr not in OF_JAX)


def complaints(root: pathlib.Path):
    """One sentence for each import under `root` that does not point down."""
    for path in sorted([*(root / "rlhf_jax").rglob("*.py"), *(root / "experiments").rglob("*.py")]):
        where = path.relative_to(root)
        parts = where.with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        name = parts[0] if parts[0] == "experiments" else parts[1]
        if module == "rlhf_jax":
            name = None
        elif name == "launcher" and len(parts) == 2:
            continue  # it stands above everything, and imports what it starts by name
        elif name not in MAY or ((len(parts) == 2) != (name in FILES) and not is_package):
            yield f"{where} stands on no floor: give it a folder"
            continue
        source = path.read_text()
        for line, imported in imports(source, module, is_package):
            said = f"{where}:{line} imports {imported}"
            top, _, rest = imported.partition(".")
            target = rest.partition(".")[0]
            if imported == AT_RUN_TIME and str(where) in BY_NAME:
                continue
            if imported == AT_RUN_TIME:
                yield f"{said}, which no table can check"
            elif top in ("experiments", "examples", "tests", "bench", "launch"):
                yield f"{said}, which stands above it or beside it"
            elif top == "rlhf_jax":
                if name is None:
                    yield f"{said}: the package itself imports nothing"
                elif target not in MAY:
                    yield f"{said}, which stands on no floor"
                elif target not in MAY[name] | {"bounds", name} - {"experiments"}:
                    yield f"{said}, which it may not"
            elif ALONE.get(top, name) != name:
                yield f"{said}, which {ALONE[top]} alone may"
            elif name in OUTSIDE and top not in OUTSIDE[name] | sys.stdlib_module_names:
                if not (
                    name == "algorithms" and parts[-1] in ON_HOST and top in ("numpy", "scipy")
                ):
                    yield f"{said}, which is not on its list"
            elif name in NUMPY_ONLY and top == "jax" and rest not in {""} | OF_JAX:
                yield f"{said}, and it is NumPy only"
        if name in NUMPY_ONLY:
            for line, use in numpy_only(source):
                yield f"{where}:{line} uses {use}, and it is NumPy only"


def test_imports_point_down():
    assert list(complaints(ROOT)) == []


def test_the_files_of_today_are_seen():
    """Against a checker that looks in the wrong folder and finds nothing to complain of."""
    names = {path.stem for path in (ROOT / "rlhf_jax").rglob("*.py")}
    assert {"ppo", "train_step", "parallel", "reduce"} <= names
    lines = list(
        imports((ROOT / "rlhf_jax/algorithms/ppo.py").read_text(), "rlhf_jax.algorithms.ppo", False)
    )
    assert {"rlhf_jax.ops.kl", "rlhf_jax.ops.advantages.gae"} <= {name for _, name in lines}


PLANTED = {
    "upward": ("ops/reduce.py", "from rlhf_jax.algorithms.ppo import loss"),
    "upward, the other form": ("ops/reduce.py", "import rlhf_jax.algorithms.ppo"),
    "upward, renamed": ("ops/reduce.py", "import rlhf_jax.algorithms.ppo as harmless"),
    "upward, from a package": ("batches.py", "from rlhf_jax.algorithms import ppo"),
    "upward, a whole package": ("batches.py", "from rlhf_jax import algorithms"),
    "relative": ("ops/kl.py", "from .. import train_step"),
    "relative, dotted": ("ops/kl.py", "from ..algorithms.sft import loss"),
    "relative, out of a wing": ("models/transformer.py", "from ..algorithms import ppo"),
    "relative, from a wing's own file": ("models/__init__.py", "from .. import algorithms"),
    "inside a function": ("ops/losses.py", "def f():\n    from rlhf_jax import train_step"),
    "under a condition": ("ops/losses.py", "if True:\n    import rlhf_jax.algorithms.rollout"),
    "at run time": ("ops/losses.py", "__import__('rlhf_jax.algorithms.ppo')"),
    "an algorithm enters a wing": ("algorithms/ppo.py", "from rlhf_jax.models import networks"),
    "an algorithm knows a run": ("algorithms/ppo.py", "from rlhf_jax.runs import loop"),
    "a wing enters another": ("tasks/reviews.py", "from rlhf_jax.data import sources"),
    "a wing knows the step": ("models/networks.py", "from rlhf_jax import train_step"),
    "a device knows an algorithm": ("devices/parallel.py", "import rlhf_jax.algorithms.ppo"),
    "a device knows a wing": ("devices/parallel.py", "from rlhf_jax.models.config import X"),
    "a run knows an algorithm": ("runs/report.py", "from rlhf_jax.algorithms.ppo import loss"),
    "a run knows what is measured": ("runs/report.py", "from rlhf_jax.evaluation import intervals"),
    "data knows array maths": ("data/batching.py", "from rlhf_jax.ops import padding"),
    "the pipeline knows a study": ("pipeline/rl.py", "from rlhf_jax.studies import context"),
    "an experiment": ("algorithms/ppo.py", "from experiments.applications import sentiment"),
    "an experiment knows another": (
        "../experiments/methods/ppo.py",
        "from experiments.methods import rloo",
    ),
    "an experiment knows another, as installed": (
        "../experiments/methods/ppo.py",
        "from rlhf_jax.experiments.methods import rloo",
    ),
    "flax outside the models": ("algorithms/ppo.py", "import flax.linen as nn"),
    "a file without a folder": ("sharks.py", ""),
    "a folder without a floor": ("sharks/server.py", ""),
    "a wing's name as a file": ("models.py", ""),
    "another launcher": ("runs/launcher.py", "import importlib\nimportlib.import_module(name)"),
    "a name that is not there": ("algorithms/ppo.py", "from rlhf_jax import sharks"),
    "the package imports": ("__init__.py", "from rlhf_jax import algorithms"),
    "data computes with jax": ("data/batching.py", "import jax.numpy as jnp"),
    "data computes with jax, the other form": ("data/batching.py", "from jax import numpy"),
    "data computes with jax, by attribute": ("data/a.py", "import jax\nx = jax.numpy.zeros(3)"),
    "array maths with numpy": ("ops/kl.py", "import numpy as np"),
}
PASSING = {
    "down": ("algorithms/ppo.py", "from rlhf_jax.ops import kl, losses\nimport rlhf_jax.batches"),
    "beside": ("ops/kl.py", "from rlhf_jax.ops.reduce import psum"),
    "the launcher": ("launcher.py", "import importlib\nimportlib.import_module(name)"),
    "beside, among algorithms": ("algorithms/ppo.py", "from rlhf_jax.algorithms import rollout"),
    "a new algorithm": ("algorithms/sharks.py", "from rlhf_jax import train_step"),
    "a new experiment": ("../experiments/methods/sharks.py", "from rlhf_jax.pipeline import rl"),
    "relative, within a wing": (
        "models/networks.py",
        "from . import config\nfrom .attention import x",
    ),
    "a wing's own": ("models/networks.py", "from rlhf_jax.models import transformer"),
    "a wing reads array maths": (
        "models/networks.py",
        "from rlhf_jax.ops.padding import last_real",
    ),
    "devices read layout": ("devices/parallel.py", "from rlhf_jax.ops.layout import DATA"),
    "runs know the step": ("runs/checkpoint.py", "from rlhf_jax.train_step import TrainState"),
    "data knows the records": ("data/prompts.py", "from rlhf_jax.batches import Prompts"),
    "a run beside a run": ("runs/report.py", "from rlhf_jax.runs import metrics"),
    "data walks trees": ("data/batching.py", "import jax\nf = jax.tree.map"),
}


def planted(tmp_path, file, text):
    (tmp_path / "rlhf_jax").mkdir()
    path = tmp_path / "rlhf_jax" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return list(complaints(tmp_path))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_import_is_found(tmp_path, kind):
    assert len(planted(tmp_path, *PLANTED[kind])) == 1


@pytest.mark.parametrize("kind", PASSING)
def test_what_points_down_passes(tmp_path, kind):
    assert planted(tmp_path, *PASSING[kind]) == []
