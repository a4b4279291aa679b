"""A copy of an experiment's file under another name, for the user to change."""

import ast
import importlib.util
import keyword
import os
import pathlib
import re

from rlhf_jax.devices import process
from rlhf_jax.devices.process import cut_at, refused
from rlhf_jax.runs.listing import Place, unknown


def new(args: list[str], known: dict[str, Place]) -> int:
    """Writes NAME.py, a copy of an experiment's file, for `args` = NAME --from EXPERIMENT; returns the exit
    code."""
    command = process.command()
    rest, source, more = cut_at(args, "--from")
    names = [*rest, *more]
    if not source or len(names) != 1 or names[0].startswith("-"):
        return refused(f"new needs a name and an experiment: {command} new NAME --from rloo", 2)
    name = names[0].removesuffix(".py")
    if source not in known:
        return refused(unknown(source, known), 2)
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        return refused(
            f"NAME = {name!r} is no module name: use lower-case letters, digits and _, a letter first",
            2,
        )
    file = pathlib.Path(f"{name}.py")
    if os.path.lexists(file):
        return refused(f"{file} already exists: choose another name", 1)
    if name in {*known, "new", "sweep"} or importlib.util.find_spec(name):
        return refused(f"NAME = {name!r} is taken here or by a Python module: choose another", 2)
    try:
        text = copy(known[source].path.read_text(encoding="utf-8"), source, name, command)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        return refused(process.sentence(error, ".") or str(error), 1)
    print(f"{file} is a copy of {source}: {command} ./{file} --help")
    return 0


def copy(source: str, old: str, new: str, command: str) -> str:
    """The text of a file that holds the experiment `old`, as a file that holds `new` alone.

    Of several `configs` the copy keeps the one, and its line of the docstring. `new` also stands where a call
    is given the name of the experiment and then `cfg`, which names the folder of its runs.
    """
    source = re.sub(rf"(python launch\.py|rlhf-jax) {old}\b", f"{command} ./{new}.py", source)
    edits, several = [], False
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(args=[ast.Constant() as name, ast.Name(id="cfg"), *_]) if (
                name.value == old
            ):
                edits.append((name, f'"{new}"'))
            case ast.Assign() | ast.AnnAssign() if isinstance(node.value, ast.Dict) and _sets(node):
                both = zip(node.value.keys, node.value.values, strict=True)
                own = next(
                    x for key, x in both if isinstance(key, ast.Constant) and key.value == old
                )
                edits.append((node.value, f'{{"{new}": {ast.get_source_segment(source, own)}}}'))
                several = True
    source = _edited(source, edits)
    return _one_line(source, old, new) if several else source


def _sets(node) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(x, ast.Name) and x.id == "configs" for x in targets)


def _edited(source: str, edits: list) -> str:
    """`source` with each node's text replaced."""
    lines = source.encode().splitlines(keepends=True)  # columns count bytes
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = source.encode()
    at = lambda line, column: starts[line - 1] + column
    for node, said in sorted(edits, key=lambda x: -at(x[0].lineno, x[0].col_offset)):
        first, last = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
        text = text[:first] + said.encode() + text[last:]
    return text.decode()


def _one_line(source: str, old: str, new: str) -> str:
    """`source` without the docstring's lines about other experiments than `old`, which is `new` now."""
    node = ast.parse(source).body[0]
    lines = source.splitlines(keepends=True)
    doc = range(node.lineno - 1, node.end_lineno or 0)
    first = re.compile(r"    (\w+)  +\S")
    block = [i for i in doc if first.match(lines[i])]
    kept = [i for i in block if lines[i].split()[0] == old][:1]  # later ones are rows of tables
    blocks = [i for i in block if kept and _together(block, i, kept[0])]
    for i in reversed(blocks):
        if i in kept:
            lines[i] = lines[i].replace(old, new, 1)
        else:
            del lines[i]
    return "".join(lines)


def _together(block: list[int], i: int, j: int) -> bool:
    return all(k in block for k in range(min(i, j), max(i, j)))
