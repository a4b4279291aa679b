"""The launcher: `python launch.py` in a checkout, or the command `rlhf-jax` of the installed package.

Without arguments it lists the experiments; EXPERIMENT --help explains the main settings. Repeating the
command of an unfinished run resumes it. `new NAME --from EXPERIMENT` writes NAME.py, a copy of an
experiment's file, which ./NAME.py starts like any other experiment.
"""

import ast
import contextlib
import difflib
import importlib
import importlib.util
import keyword
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import rlhf_jax
from rlhf_jax.devices import process
from rlhf_jax.devices.process import cut_at

HERE = pathlib.Path(__file__).resolve().parent
INSTALLED = HERE / "experiments"  # where a wheel puts them; a checkout has them beside the package
EXPERIMENTS = INSTALLED if INSTALLED.is_dir() else HERE.parent / "experiments"
HEADINGS = ("applications", "methods", "studies", "tools")
COLUMNS = 100
LAST = sys.maxsize


def start() -> None:
    """Runs this process's command line, then exits."""
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


class Place(NamedTuple):
    """The file of an experiment, its one-line description, and its position in the list."""

    path: pathlib.Path
    line: str
    order: int


def experiments(folder: pathlib.Path) -> dict[str, Place]:
    """File, description and position of each experiment in the folders of `folder`, by name, in listed
    order.

    A folder is a heading. Its files are sorted by the number `order` that they set, files without one last.
    Files are read and not imported, so listing is quick and works where an import would fail.
    """
    at = {name: i for i, name in enumerate(HEADINGS)}
    heading = lambda path: (at.get(path.parent.name, LAST), path.parent.name)
    found = [
        (path, name, place) for path in folder.glob("*/*.py") for name, place in read(path).items()
    ]
    found.sort(
        key=lambda x: (*heading(x[0]), x[2].order, x[0].stem)
    )  # keys of one file keep their order
    return {name: place for _, name, place in found}


def read(path: pathlib.Path) -> dict[str, Place]:
    """The experiments of one file, by name.

    A file that sets `config` is one experiment, with the file's name and its docstring's first line. A file
    that sets `configs`, a dictionary, is one experiment per key, described by a line ` KEY description` of
    its docstring.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    values = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        values |= {x.id: node.value for x in targets if isinstance(x, ast.Name)}  # type: ignore
    order = values.get("order")
    order = ast.literal_eval(order) if isinstance(order, ast.Constant) else LAST
    names = {path.stem: said.partition("\n")[0]} if "config" in values else {}
    if isinstance(several := values.get("configs"), ast.Dict):
        lines = dict(re.findall(r"^    (\w+)  +(.*)$", said, flags=re.MULTILINE)[::-1])
        keys = [ast.literal_eval(key) for key in several.keys if isinstance(key, ast.Constant)]
        names |= {key: lines.get(key, "") for key in keys}
    return {name: Place(path, line, order) for name, line in names.items()}


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
        return _refused(str(error), 2)
    if not args or args[0] in ("-h", "--help"):
        print(listing(known))
        return 0
    if args[0] == "--version":
        print(f"rlhf_jax {rlhf_jax.__version__}")
        return 0
    if args[0] == "new":
        return new(args[1:], known)
    explains = bool({"-h", "--help"} & {*theirs})  # the settings of a place to run in
    if not settings and not explains:
        return _refused(f"no experiment is named: {process.command()} lists all", 2)
    command, *settings = settings or ["EXPERIMENT"]
    if (plain := command.replace("-", "_")) in known:
        command = plain
    name, file = command, None if command in known else _file(command)
    if file:
        if not file.is_file():
            return _refused(f"there is no file {file}", 2)
        names, command = [*read(file)], str(file)
        if len(names) != 1:
            return _refused(
                f"{file} must set config, or configs with one key: it has {len(names)}", 2
            )
        name = names[0]
    elif name not in known and not (on and explains):
        return _refused(_unknown(name, known), 2)

    _set_cache()
    from rlhf_jax.runs import command_line, submit

    if on is not None and on not in submit.KINDS:
        return _refused(f"on = {on!r}: use {', '.join(submit.KINDS)}", 2)
    try:
        if on is not None and hosts_at is not None:
            raise ValueError(
                f'distributed = "{hosts_at}" conflicts with on = "{on}", whose processes join by '
                "themselves: leave it out"
            )
        prog = f"{process.command()} {command}"
        way = on and command_line.parse(submit.KINDS[on], theirs, prog=f"{prog} --on {on}")
        if planned is not None and (on or hosts_at):
            raise ValueError("--plan starts nothing anywhere: leave out --on and --distributed")
        if planned:
            process.imagine_devices(planned)
        if hosts_at is not None:
            _join(hosts_at)
        exp = load_file(file, name) if file else load(name, folder)
        if not os.environ.get("RLHF_JAX_TRACEBACK"):  # Orbax also logs the errors that it raises
            logging.getLogger("absl").setLevel(logging.CRITICAL)
        cfg = command_line.parse(
            type(exp.config), settings, prog=prog, default=exp.config, description=exp.description
        )
        if way:  # refused settings are never sent
            here, program = _self()
            what = str(file.resolve()) if file else name
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
        return _refused(said, 1)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes the run", file=sys.stderr)
        return 130
    return 0


def _set_cache() -> None:
    """Names the folder from which later runs reuse compiled programs; JAX reads it when it is imported.

    Never share this folder with other users, because JAX trusts its content.
    """
    with contextlib.suppress(RuntimeError):  # without a home folder there is no cache
        cache = pathlib.Path.home() / ".cache" / "rlhf_jax" / "jax"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


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


def listing(known: dict[str, Place]) -> str:
    """The experiments under the headings of their folders, one line each, and usage."""
    width, lines, heading = max(map(len, known), default=0), [], ""
    for name, (path, line, _) in known.items():
        if path.parent.name != heading:
            heading = path.parent.name
            lines += ["", heading.capitalize()]
        line = re.sub(r" \([^()]+, \d{4}\)\.?$", "", line)  # citations stay in the file
        room = COLUMNS - width - 4
        lines.append(f"  {name:{width}}  {textwrap.shorten(line, room, placeholder=' ...')}")
    command = process.command()
    return "\n".join([
        f"{command} EXPERIMENT [--setting value ...]",
        *lines,
        "",
        f"{command} EXPERIMENT --help explains the main settings, --help-all all of them.",
        f"{command} new NAME --from EXPERIMENT writes NAME.py, a copy to edit; ./NAME.py starts it.",
        "--config FILE takes settings from a run's config.json or from YAML; typed ones come after.",
        "--on slurm, tpu-vm or k8s runs the command there; --on slurm --help explains its settings.",
        "--plan starts nothing and says steps, tokens and memory; --plan-devices 8 imagines devices.",
        "--distributed auto (or HOST:PORT,PROCESSES,THIS-ONE) joins the processes of several hosts.",
    ])  # fmt: skip


def new(args: list[str], known: dict[str, Place]) -> int:
    """Writes NAME.py, a copy of an experiment's file, for `args` = NAME --from EXPERIMENT; returns the exit
    code."""
    from rlhf_jax.runs import copying

    command = process.command()
    rest, source, more = cut_at(args, "--from")
    names = [*rest, *more]
    if not source or len(names) != 1 or names[0].startswith("-"):
        return _refused(f"new needs a name and an experiment: {command} new NAME --from rloo", 2)
    name = names[0].removesuffix(".py")
    if source not in known:
        return _refused(_unknown(source, known), 2)
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        return _refused(
            f"NAME = {name!r} is no module name: use lower-case letters, digits and _, a letter first",
            2,
        )
    file = pathlib.Path(f"{name}.py")
    if os.path.lexists(file):
        return _refused(f"{file} already exists: choose another name", 1)
    if name in known or name == "new" or importlib.util.find_spec(name):
        return _refused(f"NAME = {name!r} is taken here or by a Python module: choose another", 2)
    try:
        text = copying.copy(known[source].path.read_text(encoding="utf-8"), source, name, command)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        return _refused(process.sentence(error, ".") or str(error), 1)
    print(f"{file} is a copy of {source}: {command} ./{file} --help")
    return 0


def _file(name: str) -> pathlib.Path | None:
    """The user's file that a name on the command line refers to, or None."""
    if name.endswith(".py") or os.sep in name:
        return pathlib.Path(name)
    file = pathlib.Path(f"{name}.py")
    return file if file.is_file() else None


def _unknown(name: str, known: dict[str, Place]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
    return f"there is no experiment {name!r}: {hint}"


def _refused(why: str, code: int) -> int:
    print(f"error: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    start()
