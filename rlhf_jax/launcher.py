"""The launcher: `python launch.py` in a checkout, or the command `rlhf-jax` of the installed package.

Without arguments it lists the experiments; EXPERIMENT --help explains the main settings. Repeating the
command of an unfinished run resumes it. `new NAME --from EXPERIMENT` writes NAME.py, a copy of an
experiment's file, which ./NAME.py starts like any other experiment. `sweep EXPERIMENT` runs it under
several values of its settings, and `EXPERIMENT --seeds N` with several seeds.
"""

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import rlhf_jax
from rlhf_jax.devices import process
from rlhf_jax.devices.process import cut_at, refused
from rlhf_jax.runs import copying
from rlhf_jax.runs.listing import Place, experiments, listing, read, unknown

HERE = pathlib.Path(__file__).resolve().parent
INSTALLED = HERE / "experiments"  # where a wheel puts them; a checkout has them beside the package
EXPERIMENTS = INSTALLED if INSTALLED.is_dir() else HERE.parent / "experiments"
HELP = {"-h", "--help", "--help-all"}
FURTHER = "[--seeds N] (sweep --help: several values)"  # of runs with results to compare


def start() -> None:
    """Runs this process's command line, then exits."""
    gc.set_threshold(20_000, 20, 50)  # traced programs are many objects that live for long
    # a batch system may stop a run at any time, and must get exit code 75 from the first line on
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # glibc reads this at process start and then allocates large arrays in huge pages: each step on the
        # CPU faults its memory in again, which otherwise takes a fifth of the time
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        signal.pthread_sigmask(
            signal.SIG_BLOCK, [signal.SIGTERM]
        )  # until the new process unblocks it
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    process.make_streams_patient()
    process.exit_on_sigterm()
    process.check_columns()
    code = main(sys.argv[1:])
    if code == 1:  # the exit handlers of a failed save would only fail again, slowly
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class Experiment(NamedTuple):
    """Default settings of an experiment, its `main(cfg)`, and its file's docstring."""

    config: Any
    main: Callable
    description: str


def load(name: str, folder: pathlib.Path = EXPERIMENTS) -> Experiment:
    """Imports the experiment of that name."""
    path = experiments(folder)[name].path
    package = "rlhf_jax.experiments" if folder == INSTALLED else folder.name
    return _of(importlib.import_module(f"{package}.{path.parent.name}.{path.stem}"), name)


def load_file(path: pathlib.Path, name: str) -> Experiment:
    """Imports the experiment of that name from a user's file, in a way that worker processes can repeat.

    Raises ValueError where another module has the file's name.
    """
    sys.path.append(str(path.resolve().parent))
    module = importlib.import_module(path.stem)
    if not path.samefile(module.__file__ or ""):
        raise ValueError(f"{path} has the name of a Python module ({path.stem}): rename the file")
    return _of(module, name)


def _of(module, name: str) -> Experiment:
    if hasattr(module, "configs"):
        main = lambda cfg: module.main(cfg, name)
        return Experiment(module.configs[name], main, module.__doc__ or "")
    return Experiment(module.config, module.main, module.__doc__ or "")


def main(args: list[str], folder: pathlib.Path = EXPERIMENTS) -> int:
    """Runs `args`, an experiment and its settings, and returns the exit code.

    0: done; 1: refused input; 2: unknown experiment or setting; 75: preempted and saved, or another process
    was lost; 130: interrupted.
    """
    known = experiments(folder)
    settings, on, theirs = cut_at(args, "--on")
    settings, hosts_at, more = cut_at(settings, "--distributed")  # needed before any use of JAX
    settings += more
    try:
        settings, planned = process.cut_plan(settings)
    except ValueError as error:
        return refused(str(error), 2)
    if not args or args[0] in ("-h", "--help"):
        print(listing(known))
        return 0
    if args[0] == "--version":
        print(f"rlhf_jax {rlhf_jax.__version__}")
        return 0
    if args[0] == "new":
        return copying.new(args[1:], known)
    explains = bool({"-h", "--help"} & {*theirs})  # the settings of a place to run in
    if is_grid := args[0] == "sweep":
        settings = settings[1:]
        if HELP & {*settings}:
            from rlhf_jax.sweeps import grid

            print(grid.explained())
            return 0
        if not explains and (not settings or settings[0].startswith("-")):
            return refused(f"sweep names no experiment: {process.command()} sweep --help", 2)
    if not settings and not explains:
        return refused(f"no experiment is named: {process.command()} lists all", 2)
    command, *settings = settings or ["EXPERIMENT"]
    name, file, refusal = _meant(command, known)
    if refusal and not (on and explains and not file):
        return refused(refusal, 2)
    command = str(file or name)

    _set_cache()
    from rlhf_jax.runs import command_line, submit

    if on is not None and on not in submit.KINDS:
        return refused(f"on = {on!r}: use {', '.join(submit.KINDS)}", 2)
    try:
        if on is not None and hosts_at is not None:
            raise ValueError(
                f'distributed = "{hosts_at}" conflicts with on = "{on}", whose processes join by '
                "themselves: leave it out"
            )
        if is_grid:
            _check_place(on, hosts_at, planned)
        prog = f"{process.command()} {command}"
        way = command_line.parse(submit.KINDS[on], theirs, prog=f"{prog} --on {on}") if on else None
        if planned is not None and (on or hosts_at):
            raise ValueError("--plan starts nothing anywhere: leave out --on and --distributed")
        if planned:
            process.imagine_devices(planned)
        if hosts_at is not None:
            _join(hosts_at)
        exp = load_file(file, name) if file else load(name, folder)
        if not os.environ.get("RLHF_JAX_TRACEBACK"):  # Orbax also logs the errors that it raises
            logging.getLogger("absl").setLevel(logging.CRITICAL)
        what = str(file.resolve()) if file else name
        if _asks_for_runs(settings, exp, is_grid):
            _check_place(on, hosts_at, planned)
            from rlhf_jax.sweeps import sweep

            method = sweep.Method(name, what, exp.config, prog, *_self())
            return sweep.start(method, settings, way, is_grid=is_grid)
        cfg = command_line.parse(
            type(exp.config),
            settings,
            prog=prog,
            default=exp.config,
            description=exp.description,
            further=FURTHER if hasattr(exp.config, "start_from") else "",
        )
        if way:  # refused settings are never sent
            here, program = _self()
            return submit.send(way, name, ["python", *program, what, *settings], here)
        if planned is not None:
            from rlhf_jax.pipeline import plan

            return plan.show(name, exp.main, cfg, planned)
        exp.main(cfg)
    except Exception as error:
        if hosts_at is not None:
            _exit_where_lost(error)
        said = _sentence(error)
        if said is None or os.environ.get("RLHF_JAX_TRACEBACK"):
            raise
        return refused(said, 1)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes the run", file=sys.stderr)
        return 130
    return 0


def _meant(command: str, known: dict[str, Place]) -> tuple[str, pathlib.Path | None, str]:
    """(name of the experiment, its file if it is a user's, refusal of what is none)."""
    if (plain := command.replace("-", "_")) in known:
        return plain, None, ""
    if command in known:
        return command, None, ""
    if not (file := _file(command)):
        return command, None, unknown(command, known)
    if not file.is_file():
        return command, file, f"there is no file {file}"
    names = [*read(file)]
    if len(names) != 1:
        return (
            command,
            file,
            f"{file} must set config, or configs with one key: it has {len(names)}",
        )
    return names[0], file, ""


def _check_place(on: str | None, hosts_at: str | None, planned: str | None) -> None:
    """Raises ValueError where several runs cannot be started."""
    if planned is not None:
        raise ValueError("--plan is about one run, and several are asked for: leave it out")
    if hosts_at is not None or on not in (None, "slurm"):
        place = f'distributed = "{hosts_at}"' if on is None else f'on = "{on}"'
        raise ValueError(f"{place} takes one run, and several are asked for: use --on slurm")


def _asks_for_runs(settings: list[str], exp: Experiment, is_grid: bool) -> bool:
    """True for a sweep, and for --seeds of an experiment without a setting of that name."""
    given = any(word.partition("=")[0] == "--seeds" for word in settings)
    return is_grid or (given and not HELP & {*settings} and not hasattr(exp.config, "seeds"))


def _set_cache() -> None:
    """Names the folder from which later runs reuse compiled programs; JAX reads it when it is imported.

    Never share this folder with other users, because JAX trusts its content.
    """
    with contextlib.suppress(RuntimeError):  # without a home folder there is no cache
        cache = pathlib.Path.home() / ".cache" / "rlhf_jax" / "jax"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _join(hosts_at: str) -> None:
    """Joins the processes of several hosts, of which the first alone prints."""
    from rlhf_jax.devices import hosts

    hosts.meet(hosts_at)
    # JAX has installed its own handler
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    if not hosts.is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _self() -> tuple[pathlib.Path, list[str]]:
    """The folder from which a command is sent, and the launcher there, as arguments of Python."""
    if (HERE.parent / "launch.py").is_file():
        return HERE.parent, ["launch.py"]
    return pathlib.Path.cwd(), ["-m", "rlhf_jax.launcher"]


def _exit_where_lost(error: Exception) -> None:
    """Ends this process, without JAX's wait, where the error says that another process was lost."""
    from rlhf_jax.devices import hosts

    if hosts.is_loss(error):
        why = str(error).strip().splitlines()[0]
        print(f"error: another process of this run was lost ({why})", file=sys.stderr)
        print("start the same command on all hosts to resume the run", file=sys.stderr, flush=True)
        os._exit(hosts.LOST_CODE)


def _sentence(error: Exception) -> str | None:
    """The error in one sentence, if it is of the system or of the user's input."""
    run = sys.modules.get("rlhf_jax.runs.run")
    said = process.sentence(error, run.opened() if run else "the disk")
    return str(error) if said is None and isinstance(error, ValueError) else said


def _file(name: str) -> pathlib.Path | None:
    """The user's file that a name on the command line refers to, or None."""
    if name.endswith(".py") or os.sep in name:
        return pathlib.Path(name)
    file = pathlib.Path(f"{name}.py")
    return file if file.is_file() else None


if __name__ == "__main__":
    start()
