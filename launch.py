"""Starts every run: python launch.py EXPERIMENT [--setting value ...]

Without arguments it lists the experiments; `python launch.py EXPERIMENT --help` explains the settings.
The same command on an unfinished run goes on where it was.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # a batch system stops a run whenever it likes, and is to hear 75 from the first line on
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        # glibc, which reads it as a process starts, then takes large arrays from huge pages: a step on the
        # CPU faults its memory in anew each time, and otherwise spends a fifth of its time in that
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # until it is heard again
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

    from rlhf_jax.devices import process

    process.make_streams_patient()
    process.exit_on_sigterm()
    process.check_columns()

import ast
import contextlib
import difflib
import importlib
import logging
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rlhf_jax.devices import process

EXPERIMENTS = pathlib.Path(__file__).resolve().parent / "experiments"


def experiments(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
    """The file and the first line of the description of each experiment below `folder`, by name.

    A file that sets `config` is one experiment, of its own name and its docstring's first line. One that sets
    `configs`, a dictionary, is one for each key, and its docstring has a line `    KEY   description` for it.
    Files are read and not imported: listing them is quick, and works where one of them would not.
    """
    found = {}
    for path in sorted(folder.glob("*/*.py")):
        tree = ast.parse(path.read_text())
        said = ast.get_docstring(tree) or ""
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if "config" in names:
                found[path.stem] = path, said.partition("\n")[0]
            value = getattr(node, "value", None)
            if "configs" in names and isinstance(value, ast.Dict):
                lines = dict(re.findall(r"^    (\w+)  +(.*)$", said, flags=re.MULTILINE)[::-1])
                keys = [key.value for key in value.keys if isinstance(key, ast.Constant)]
                found |= {key: (path, lines.get(key, "")) for key in keys}
    return found


class Experiment(NamedTuple):
    """The default settings of an experiment, its `main(cfg)`, and the docstring of its file."""

    config: Any
    main: Callable
    description: str


def load(name: str, folder: pathlib.Path = EXPERIMENTS) -> Experiment:
    """The experiment of that name; its file is imported."""
    path, _ = experiments(folder)[name]
    module = importlib.import_module(f"{folder.name}.{path.parent.name}.{path.stem}")
    if hasattr(module, "configs"):
        main = lambda cfg: module.main(cfg, name)
        return Experiment(module.configs[name], main, module.__doc__ or "")
    return Experiment(module.config, module.main, module.__doc__ or "")


def cut_at(settings: list[str], option: str) -> tuple[list[str], str | None, list[str]]:
    """(what stands before `option`, its value, what follows), of `option VALUE` or `option=VALUE`.

    The value is None where it is not given, and empty where nothing, or another option, follows.
    """
    for at, word in enumerate(settings):
        if word == option:
            value = "".join(settings[at + 1 : at + 2])
            value = "" if value.startswith("--") else value
            return settings[:at], value, settings[at + 1 + bool(value) :]
        if word.startswith(f"{option}="):
            return settings[:at], word.partition("=")[2], settings[at + 1 :]
    return settings, None, []


def main(args: list[str], folder: pathlib.Path = EXPERIMENTS) -> int:
    """Runs `args`, an experiment and its settings, and returns the exit code.

    0: done; 1: the input is not as it has to be; 2: no such experiment or setting; 75: preempted and
    saved, or another process was lost; 130: interrupted.
    """
    known = experiments(folder)
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, known), default=0)
        print("python launch.py EXPERIMENT [--setting value ...]\n")
        for name, (_, line) in known.items():
            print(f"  {name:{width}}  {line}")
        print("\npython launch.py EXPERIMENT --help explains its settings.")
        print("--on slurm, tpu-vm or k8s sends the command there; --on slurm --help explains.")
        print(
            "--distributed auto (or HOST:PORT,PROCESSES,THIS-ONE) joins the processes of several hosts."
        )
        return 0
    name, *settings = args
    settings, on, theirs = cut_at(settings, "--on")
    settings, hosts_at, more = cut_at(settings, "--distributed")  # JAX wants it before all else
    settings += more
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
        print(f"error: there is no experiment {name!r}: {hint}", file=sys.stderr)
        return 2

    # JAX reads these as it is imported, which the experiment does. What was compiled once is then
    # read by the next run; never share this folder, for JAX trusts what it finds there.
    with contextlib.suppress(RuntimeError):  # who has no home has no cache
        cache = pathlib.Path.home() / ".cache" / "rlhf_jax" / "jax"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    from rlhf_jax.runs import command_line, submit

    if on is not None and on not in submit.KINDS:
        print(f"error: on = {on!r}: use {', '.join(submit.KINDS)}", file=sys.stderr)
        return 2
    if hosts_at is not None:
        from rlhf_jax.devices import hosts
    try:
        if on is not None and hosts_at is not None:
            raise ValueError(
                f'distributed = "{hosts_at}" beside on = "{on}", whose processes join by themselves: '
                "leave it out"
            )
        prog = f"launch.py {name}"
        way = on and command_line.parse(submit.KINDS[on], theirs, prog=f"{prog} --on {on}")
        if hosts_at is not None:
            hosts.meet(hosts_at)
            # which JAX has taken for itself
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
            if not hosts.is_first():
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        exp = load(name, folder)
        if not os.environ.get("RLHF_JAX_TRACEBACK"):  # Orbax logs there what it raises too
            logging.getLogger("absl").setLevel(logging.CRITICAL)
        cfg = command_line.parse(
            type(exp.config), settings, prog=prog, default=exp.config, description=exp.description
        )
        if way:  # only with settings that are not refused here
            command = ["python", "launch.py", name, *settings]
            return submit.send(way, name, command, pathlib.Path(__file__).resolve().parent)
        exp.main(cfg)
    except Exception as error:
        if hosts_at is not None and hosts.is_loss(error):
            why = str(error).strip().splitlines()[0]
            print(f"error: another process of this run was lost ({why})", file=sys.stderr)
            print(
                "start the same command on all hosts again: it goes on", file=sys.stderr, flush=True
            )
            os._exit(hosts.LOST_CODE)  # and do not wait for it, as JAX would
        run = sys.modules.get("rlhf_jax.runs.run")
        said = process.sentence(error, run.opened() if run else "the disk")
        if said is None and isinstance(error, ValueError):
            said = str(error)
        if said is None or os.environ.get("RLHF_JAX_TRACEBACK"):
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code == 1:  # what a failed save has left to do would only fail again, at length
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
