"""The list of experiments, read from their files without importing them."""

import ast
import difflib
import pathlib
import re
import sys
import textwrap
from typing import NamedTuple

from rlhf_jax.devices import process

HEADINGS = ("applications", "methods", "studies", "tools")
COLUMNS = 100
LAST = sys.maxsize


class Place(NamedTuple):
    """The file of an experiment, its one-line description, and its position in the list."""

    path: pathlib.Path
    line: str
    order: int


def experiments(folder: pathlib.Path) -> dict[str, Place]:
    """File, description and position of each experiment in the folders of `folder`, by name, in listed
    order.

    A folder is a heading. Its files are sorted by the number `order` that they set, files without one last.
    Files are read and not imported, so listing is quick and works where an import would fail.
    """
    at = {name: i for i, name in enumerate(HEADINGS)}
    heading = lambda path: (at.get(path.parent.name, LAST), path.parent.name)
    found = [
        (path, name, place) for path in folder.glob("*/*.py") for name, place in read(path).items()
    ]
    found.sort(
        key=lambda x: (*heading(x[0]), x[2].order, x[0].stem)
    )  # keys of one file keep their order
    return {name: place for _, name, place in found}


def read(path: pathlib.Path) -> dict[str, Place]:
    """The experiments of one file, by name.

    A file that sets `config` is one experiment, with the file's name and its docstring's first line. A file
    that sets `configs`, a dictionary, is one experiment per key, described by a line ` KEY description` of
    its docstring.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    values = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        values |= {x.id: node.value for x in targets if isinstance(x, ast.Name)}  # type: ignore
    order = values.get("order")
    order = ast.literal_eval(order) if isinstance(order, ast.Constant) else LAST
    names = {path.stem: said.partition("\n")[0]} if "config" in values else {}
    if isinstance(several := values.get("configs"), ast.Dict):
        lines = dict(re.findall(r"^    (\w+)  +(.*)$", said, flags=re.MULTILINE)[::-1])
        keys = [ast.literal_eval(key) for key in several.keys if isinstance(key, ast.Constant)]
        names |= {key: lines.get(key, "") for key in keys}
    return {name: Place(path, line, order) for name, line in names.items()}


def listing(known: dict[str, Place]) -> str:
    """The experiments under the headings of their folders, one line each, and usage."""
    width, lines, heading = max(map(len, known), default=0), [], ""
    for name, (path, line, _) in known.items():
        if path.parent.name != heading:
            heading = path.parent.name
            lines += ["", heading.capitalize()]
        line = re.sub(r" \([^()]+, \d{4}\)\.?$", "", line)  # citations stay in the file
        room = COLUMNS - width - 4
        lines.append(f"  {name:{width}}  {textwrap.shorten(line, room, placeholder=' ...')}")
    command = process.command()
    return "\n".join([
        f"{command} EXPERIMENT [--setting value ...]",
        *lines,
        "",
        f"{command} EXPERIMENT --help explains the main settings, --help-all all of them.",
        f"{command} new NAME --from EXPERIMENT writes NAME.py, a copy to edit; ./NAME.py starts it.",
        "--config FILE takes settings from a run's config.json or from YAML; typed ones come after.",
        "--seeds N runs N seeds; sweep EXPERIMENT --SETTING A B C each value: sweep --help explains.",
        "--on slurm, tpu-vm or k8s runs the command there; --on slurm --help explains its settings.",
        "--plan starts no run and says steps, tokens, memory and time; --plan-devices 8 imagines devices.",
        "--distributed auto (or HOST:PORT,PROCESSES,THIS-ONE) joins the processes of several hosts.",
    ])  # fmt: skip


def unknown(name: str, known: dict[str, Place]) -> str:
    """The refusal of a name that is none of these, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"there is no experiment {name!r}: {hint}"
