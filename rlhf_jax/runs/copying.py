"""A copy of an experiment's file under another name, for the user to change."""

import ast
import re


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
