"""Imports point down: a table of who may import whom, and every file stands in it."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FLOORS = [
    {
        "reduce",
        "padding",
        "logprobs",
        "kl",
        "advantages",
        "losses",
        "bounds",
    },  # array maths, bounds
    {"batches"},  # records
    {"models", "data", "tasks"},  # the wings, one folder each
    {"train_step", "epochs", "sampling"},  # the shared step, its epochs, and sampling
    {
        "sft",
        "reward_model",
        "ensemble",
        "rollout",
        "episodes",
        "ppo",
        "policy_gradient",
        "preference",
        "best_of_n",
        "ilql",
        "overoptimization",
        "evaluate",
        "nested_seeds",
    },  # algorithms
    {
        "parallel",
        "sharding",
        "hosts",
        "submit",
        "command_line",
        "optimizer",
        "checkpoint",
        "manifest",
        "process",
        "metrics",
        "run",
        "loop",
        "memory",
        "report",
        "pictures",
    },  # devices, disk
]
WINGS = FLOORS[2]
ALGORITHMS, DISK = FLOORS[4], FLOORS[5]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def may_import(importer, imported):
    """Whether one name of the table may import another: from below, or from beside it."""
    if importer == imported:
        return True
    if imported in WINGS:  # entered by experiments, examples and tests alone
        return False
    if importer in NUMPY_ONLY:
        return imported in ("batches", "bounds")
    if importer in DISK:  # which knows no algorithm
        return imported not in ALGORITHMS
    return FLOOR[imported] <= FLOOR[importer]


# What may be imported from outside the standard library, by those whose list is short.
MATHS = {"jax", "jaxtyping"}
OUTSIDE = {
    **{name: MATHS for name in FLOORS[0] | {"sampling", "epochs"}},
    **{
        name: MATHS
        for name in ALGORITHMS
        - {"evaluate", "nested_seeds", "episodes", "best_of_n", "overoptimization"}
    },
    "train_step": MATHS | {"optax"},
    "batches": MATHS | {"numpy"},
    "data": MATHS
    | {"numpy", "scipy", "rich", "tokenizers", "transformers", "tensorflow_datasets", "grain"},
    "tasks": MATHS | {"numpy", "scipy"},
}
NUMPY_ONLY = {"data", "tasks"}  # of jax they have its trees and the name of its arrays
OF_JAX = {"tree", "tree_util", "Array"}
AT_RUN_TIME = "a name made at run time"
ALONE = {"flax": "models", "orbax": "checkpoint"}  # who alone imports it


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
    """One sentence for each import under `root`/rlhf_jax that does not point down."""
    for path in sorted((root / "rlhf_jax").rglob("*.py")):
        where = path.relative_to(root)
        parts = where.with_suffix("").parts
        if parts == ("rlhf_jax", "__init__"):
            name = None
        else:
            name = parts[1]
            in_a_folder = len(parts) > 2
            if name not in FLOOR or in_a_folder != (name in WINGS):
                yield f"{where} does not stand in the table: give it a floor"
                continue
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        source = path.read_text()
        for line, imported in imports(source, module, is_package):
            said = f"{where}:{line} imports {imported}"
            top, _, rest = imported.partition(".")
            target = rest.partition(".")[0]
            if imported == AT_RUN_TIME:
                yield f"{said}, which no table can check"
            elif top in ("experiments", "examples", "tests", "bench", "launch"):
                yield f"{said}, which stands above the library"
            elif top == "rlhf_jax":
                if name is None:
                    yield f"{said}: the package itself imports nothing"
                elif target not in FLOOR:
                    yield f"{said}, which does not stand in the table"
                elif not may_import(name, target):
                    yield f"{said}, which it may not"
            elif ALONE.get(top, name) != name:
                yield f"{said}, which {ALONE[top]} alone may"
            elif name in OUTSIDE and top not in OUTSIDE[name] | sys.stdlib_module_names:
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
    names = {path.stem for path in (ROOT / "rlhf_jax").glob("*.py")}
    assert {"ppo", "train_step", "parallel", "reduce"} <= names
    lines = list(imports((ROOT / "rlhf_jax/ppo.py").read_text(), "rlhf_jax.ppo", False))
    assert {"rlhf_jax.kl", "rlhf_jax.advantages.gae"} <= {name for _, name in lines}


PLANTED = {
    "upward": ("reduce.py", "from rlhf_jax.ppo import loss"),
    "upward, the other form": ("reduce.py", "import rlhf_jax.ppo"),
    "upward, renamed": ("reduce.py", "import rlhf_jax.ppo as harmless"),
    "upward, from the package": ("batches.py", "from rlhf_jax import kl, ppo"),
    "relative": ("kl.py", "from . import sft"),
    "relative, dotted": ("kl.py", "from .sft import loss"),
    "relative, out of a wing": ("models/transformer.py", "from ..ppo import loss"),
    "relative, from a wing's own file": ("models/__init__.py", "from .. import ppo"),
    "inside a function": ("losses.py", "def f():\n    from rlhf_jax import train_step"),
    "under a condition": ("losses.py", "if True:\n    import rlhf_jax.rollout"),
    "at run time": ("losses.py", "__import__('rlhf_jax.ppo')"),
    "an algorithm enters a wing": ("ppo.py", "from rlhf_jax.models import networks"),
    "a wing enters another": ("tasks/reviews.py", "from rlhf_jax.data import sources"),
    "a wing knows the step": ("models/networks.py", "from rlhf_jax import train_step"),
    "a device knows an algorithm": ("parallel.py", "import rlhf_jax.ppo"),
    "a device knows a wing": ("parallel.py", "from rlhf_jax.models.config import ModelConfig"),
    "disk knows an algorithm": ("report.py", "from rlhf_jax.evaluate import Interval"),
    "data knows array maths": ("data/batching.py", "from rlhf_jax import padding"),
    "an experiment": ("ppo.py", "from experiments import sentiment"),
    "flax outside the models": ("ppo.py", "import flax.linen as nn"),
    "a file without a floor": ("sharks.py", ""),
    "a folder without a floor": ("people/server.py", ""),
    "a wing's name as a file": ("models.py", ""),
    "a name that is not there": ("ppo.py", "from rlhf_jax import sharks"),
    "the package imports": ("__init__.py", "from rlhf_jax import ppo"),
    "data computes with jax": ("data/batching.py", "import jax.numpy as jnp"),
    "data computes with jax, the other form": ("data/batching.py", "from jax import numpy"),
    "data computes with jax, by attribute": ("data/a.py", "import jax\nx = jax.numpy.zeros(3)"),
    "array maths with numpy": ("kl.py", "import numpy as np"),
}
PASSING = {
    "down": ("ppo.py", "from rlhf_jax import kl, losses\nimport rlhf_jax.batches"),
    "beside": ("kl.py", "from rlhf_jax.reduce import psum"),
    "beside, among algorithms": ("ppo.py", "from rlhf_jax import rollout"),
    "relative, within a wing": (
        "models/networks.py",
        "from . import config\nfrom .attention import x",
    ),
    "a wing's own": ("models/networks.py", "from rlhf_jax.models import transformer"),
    "a wing reads array maths": ("models/networks.py", "from rlhf_jax.padding import last_real"),
    "disk reads reduce": ("parallel.py", "from rlhf_jax.reduce import DATA"),
    "disk knows the step": ("checkpoint.py", "from rlhf_jax.train_step import TrainState"),
    "data knows the records": ("data/prompts.py", "from rlhf_jax.batches import Prompts"),
    "disk beside disk": ("report.py", "from rlhf_jax import metrics"),
    "data walks trees": ("data/batching.py", "import jax\nf = jax.tree.map"),
}


def planted(tmp_path, file, text):
    path = tmp_path / "rlhf_jax" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return list(complaints(tmp_path))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_import_is_found(tmp_path, kind):
    assert len(planted(tmp_path, *PLANTED[kind])) == 1


@pytest.mark.parametrize("kind", PASSING)
def test_what_points_down_passes(tmp_path, kind):
    assert planted(tmp_path, *PASSING[kind]) == []
