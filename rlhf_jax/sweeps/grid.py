"""Sweeps: a method under several values of its settings, each with several seeds, and their comparison.

    python launch.py sweep rloo --rl.kl-coef 0.02 0.05 0.1 --seeds 3
    python launch.py rloo --seeds 3

A setting with several values is swept, and several such settings make a grid; a setting that takes a list
takes it whole, and on/off settings are swept as --NAME on off. --on slurm sends the runs to a cluster. The
same command goes on where it was, and more values or seeds are added to what has finished.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_jax.bounds import Count, Settings
from rlhf_jax.devices import process
from rlhf_jax.runs import command_line
from rlhf_jax.runs.command_line import Setting

ON_OFF = "on", "off"


@dataclass(frozen=True)
class SweepConfig(Settings):
    """Settings of a sweep, beside those of its method."""

    seeds: Count = 1
    """Seeds of each combination of values, counted from --seed on."""
    jobs: Count = 1
    """Runs at the same time, each a process. They share the CPU cores, and each needs GPUs of its own."""
    sweep_folder: str = ""
    """Folder of the runs and of their table; empty: runs/sweep/HASH-OF-SETTINGS."""
    measure: str = ""
    """Result to compare, by its name in results.json (kl, gold); empty: gold, else the score of the held-out
    reward model, else the maximised reward."""
    table_only: bool = False
    """Make the table and the picture from the runs that have finished, and start none."""


OWN = [*command_line.settings(SweepConfig, SweepConfig())]


def explained() -> str:
    """The help of `sweep`."""
    prog = f"{process.command()} sweep EXPERIMENT"
    return command_line.explained(OWN, prog, __doc__ or "", True)


class Asked(NamedTuple):
    """A command line in its parts, each of words."""

    own: list[str]  # settings of the sweep itself
    fixed: list[str]  # settings of every run
    axes: dict[str, tuple[str, ...]]  # settings with several values


def divided(words: Sequence[str], known: Sequence[Setting]) -> Asked:
    """The settings of the sweep, those of every run, and those with several values.

    A setting that takes a list takes all its values as one. A method's own setting goes before a sweep's of
    that name. Words that are no settings are left to the parser, which refuses them. Raises ValueError for an
    axis that is given twice, has a value twice, or is a run's folder.
    """
    theirs = {flag: x for x in known for flag in x.flags}
    ours = {flag: x for x in OWN for flag in x.flags if flag not in theirs}
    asked, given = Asked([], [], {}), []
    for head, words_of_it, values in groups(words):
        flag = head.replace("_", "-")
        setting = theirs.get(flag)
        if flag in ours:
            asked.own.extend(words_of_it)
            continue
        if setting is None or not _is_axis(setting, values):
            asked.fixed.extend(words_of_it)
        else:
            asked.axes[setting.name] = tuple(values)
        given += [setting.name] if setting else []
        _check_axis(head, setting, asked.axes, given)
    return asked


def groups(words: Sequence[str]):
    """(option, its words, its values) of each option; words before the first have an empty one."""
    groups = []
    for word in words:
        if word.startswith("--") or not groups:
            head, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            groups.append((head, [word], [value] if equals else []))
        else:
            groups[-1][1].append(word)
            groups[-1][2].append(word)
    return groups


def _is_axis(setting: Setting, values: list[str]) -> bool:
    if not setting.metavar:  # on or off
        return len(values) > 1 and {*values} <= {*ON_OFF}
    return len(values) > 1 and "[" not in setting.metavar


def _check_axis(head: str, setting: Setting | None, axes: dict, given: list[str]):
    name = setting.name if setting else ""
    if name == "run":
        raise ValueError(
            f"{head} names one folder, and each run of a sweep has its own: use --sweep-folder"
        )
    if name in axes and given.count(name) > 1:
        raise ValueError(f"{head} is given twice: give all its values at once")
    for value in axes.get(name, ()):
        if axes[name].count(value) > 1:
            raise ValueError(f"{head} has the value {value} twice: leave one out")


class Job(NamedTuple):
    """One run of a sweep."""

    name: str  # its folder below the sweep's
    cell: dict[str, str]  # values of the axes, as they were typed
    seed: int
    nth: int  # of the seeds
    words: list[str]  # settings
    cfg: Any


def jobs_of(
    asked: Asked, seeds: int, known: Sequence[Setting], parse: Callable[[list[str]], Any]
) -> list[Job]:
    """A run for each combination of values and each seed, seeds last, whose settings `parse` has accepted.

    A seed is `rl.seed` where the method has it, so that shared stages are one, else `seed`. Raises ValueError
    for settings that `parse` refuses, and for two combinations that are the same settings.
    """
    flags = {x.name: x.flags for x in known}
    cells = [dict(zip(asked.axes, x, strict=True)) for x in itertools.product(*asked.axes.values())]
    jobs = []
    for cell in cells:
        words = asked.fixed + [word_of(flags[name], value) for name, value in cell.items()]
        first = parse(words)
        for n in range(seeds):
            seed, more = _seeded(first, n, flags)
            cfg = parse(words + more) if more else first
            name = "_".join([*(f"{k}={v}" for k, v in cell.items()), f"seed={seed}"])
            jobs.append(Job(_plain(name), cell, seed, n, words + more, cfg))
    for a, b in itertools.combinations(jobs, 2):
        if a.cfg == b.cfg:
            raise ValueError(f"{a.name} and {b.name} are one run, of equal settings: leave one out")
    return jobs


def varies_rl_alone(known: Sequence[Setting]) -> bool:
    """True where a method has a seed of its reinforcement learning alone."""
    return "rl.seed" in {x.name for x in known}


def word_of(flags: tuple[str, ...], value: str) -> str:
    """The word of a command line that gives a setting, of these flags, a value of an axis."""
    if len(flags) == 2:  # on and off
        return flags[ON_OFF.index(value)]
    return f"{flags[0]}={value}"


def _seeded(cfg: Any, n: int, flags: dict[str, Any]) -> tuple[int, list[str]]:
    """The number of the n-th seed, and the words that set it."""
    if "rl.seed" in flags:
        start = cfg.seed if cfg.rl.seed is None else cfg.rl.seed
        return start + n, [f"--rl.seed={start + n}"] * (n > 0)
    start = getattr(cfg, "seed", 0)
    return start + n, [f"--seed={start + n}"] * (n > 0)


def _plain(name: str) -> str:
    """A name for a folder: a short one of letters, digits and . = + - _ that is told from all others."""
    plain = re.sub(r"[^\w.=+-]", "-", name, flags=re.ASCII)
    if plain == name and len(name) <= 100:
        return name
    return f"{plain[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
