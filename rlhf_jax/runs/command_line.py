"""Settings of a command line: parsed by tyro, then checked; `--help` shows the main ones, `--help-all` all.

A class of settings names its main fields beside them, as `_main = ("steps", "batch_size")`. Where no class of
a tree does, `--help` shows everything. Fields that it names as `_hidden` are set in Python alone, or derived.
"""

import ast
import dataclasses
import difflib
import fnmatch
import functools
import inspect
import shutil
import sys
import textwrap
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import tyro

from rlhf_jax import bounds

WIDTH = 100
TRL = {
    "learning-rate": "*.lr",
    "beta": "*.beta *.kl-coef",
    "kl-coef": "*.kl-coef",
    "num-generations": "*.group *.draws",
    "per-device-train-batch-size": "*.batch-size",
    "gradient-accumulation-steps": "*.microbatches",
    "max-steps": "*.iterations *.steps",
    "num-train-epochs": "*.epochs",
    "num-ppo-epochs": "ppo.epochs",
    "total-episodes": "rl.iterations rl.batch-size",
    "max-completion-length": "sample.length data.length",
    "max-new-tokens": "sample.length data.length",
    "response-length": "sample.length data.length",
    "max-prompt-length": "data.prompt-length",
    "max-length": "data.prompt-length sample.length data.length",
    "model": "pretrained reference",
    "model-name-or-path": "pretrained reference",
    "sft-model-path": "reference",
    "reward-model-path": "reward-model",
    "reward-funcs": "rl.reward reward-model",
    "dataset-name": "data.prompts data.comparisons data.corpus",
    "output-dir": "run",
    "resume-from-checkpoint": "run",
    "report-to": "wandb",
    "bf16": "model.dtype",
    "gradient-checkpointing": "model.remat",
    "use-peft": "lora.rank",
    "lora-r": "lora.rank",
    "loss-type": "preference.kind *.aggregate",
    "epsilon": "*.policy-clip *.clip-low",
    "cliprange": "*.policy-clip *.clip-low",
    "max-grad-norm": "*.optimizer.clip",
    "lr-scheduler-type": "*.optimizer.schedule",
    "warmup-steps": "*.optimizer.warmup",
    "save-steps": "*.save-every",
    "eval-steps": "*.eval-every",
}
"""What TRL calls a setting, and patterns of the names here."""


def parse(
    cls: type,
    args: list[str],
    *,
    prog: str,
    default: Any = None,
    description: str | None = None,
    further: str = "",
) -> Any:
    """A `cls` with the settings of `args`, and of a file after --config, over those of `default`.

    Raises ValueError, by the dotted name of the setting, for a value out of its bounds, for values that do
    not fit each other, and for one that differs from `default`'s and has no effect. Raises SystemExit(2)
    for what is no setting, or no number, and SystemExit(0) after help.
    """
    given = {} if default is None else {"default": default}
    first = getattr(cls, "_first", "")
    if first and args and not args[0].startswith("-"):
        args = [f"--{first}", *args]
    with bounds.unchecked():
        if any(word.startswith("--config") for word in args):
            from rlhf_jax.runs import config_file  # which imports JAX

            args = config_file.expanded(args, cls() if default is None else default)
        found = [*settings(cls, cls() if default is None else default)]
        if {"-h", "--help", "--help-all"} & {*args}:
            about, everything = description or cls.__doc__ or "", "--help-all" in args
            print(explained(found, prog, about, everything, further))
            raise SystemExit(0)
        for word in args:
            if refusal := misnamed(word.partition("=")[0], found):
                print(f"error: {refusal}; {prog} --help explains", file=sys.stderr)
                raise SystemExit(2)
        cfg = tyro.cli(cls, args=args, prog=prog, add_help=False, **given)
    bounds.check(cfg)
    if default is not None:
        bounds.check_unread(cfg, default)
    return cfg


class Setting(NamedTuple):
    """A field of a tree of settings: its dotted name on the command line, and what `--help` says of it."""

    name: str
    metavar: str
    value: str
    about: str
    main: bool
    part: str
    part_about: str

    @property
    def flags(self) -> tuple[str, ...]:
        """The ways to write it; one that is on or off has two."""
        head, dot, last = self.name.rpartition(".")
        return (f"--{self.name}", *[f"--{head}{dot}no-{last}"] * (self.metavar == ""))


def settings(cls: type, value: Any, at: str = "", part: tuple[str, str] = ("", "")):
    """Every setting of a tree, with the values of `value`."""
    named = lambda kind: {name for c in cls.__mro__ for name in vars(c).get(kind, ())}
    mains, hidden = named("_main"), named("_hidden")
    nested = []
    for name, kind in bounds.kinds(cls).items():
        if name in hidden:
            continue
        if get_origin(kind) is Annotated and not isinstance(get_args(kind)[1], bounds.Bound):
            kind = get_args(kind)[0]
        field, label = getattr(value, name), f"{at}{name}".replace("_", "-")
        if dataclasses.is_dataclass(field):
            about = part if at else (label, (type(field).__doc__ or "").partition("\n")[0])
            nested.append((type(field), field, f"{label}.", about))
            continue
        metavar = "" if kind is bool else bounds.metavar(kind)
        about = about_fields(cls).get(name, "")
        yield Setting(label, metavar, shown(field), about, name in mains, *part)
    for one in nested:
        yield from settings(*one)


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "empty" if value == "" else str(value)


def explained(
    found: list[Setting], prog: str, description: str, everything: bool, further: str = ""
) -> str:
    """The help: what the experiment is, and its settings under the names of their parts.

    The line of usage ends with the words `further`.
    """
    width = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    everything = everything or not any(x.main for x in found)
    usage = f"usage: {prog} [--setting value ...] {further}".rstrip()
    lines = [usage, "", *description.strip().splitlines()]
    part = None
    for x in found:
        if not (everything or x.main):
            continue
        if x.part != part:
            part = x.part
            lines += ["", f"{part}: {x.part_about}" if part else "settings (default):"]
        flags = ", ".join(x.flags)
        head = f"  {flags} {x.metavar}".rstrip() + f" ({x.value})"
        lines += textwrap.wrap(f"{head:34}  {x.about}", width, subsequent_indent=" " * 6)
    if not everything:
        rest = sum(not x.main for x in found)
        lines += ["", f"{prog} --help-all shows {rest} more settings."]
    return "\n".join(lines)


def misnamed(word: str, found: list[Setting]) -> str | None:
    """The reason why an option is no setting, with the nearest one; None for a setting or a value."""
    if not word.startswith("--"):
        return None
    name = word[2:].replace("_", "-")
    if f"--{name}" in {flag for x in found for flag in x.flags}:
        return None
    names = [x.name for x in found][::-1]  # a method's own settings stand last in its tree
    mains, last = {x.name for x in found if x.main}, name.rpartition(".")[2]
    near = [x for pattern in TRL.get(name, "").split() for x in fnmatch.filter(names, pattern)]
    near = near or [x for x in names if x.rpartition(".")[2] == last]
    near.sort(key=lambda x: x not in mains)
    near = near or difflib.get_close_matches(name, names, n=3)
    about = {x.name: f" ({x.about})" for x in found if x.about and len(near) == 1}
    said = " or ".join(f"--{x}{about.get(x, '')}" for x in dict.fromkeys(near[:4]))
    return f"there is no setting {word} here" + (f": use {said.replace('.)', ')')}" if said else "")


@functools.cache
def about_fields(cls: type) -> dict[str, str]:
    """The string below each field of a class of settings, those that it inherits too, in one line each."""
    found = {}
    for c in cls.__mro__[::-1]:
        if not dataclasses.is_dataclass(c):
            continue
        for node in classes_of(inspect.getsourcefile(c) or "").get(c.__qualname__, ()):
            found[node[0]] = node[1]
    return found


@functools.cache
def classes_of(file: str) -> dict[str, list[tuple[str, str]]]:
    """(field, the string below it) of each class at the top of a file."""
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    return {
        node.name: [*_strings(node.body)] for node in tree.body if isinstance(node, ast.ClassDef)
    }


def _strings(body: list[ast.stmt]):
    for field, below in zip(body, [*body[1:], None], strict=True):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as said)),
            ):
                yield name, " ".join(said.split())
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                yield name, ""
