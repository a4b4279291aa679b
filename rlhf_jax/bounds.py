"""Bounds of settings: declared beside each field, checked in one place, and printed by `--help`.

    @dataclass(frozen=True)
    class LoopConfig(Settings):
        steps: Count = 100
        rate: Annotated[float, Bound(gt=0, le=1)] = 0.5

    LoopConfig(steps=0)          ValueError: LoopConfig.steps = 0: it must be 1 or more

A `Settings` checks itself when it is created. The launcher creates a whole tree `unchecked` and then calls
`check` on its root, so that messages name a field as the command line does (`sft.steps`).
"""

import contextlib
import contextvars
import ctypes
import functools
import math
import numbers
import types
import typing
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple


class Bound(NamedTuple):
    """An interval of numbers, with ends > gt, >= ge, < lt and <= le.

    A float must be finite and is compared as float32, the type that devices use. An integer without an
    upper end must fit in an int32.
    """

    gt: int | float | None = None
    ge: int | float | None = None
    lt: int | float | None = None
    le: int | float | None = None

    def wanted(self, value: Any, kind: type) -> str:
        """The requirement that `value` fails, in words, for a number of `kind` (int or float); empty if it
        fails none."""
        upper = self.lt is not None or self.le is not None
        if kind is int:
            nature = "a whole number" if upper else f"a whole number below {2**31}"
            ok = isinstance(value, numbers.Integral) and (upper or abs(int(value)) < 2**31)
            x = int(value) if ok else 0
        else:
            nature, x = "a finite number", math.nan
            if isinstance(value, numbers.Real):
                x = ctypes.c_float(float(value)).value
            ok = math.isfinite(x)
        if isinstance(value, bool) or not ok:
            return f"{nature}, {self}" if str(self) else nature
        inside = (
            (self.gt is None or x > self.gt)
            and (self.ge is None or x >= self.ge)
            and (self.lt is None or x < self.lt)
            and (self.le is None or x <= self.le)
        )
        return "" if inside else str(self)

    def __str__(self):
        """The interval in a sentence: "above 0 and at most 1"."""
        if self.ge is not None and self.le is not None:
            return f"between {self.ge} and {self.le}"
        ends = ("above {}", self.gt), ("{} or more", self.ge), ("below {}", self.lt)
        return " and ".join(
            x.format(end) for x, end in (*ends, ("at most {}", self.le)) if end is not None
        )

    def metavar(self, kind: type) -> str:
        """The interval in `--help`: "0 < FLOAT <= 1"."""
        ends = {">": self.gt, ">=": self.ge, "<": self.lt, "<=": self.le}
        low, high = (
            [(sign, x) for sign, x in ends.items() if x is not None and sign[0] == side]
            for side in "><"
        )
        if low and not high:
            return f"{kind.__name__.upper()} {low[0][0]} {low[0][1]}"
        return " ".join(
            [f"{x} {sign.replace('>', '<')}" for sign, x in low]
            + [kind.__name__.upper()]
            + [f"{sign} {x}" for sign, x in high]
        )


Count = Annotated[int, Bound(ge=1)]
Whole = Annotated[int, Bound(ge=0)]
Integer = Annotated[int, Bound()]
Seed = Annotated[int, Bound(ge=0, lt=2**32)]
Positive = Annotated[float, Bound(gt=0)]
NonNegative = Annotated[float, Bound(ge=0)]
Finite = Annotated[float, Bound()]
Unit = Annotated[float, Bound(ge=0, le=1)]
Share = Annotated[float, Bound(gt=0, le=1)]
Inside = Annotated[float, Bound(gt=0, lt=1)]
Decay = Annotated[float, Bound(ge=0, lt=1)]

_unchecked = contextvars.ContextVar("unchecked", default=False)


class Settings:
    """Base class of every config: a dataclass that refuses values outside its fields' bounds.

    A class may name fields in tuples: `_main` for those that `--help` shows without `-all`, `_hidden` for
    those that no command line has, `_incidental` for those that change no result, so that a run goes on with
    others, and `_length` for the one that may grow when a finished run is lengthened. `_first` is the field
    that the first word of a command line sets without its name.
    """

    def __post_init__(self):
        if not _unchecked.get():
            _check_own(self, f"{type(self).__name__}.")

    def _conditions(self, at: str) -> None:
        """Raises ValueError for fields that do not fit each other; messages name fields as f"{at}FIELD"."""

    def _unread(self) -> dict[str, str]:
        """Fields without effect given the other fields' values, and the reasons: {dotted name: reason}."""
        return {}


@contextlib.contextmanager
def unchecked():
    """Context in which new settings are not checked; call `check` afterwards."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def check(cfg: Any, at: str = ""):
    """Raises ValueError for the first refused field of a tree of settings, by its dotted name."""
    for field in fields(cfg):
        if is_dataclass(getattr(cfg, field.name)):
            check(getattr(cfg, field.name), f"{at}{field.name}.")
    if isinstance(cfg, Settings):
        _check_own(cfg, at)


def check_unread(cfg: Any, default: Any, at: str = "") -> None:
    """Raises ValueError where a field differs from its default and has no effect."""
    of = lambda tree, name: functools.reduce(getattr, name.split("."), tree)
    for name, why in cfg._unread().items() if isinstance(cfg, Settings) else ():
        for leaf in _leaves(of(cfg, name), name):
            if of(cfg, leaf) != of(default, leaf):
                raise ValueError(
                    f"{at}{leaf} = {of(cfg, leaf)!r} has no effect because {why}: leave it out"
                )
    for field in kinds(type(cfg)):
        if is_dataclass(part := getattr(cfg, field)):
            check_unread(part, getattr(default, field), f"{at}{field}.")


def _leaves(x, name: str):
    """The dotted names of the fields below `x`, or its own."""
    if not is_dataclass(x):
        return [name]
    return [leaf for f in fields(x) for leaf in _leaves(getattr(x, f.name), f"{name}.{f.name}")]


@functools.cache
def kinds(cls) -> dict[str, Any]:
    """The annotation of each field of a config class, with its bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def check_divides(part: str, n: int, whole: str, rows: int):
    """Raises ValueError, naming both settings, where `n` does not divide `rows`."""
    if rows % n:
        raise ValueError(f"{part} = {n} does not divide {whole} = {rows}: choose a divisor")


def batch_parts(area: str, cfg: Any, whole: str, rows: int) -> dict[str, int]:
    """Rows of a rollout, a minibatch and a microbatch, by the settings of `area` that divide `whole`.

    Raises ValueError where `cfg.minibatches` or `cfg.microbatches` does not divide them.
    """
    found = {whole: rows}
    for part in ("minibatches", "microbatches"):
        n = getattr(cfg, part)
        check_divides(f"{area}.{part}", n, whole, rows)
        whole, rows = f"{whole} / {area}.{part}", rows // n
        found[whole] = rows
    return found


def _check_own(cfg: Any, at: str):
    for name, kind in kinds(type(cfg)).items():
        if want := wanted(kind, value := getattr(cfg, name)):
            raise ValueError(f"{at}{name} = {value!r}: {want}")
    cfg._conditions(at)


def wanted(kind, value) -> str:
    """The requirement that `value` fails as a field annotated with `kind`, in words; empty if it fails
    none."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and isinstance(args[1], Bound):
        said = args[1].wanted(value, args[0])
        return f"it must be {said}" if said else ""
    if origin in (typing.Union, types.UnionType):
        return "" if value is None else next((w for x in args if (w := wanted(x, value))), "")
    if origin is tuple:
        said = next((w for x in value if (w := wanted(args[0], x))), "")
        return said.replace("it must be", "each must be", 1)
    if origin is Literal and value not in args:
        return f"it must be {' or '.join(map(str, args))}"
    return ""


def metavar(kind) -> str:
    """The placeholder in `--help` for the values of a field annotated with `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return args[1].metavar(args[0]) if isinstance(args[1], Bound) else metavar(args[0])
    if origin in (typing.Union, types.UnionType):
        last = [x for x in args if x is types.NoneType]
        return "|".join(
            ["None"] * len(last) + [metavar(x) for x in args if x is not types.NoneType]
        )
    if origin is tuple:
        return f"[{metavar(args[0])} ...]"
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    return {bool: "{True,False}"}.get(kind, getattr(kind, "__name__", "VALUE").upper())
