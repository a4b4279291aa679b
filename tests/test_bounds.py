"""Every numeric setting has a bound, which is obeyed where a config is made and on the command line."""

import ast
import ctypes
import dataclasses
import importlib
import math
import pathlib
import re
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

import launch
from rlhf_jax import bounds
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.bounds import Bound, Count, NonNegative, Settings, Whole
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.runs import command_line, submit

ROOT = pathlib.Path(__file__).parent.parent
INF = float("inf")
VALUES = {int: [0, -1, 10**30, -(10**30)], float: [0.0, -1.0, math.nan, INF, -INF, 1e300, -1e300]}


def modules():
    """Names of the modules that define a dataclass whose name ends in Config."""
    for folder in ("rlhf_jax", "experiments", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tops = ast.parse(path.read_text()).body
            classes = [node for node in tops if isinstance(node, ast.ClassDef)]
            if any(node.name.endswith("Config") and node.decorator_list for node in classes):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield name.removesuffix(".__init__")


def config_classes():
    """Those classes, those of what can be sent, and every dataclass that is a field of one."""
    found = list(submit.KINDS.values())
    for name in modules():
        module = importlib.import_module(name)
        here = [x for x in vars(module).values() if dataclasses.is_dataclass(x)]
        found += [x for x in here if isinstance(x, type) and x.__module__ == module.__name__]
    found = [x for x in found if x.__name__.endswith("Config") or x in submit.KINDS.values()]
    for cls in found:  # which grows
        parts = (kind for kind in bounds.kinds(cls).values() if dataclasses.is_dataclass(kind))
        found += [kind for kind in parts if kind not in found]
    return sorted(set(found), key=lambda cls: (cls.__module__, cls.__name__))


CLASSES = config_classes()


def numbers(kind):
    """(int or float, its bound or None) of every number in an annotation."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        bound = [x for x in args[1:] if isinstance(x, Bound)]
        return [(args[0], bound[0])] if bound else numbers(args[0])
    if kind in (int, float):
        return [(kind, None)]
    return [x for arg in args if origin is not Literal for x in numbers(arg)]


def allowed(kind: type, bound: Bound, value) -> bool:
    """By the words of `Bound`, said again."""
    if kind is float:
        value = ctypes.c_float(value).value
        if math.isnan(value) or math.isinf(value):
            return False
    elif bound.lt is None and bound.le is None and not -(2**31) < value < 2**31:
        return False
    ends = [(bound.gt, lambda x: value > x), (bound.ge, lambda x: value >= x)]
    ends += [(bound.lt, lambda x: value < x), (bound.le, lambda x: value <= x)]
    return all(end is None or ok(end) for end, ok in ends)


def like(cls):
    """A `cls` of its defaults, and of the first word where there is none."""
    made = cls.__new__(cls)
    for f in dataclasses.fields(cls):
        first = next(iter(typing.get_args(bounds.kinds(cls)[f.name])), "x")
        value = first if f.default is dataclasses.MISSING else f.default
        value = value if f.default_factory is dataclasses.MISSING else f.default_factory()
        object.__setattr__(made, f.name, value)
    return made


def test_all_config_classes_are_found_and_are_settings():
    names = {f"{cls.__module__}.{cls.__name__}" for cls in CLASSES}
    assert {
        "rlhf_jax.algorithms.ppo.PPOConfig", "experiments.applications.game.Config",
        "rlhf_jax.studies.learners.Method",
        "rlhf_jax.runs.slurm.Slurm", "rlhf_jax.models.config.RopeScaling", "bench.accelerator.Config",
    } <= names  # fmt: skip
    assert len(names) > 40
    assert [cls for cls in CLASSES if not issubclass(cls, Settings)] == []


def test_every_number_has_a_bound():
    bare = [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in CLASSES
        for name, kind in bounds.kinds(cls).items()
        for _, bound in numbers(kind)
        if bound is None
    ]
    assert bare == []


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_bounds_are_obeyed_where_a_config_is_made(cls, monkeypatch):
    """Past the tests' type checker, and without conditions between fields, which have tests of their own."""
    monkeypatch.setattr(cls, "_conditions", lambda self, at: None)
    for name, annotation in bounds.kinds(cls).items():
        for kind, bound in numbers(annotation):
            assert bound.metavar(kind).count("INT" if kind is int else "FLOAT") == 1
            in_tuple = typing.get_origin(annotation) is tuple
            for value in VALUES[kind]:
                cfg = like(cls)
                object.__setattr__(cfg, name, (value,) if in_tuple else value)
                said = ""
                try:
                    cfg.__post_init__()
                except ValueError as error:
                    said = str(error)
                right = allowed(kind, bound, value)
                start = f"{cls.__name__}.{name} = {(value,) if in_tuple else value!r}: "
                assert not said.startswith(start) if right else said.startswith(start), (
                    name,
                    value,
                )
                assert right or re.search("(it|each) must be ", said)


@dataclass(frozen=True)
class Part(Settings):
    """A part."""

    rows: Count = 4
    """Rows."""
    parts: Count = 1
    """Parts."""
    share: Annotated[float, Bound(gt=0, le=1)] | None = None
    """A share."""
    kind: Literal["a", "b"] = "a"
    """One or the other."""

    def _conditions(self, at):
        bounds.check_divides(f"{at}parts", self.parts, f"{at}rows", self.rows)

    def _unread(self):
        return {} if self.kind == "a" else {"share": 'kind = "b" does not read it'}


@dataclass(frozen=True)
class Tree(Settings):
    """A tree."""

    part: Part = Part()
    steps: tuple[Whole, ...] = (1, 2)
    """Steps."""
    coef: NonNegative = 0.5
    """A coefficient."""


def parse(*args, default=Tree()):
    return command_line.parse(Tree, list(args), prog="toy", default=default)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--part.rows 0", "part.rows = 0: it must be 1 or more"),
        ("--part.rows 3000000000", "part.rows = 3000000000: it must be a whole number below 2147483648"),
        ("--part.share nan", "part.share = nan: it must be a finite number, above 0 and at most 1"),
        ("--part.share 1e-60", "part.share = 1e-60: it must be above 0 and at most 1"),
        ("--coef -1", "coef = -1.0: it must be 0 or more"),
        ("--steps 3 -1", "steps = (3, -1): each must be 0 or more"),
        ("--part.parts 3", "part.parts = 3 does not divide part.rows = 4: choose a divisor"),
        ("--part.rows 0 --part.parts 0", "part.rows = 0: it must be 1 or more"),  # not ZeroDivision
        ("--part.kind b --part.share 0.5", 'part.share = 0.5 has no effect because kind = "b" does not'),
    ],
)  # fmt: skip
def test_the_command_line_names_a_setting_as_it_was_given(args, said):
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        parse(*args.split())


def test_what_is_within_its_bounds_is_taken():
    args = "--part.rows 6 --part.parts 3 --part.share 1 --steps 0 --coef 0"
    assert parse(*args.split()) == Tree(Part(rows=6, parts=3, share=1.0), steps=(0,), coef=0.0)
    kept = Tree(Part(kind="b", share=0.5))  # a preset's own value need not be read
    assert parse("--coef", "1", default=kept).part == kept.part


def test_help_shows_every_bound(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    out = capsys.readouterr().out
    for metavar in ("rows INT >= 1", "share None|0 < FLOAT <= 1", "steps [INT >= 0 ...]", "{a,b}"):
        assert metavar in out
    with pytest.raises(SystemExit):
        launch.main(["sentiment", "--help-all"])
    out = capsys.readouterr().out
    assert "--ppo.gamma 0 <= FLOAT <= 1" in out and "--seed 0 <= INT < 4294967296" in out


def test_in_python_the_class_is_named():
    with pytest.raises(ValueError, match=r"^PPOConfig.policy_clip = -1.0: it must be above 0$"):
        PPOConfig(policy_clip=-1.0)
    with pytest.raises(
        ValueError, match=r"^OptimizerConfig.lr = nan: it must be a finite number, a"
    ):
        dataclasses.replace(OptimizerConfig(), lr=math.nan)
    kinds = (Bound(ge=1), True, int), (Bound(), "1", float), (Bound(ge=1), 1.5, int)
    assert all(bound.wanted(value, kind) for bound, value, kind in kinds)


def test_nothing_is_left_unchecked_after_a_parse_that_fails():
    with pytest.raises(SystemExit):
        parse("--part.rows", "abc")
    with pytest.raises(ValueError, match=r"Part\.rows"):
        Part(rows=0)


def test_the_parts_of_a_rollout_are_named_by_the_settings_that_divide_it():
    cfg = PPOConfig(minibatches=2, microbatches=3)
    assert bounds.batch_parts("ppo", cfg, "batch_size", 24) == {
        "batch_size": 24,
        "batch_size / ppo.minibatches": 12,
        "batch_size / ppo.minibatches / ppo.microbatches": 4,
    }
    with pytest.raises(
        ValueError, match=r"^ppo.microbatches = 3 does not divide batch_size / ppo.minib"
    ):
        bounds.batch_parts("ppo", cfg, "batch_size", 16)
