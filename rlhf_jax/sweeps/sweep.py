"""Sweeps: the command line is accepted as a whole, then its runs are started here or on SLURM."""

import hashlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax

from rlhf_jax.devices import process
from rlhf_jax.runs import command_line, config_file, disk, identity, run
from rlhf_jax.runs.slurm import Slurm
from rlhf_jax.sweeps import cluster, grid, outcome, processes, sharing
from rlhf_jax.sweeps.grid import Asked, Job, SweepConfig


class Method(NamedTuple):
    """An experiment and the way to start it."""

    name: str
    what: str  # its name, or the path of its file
    default: Any  # settings
    prog: str  # its command, in messages
    folder: pathlib.Path  # from which a cluster starts it
    program: list[str]  # the launcher in that folder, as arguments of Python


class Sweep(NamedTuple):
    """A sweep whose settings have been accepted."""

    method: Method
    known: list[command_line.Setting]
    cfg: SweepConfig
    asked: Asked
    jobs: list[Job]
    folder: pathlib.Path


def start(method: Method, words: list[str], way: Slurm | None = None, *, is_grid: bool) -> int:
    """Runs a sweep here, or sends it to SLURM.

    Returns the exit code: 0 where every run has finished, 75 where runs were only stopped, 1 where one
    failed.
    """
    found = accepted(method, words, is_grid=is_grid)
    _begin(found, writes=way is None or not way.dry_run)
    codes = {}
    if way is not None:
        again = ["sweep"] * is_grid + [method.what, *_again(found), "--table-only"]
        place = cluster.Place(method.name, method.folder, ["python", *method.program])
        if cluster.send(way, place, method.what, found.jobs, found.folder, again):
            return 0
    elif not found.cfg.table_only:
        here = [str(method.folder / x) if x == "launch.py" else x for x in method.program]
        command = [*here, method.what]
        codes = processes.run_all(found.jobs, found.folder, command, found.cfg.jobs)
    about = sharing.in_words(method.name, found.jobs, [*found.asked.axes], _varies_all(found))
    fresh = [*found.asked.fixed, f"--seed={max(job.seed for job in found.jobs) + 1}"]
    outcome.conclude(
        found.jobs, found.folder, found.cfg, {x.name: x.flags for x in found.known}, about,
        again=[method.prog, *fresh], name=method.name,
    )  # fmt: skip
    failed = {name: code for name, code in codes.items() if code}
    if failed:
        said = f"{len(failed)} of {len(found.jobs)} runs did not finish ({', '.join(failed)})"
        print(f"error: {said}: the same command starts them again", file=sys.stderr)
    stopped = {*failed.values()} == {process.PREEMPTED}
    return process.PREEMPTED if stopped else int(bool(failed))


def accepted(method: Method, words: list[str], *, is_grid: bool) -> Sweep:
    """The sweep that a command line asks for.

    Raises ValueError, before anything runs, for what no run would accept, and SystemExit(2) for what is no
    setting.
    """
    default, prog = method.default, method.prog
    known = [*command_line.settings(type(default), default)]
    names = {x.name for x in known}
    if "run" not in identity.incidental(default):
        raise ValueError(f"{method.name} makes no run with results: sweep a method instead")
    asked = grid.divided(words, known)
    cfg = command_line.parse(SweepConfig, asked.own, prog=f"{process.command()} sweep")
    parse = lambda words: command_line.parse(type(default), words, prog=prog, default=default)
    if is_grid and not asked.axes:
        parse(asked.fixed)  # which refuses a misspelt one first
        raise ValueError(
            "no setting has several values: give one two or more, as --rl.kl-coef 0.02 0.05, or start "
            f"{prog} --seeds 3 for seeds alone"
        )
    if asked.axes and not is_grid:
        raise ValueError(
            f"--{next(iter(asked.axes))} has several values, and --seeds varies seeds alone: start "
            f"{process.command()} sweep {method.what}"
        )
    if cfg.seeds > 1 and "seed" not in names:
        raise ValueError(f"seeds = {cfg.seeds}: {method.name} has no setting seed, leave it out")
    jobs = grid.jobs_of(asked, cfg.seeds, known, parse)
    begun = getattr(jobs[0].cfg, "start_from", "")
    if cfg.seeds > 1 and begun and "rl.seed" not in names:
        raise ValueError(
            f'start_from = "{begun}" has stages of one seed, and seeds = {cfg.seeds} vary all stages of '
            f"{method.name}, which has no rl.seed: leave one out"
        )
    return Sweep(method, known, cfg, asked, jobs, _folder_of(method, cfg, asked))


def _varies_all(found: Sweep) -> bool:
    return "rl.seed" not in {x.name for x in found.known}


def _folder_of(method: Method, cfg: SweepConfig, asked: Asked) -> pathlib.Path:
    """The folder of a sweep: of one method, the settings of every run, and which are swept.

    Other values, and more seeds, stay in the same one, whose finished runs are kept.
    """
    if cfg.sweep_folder:
        run.check_folder("sweep_folder", cfg.sweep_folder)
        return pathlib.Path(cfg.sweep_folder)
    fixed = config_file.expanded(asked.fixed, method.default)
    left_out = {f"--{x.replace('_', '-')}" for x in identity.incidental(method.default)}
    told = [(head.replace("_", "-"), values) for head, _, values in grid.groups(fixed)]
    told = sorted(x for x in told if x[0] not in left_out)
    text = json.dumps([method.what, told, sorted(asked.axes)])
    return pathlib.Path("runs", "sweep", hashlib.sha256(text.encode()).hexdigest()[:10])


def _begin(found: Sweep, *, writes: bool) -> None:
    """Says what will run, and records it. Raises ValueError where the folder has runs of other settings."""
    # the runs take the accelerators, and this process none
    jax.config.update("jax_platforms", "cpu")
    record = found.folder / outcome.RECORD
    settings = {job.name: disk.plain(job.cfg) for job in found.jobs}
    old = disk.read_json(record) if record.exists() else {}
    if record.exists():
        _check_same(found, old, settings)
    axes = [f"{name} {', '.join(values)}" for name, values in found.asked.axes.items()]
    seeds = sorted({job.seed for job in found.jobs})
    each = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    each = ", each with ".join([*[" by ".join(axes)] * bool(axes), each])
    print(f"{found.method.name}, {len(found.jobs)} runs in {found.folder}: {each}")
    for line in sharing.in_words(
        found.method.name, found.jobs, [*found.asked.axes], _varies_all(found)
    ):
        print(line)
    sys.stdout.flush()
    if writes:
        known = {"experiment": found.method.name, "settings": old.get("settings", {}) | settings}
        disk.write_json(record, old | known)


def _check_same(found: Sweep, old: Any, settings: dict) -> None:
    place = f"sweep_folder = {str(found.folder)!r}"
    if not isinstance(old, dict) or not isinstance(old.get("settings"), dict):
        raise ValueError(f"{place} has a {outcome.RECORD} of something else: give another folder")
    if old.get("experiment") != found.method.name:
        raise ValueError(f"{place} has a sweep of {old.get('experiment')}: give another folder")
    defaults = identity.flat(disk.plain(type(found.method.default)()))
    left_out = identity.incidental(found.method.default)
    for name in (name for name in settings if name in old["settings"]):
        both = (defaults | identity.flat(x) for x in (old["settings"][name], settings[name]))
        there, here = ({k: v for k, v in x.items() if k not in left_out} for x in both)
        if changes := identity.differences(there, here):
            raise ValueError(
                f"{place} has {name} with other settings ({identity.in_words(changes)}): give another folder"
            )


def _again(found: Sweep) -> list[str]:
    """The words after METHOD that stand for this sweep, wherever they are given."""
    words = [*found.asked.fixed]
    for name, values in found.asked.axes.items():
        words += [f"--{name}", *values]
    words += ["--seeds", str(found.cfg.seeds), "--sweep-folder", str(found.folder.resolve())]
    return words + (["--measure", found.cfg.measure] if found.cfg.measure else [])
