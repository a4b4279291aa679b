"""Which settings make two runs one, and how settings and contents differ.

A class of settings names beside its fields those that change no result, as `_incidental = ("run", "wandb")`,
and those whose larger value lengthens a finished run, as `_length = ("iterations",)`.
"""

import dataclasses
from typing import Any

RETIRED = ("model.logprob_chunk",)
"""Settings of earlier versions that changed no result."""


def current(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run's config.json without those that are `RETIRED`."""

    def kept(tree, at=""):
        if not isinstance(tree, dict):
            return tree
        return {x: kept(y, f"{at}{x}.") for x, y in tree.items() if f"{at}{x}" not in RETIRED}

    return kept(settings)


def incidental(cfg: Any, at: str = "") -> set[str]:
    """The dotted names of the settings that change no result, as the classes of the tree say."""
    own = {f"{at}{name}" for name in _named(cfg, "_incidental")}
    return own.union(*(incidental(part, f"{at}{name}.") for name, part in _parts(cfg)))


def lengths(cfg: Any, at: str = "") -> dict[str, str]:
    """The dotted names of the settings whose larger value lengthens a finished run, each with its schedule.

    That must be constant: no step before the old end depends on the length then.
    """
    own = {f"{at}{name}": f"{at}optimizer.schedule" for name in _named(cfg, "_length")}
    for name, part in _parts(cfg):
        own |= lengths(part, f"{at}{name}.")
    return own


def flat(tree, prefix="") -> dict[str, Any]:
    """Dotted names to values, lists whole."""
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {k: v for name, x in tree.items() for k, v in flat(x, f"{prefix}{name}.").items()}


def differences(there: dict, here: dict) -> dict[str, tuple]:
    """The settings that differ, each with both values; null and absent are the same."""
    names = (n for n in there | here if there.get(n) != here.get(n))
    return {n: (there.get(n, "absent"), here.get(n, "absent")) for n in names}


def in_words(changes: dict[str, tuple]) -> str:
    """`differences` as clauses."""
    return ", ".join(f"{n} is {old!r} there and {new!r} here" for n, (old, new) in changes.items())


def changes_of(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> str:
    """Differences between two `content`s, as clauses; empty where there are none."""
    said = []
    for setting in before | now:
        old, new = before.get(setting, {}), now.get(setting, {})
        for file in old | new:
            if file not in new:
                said.append(f"{file} of {setting} is gone")
            elif file not in old:
                said.append(f"{file} of {setting} is new")
            elif old[file] != new[file]:
                said.append(
                    f"{file} of {setting} has changed (sha256 {old[file][:12]} then, {new[file][:12]} now)"
                )
    more = f", and {len(said) - 3} more" if len(said) > 3 else ""
    return ", ".join(said[:3]) + more


def _named(cfg: Any, attribute: str) -> list[str]:
    """The fields that the class of `cfg`, or one that it inherits from, names in `attribute`."""
    return [name for cls in type(cfg).__mro__ for name in vars(cls).get(attribute, ())]


def _parts(cfg: Any) -> list[tuple[str, Any]]:
    names = (
        [field.name for field in dataclasses.fields(cfg)] if dataclasses.is_dataclass(cfg) else []
    )
    return [(n, getattr(cfg, n)) for n in names if dataclasses.is_dataclass(getattr(cfg, n))]
