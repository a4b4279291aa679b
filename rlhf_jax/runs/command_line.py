"""Settings of a command line: parsed by tyro, whose `--help` prints their bounds, and then checked."""

import contextlib
import dataclasses
from typing import Annotated, Any

import tyro

from rlhf_jax import bounds


def parse(cls: type, args: list[str], *, prog: str, default: Any = None, description=None) -> Any:
    """A `cls` with the settings of `args` over those of `default`.

    Raises ValueError, by the dotted name of the setting, for a value out of its bounds, for values that do
    not fit each other, and for one that differs from `default`'s and has no effect. Raises SystemExit(2)
    for what is no setting, or no number.
    """
    given = {} if default is None else {"default": default}
    with bounds.unchecked(), _with_bounds():
        cfg = tyro.cli(cls, args=args, prog=prog, description=description, **given)
    bounds.check(cfg)
    if default is not None:
        bounds.check_unread(cfg, default)
    return cfg


@contextlib.contextmanager
def _with_bounds():
    """Inside, tyro shows a field that has a bound as `bounds.metavar` does."""
    registry, busy = tyro.constructors.ConstructorRegistry(), []

    def shown(kind):
        said = bounds.metavar(kind)
        return kind if said is None else Annotated[kind, tyro.conf.arg(metavar=said)]

    @registry.struct_rule
    def rule(info):
        if busy or not dataclasses.is_dataclass(info.type):
            return None
        busy.append(info)
        try:
            spec: Any = registry.get_struct_spec(info)  # tyro's own
        finally:
            busy.pop()
        fields = [dataclasses.replace(field, type=shown(field.type)) for field in spec.fields]
        return dataclasses.replace(spec, fields=tuple(fields))

    with registry:
        yield
