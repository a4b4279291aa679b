"""Speed and memory beside peers, measured in one run; a table, and JSON.

    python -m bench NAME [--model tiny small gpt2] [--peer torch trl ...]     one work
    python -m bench all                                                       every work, against the targets
    python -m bench accelerator | growth | population | reading | trl_ppo [--help]       measured apart
    python -m bench gate                                                      costs of compiled programs

Works: generate, sample, ragged, reward, sft, dpo, grpo, ppo, shared (one trunk for policy and critic, beside
two), packed (SFT on ragged texts packed into rows, beside one a row), start. Each side is a process of its
own; after a warm-up they take turns, pinned to one core and then to both. Outputs are compared too, and a
check that fails is told. `ratio` is how many times as fast as the peer we are, pair by pair; `of matmul` the
share of this machine's own matrix product that the operations of `works.operations` come to.

Peers have environments of their own, in the folder `--envs` (tunix by Python 3.12, where it needs no more):

    for peer in transformers trl trl112 tunix; do
        python -m venv .bench/$peer && .bench/$peer/bin/pip install -r bench/requirements-$peer.txt
    done
    .bench/trl112/bin/pip install --no-deps trl==1.12.0

Where there is no GPU, take torch's CPU wheel. The project itself is installed where this command runs.
"""

import importlib
import json
import pathlib
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

import tyro
from rich.console import Console
from rich.table import Table

from bench import measure, start, works
from bench.measure import Side, compare
from bench.peers import OURS, PEERS, interpreter
from bench.targets import TARGETS, Target
from rlhf_jax.bounds import Count, NonNegative, Settings

APART = {
    **{
        name: f"bench.{name}" for name in ("accelerator", "gate", "growth", "population", "reading")
    },
    "trl_ppo": "bench.replication.trl_ppo",
}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the measurement."""

    name: tyro.conf.Positional[str]
    """A work, or all."""
    model: tuple[str, ...] = ("tiny", "small")
    """tiny (0.7M), small (27.7M), gpt2 (124M)."""
    peer: tuple[str, ...] = ()
    """bare, transformers, torch, trl, trl112, tunix; empty: all that do the work."""
    envs: pathlib.Path = pathlib.Path(".bench")
    """The folder of the peers' environments."""
    out: pathlib.Path = pathlib.Path("runs/bench")
    """The folder of NAME.json, the models and the logs."""
    cores: tuple[Count, ...] = (1, 2)
    """On how many cores, one after another: the first that this process may run on (taskset says which)."""
    pairs: Count = 5
    """Least pairs of a measurement."""
    seconds: NonNegative = 4.0
    """More pairs are taken until they took this long."""

    def _conditions(self, at: str):
        for name, given, known in [
            ("name", [self.name], ["all", *works.WORKS]),
            ("model", self.model, works.MODELS),
            ("peer", self.peer, PEERS),
        ]:
            for x in given:
                if x not in known:
                    raise ValueError(f"{name} = {x!r}: use {', '.join(known)}")


def measured(cfg: Config, name: str, model: str) -> Iterator[dict]:
    """A row for each number of cores and each peer."""
    from bench import models  # JAX is not needed to tell what is missing

    work, shape = works.WORKS[name], works.MODELS[model]
    folder = (cfg.out / "models" / model).absolute()
    models.make(shape, folder)
    if name == "start":
        yield from start.measured(cfg, work, model, folder)
        return
    asked = {"name": name, "folder": str(folder), "work": asdict(work)}
    for count in cfg.cores:
        cores = measure.cores()[:count]
        log = lambda who: cfg.out / "logs" / f"{name}-{model}-{count}-{who}.log"  # noqa: B023
        ours = Side([sys.executable, "-m", OURS], asked, cores, log("ours"))
        first = ours.warm()
        for peer in cfg.peer or work.peers:
            if peer not in work.peers:
                continue
            row = {"work": name, "model": model, "peer": peer, "cores": len(cores), "first": first}
            try:
                command = [interpreter(peer, cfg.envs), "-m", PEERS[peer][1]]
                its = asked | {"name": work.beside or name}
                with Side(command, its, cores, log(peer)) as side:
                    row["peer_first"] = side.warm()
                    row |= compare(ours, side, work, cfg.pairs, cfg.seconds)
            except (ValueError, RuntimeError) as error:
                row["missing"] = str(error)
            row["rate"] = ours.ask("rate")["rate"]
            done = (works.operations(x, work, shape) for x in (name, work.beside or name))
            row["operations"], row["their_operations"] = done
            yield row
        ours.close()


def table(rows: list[dict]) -> Table:
    """What was measured."""
    names = (
        "work",
        "model",
        "cores",
        "peer",
        "ours",
        "peer's",
        "CPU s",
        "peak MB",
        "ratio",
        "range",
    )
    shown = Table(*names, "of matmul", "same", title=f"{platform.machine()}, {date()}")
    for row in rows:
        about = (row["work"], row["model"], str(row["cores"]), row["peer"])
        if "missing" in row:
            shown.add_row(*about, speed(row["ours"]) if "ours" in row else "-", "-")
            continue
        sides = row["ours"], row["theirs"]
        both = lambda text: " / ".join(text(side) for side in sides)  # noqa: B023
        done = zip((row["operations"], row["their_operations"]), sides, strict=True)
        share = " / ".join(f"{n / side['wall'] / row['rate']:.0%}" for n, side in done if n)
        same = {True: "yes", False: "[red]FAILED[/red]", None: ""}[row.get("same")]
        shown.add_row(
            *about,
            *(speed(side) for side in sides),
            both(lambda side: f"{side['cpu']:.2f}"),
            both(lambda side: f"{side['peak'] / 1e6:.0f}"),
            f"{row['ratio']:.2f}",
            f"{row['least']:.2f} to {row['most']:.2f}",
            share,
            same,
        )
    return shown


def speed(side: dict) -> str:
    """Milliseconds, and tokens a second where the work makes any."""
    rate = f", {side['rate']:.0f} tokens/s" if side["rate"] * side["wall"] > 1.5 else ""
    return f"{side['wall'] * 1000:.4g} ms{rate}"


def of_work(name: str) -> list[Target]:
    """The targets of a work."""
    return [target for target in TARGETS if target.work == name]


def against(rows: list[dict], targets: Sequence[Target]) -> Table:
    """Measured against the targets, on one core (the start on all of them)."""
    shown = Table("work", "model", "peer", "target", "measured", "", title="what is to be reached")
    for target in targets:
        found = [row for row in rows if matches(row, target)]
        about = (target.work, target.model, target.peer, str(target))
        if not found:
            shown.add_row(*about, "-", "not measured")
            continue
        met = "[green]met[/green]" if target.met(found[0]) else "[red]missed[/red]"
        shown.add_row(*about, f"{target.of(found[0]):.2f}", met)
    return shown


def matches(row: dict, target: Target) -> bool:
    """Whether the row tells of the target."""
    if (row["work"], row["model"]) != (target.work, target.model):
        return False
    if target.work == "start":  # ours alone, which needs no peer
        return target.what in row.get("ours", {})
    return "missing" not in row and row["peer"] == target.peer and row["cores"] == 1


def date() -> str:
    """Today."""
    return time.strftime("%Y-%m-%d")


def main(cfg: Config):
    """Measures, prints the tables and writes the JSON, which holds what was measured so far."""
    cfg.out.mkdir(parents=True, exist_ok=True)
    names, rows = list(works.WORKS) if cfg.name == "all" else [cfg.name], []
    versions = {x: metadata.version(x) for x in ("jax", "jaxlib", "flax", "numpy")}
    for name in names:
        for model in cfg.model if name != "start" else ["tiny"]:
            for row in measured(cfg, name, model):
                rows.append(row)
                told = {"date": date(), "versions": versions, "rows": rows}
                (cfg.out / f"{cfg.name}.json").write_text(json.dumps(told, indent=1))
                about = f"{name}, {model}, {row['peer']}, cores {row['cores']}"
                if "missing" in row:
                    print(f"{about}: not measured: {row['missing']}", flush=True)
                else:
                    print(f"{about}: ratio {row['ratio']:.2f}", flush=True)
                if row.get("same") is False:
                    print(f"{about}: CHECK FAILED: {row['why']}", flush=True)
    if not rows:
        raise ValueError(
            f"{', '.join(cfg.peer)} does not do {cfg.name}: {', '.join(works.WORKS[cfg.name].peers)} do"
        )
    console = Console(width=max(Console().width, 150))
    console.print(table(rows))
    console.print(against(rows, TARGETS if cfg.name == "all" else of_work(cfg.name)))


def cli(args: list[str]) -> int:
    """Runs `args`; 1 where the input is not as it has to be."""
    try:
        if args and args[0] in APART:
            apart = importlib.import_module(APART[args[0]])
            prog = f"python -m bench {args[0]}"
            cfg = tyro.cli(apart.Config, args=args[1:], prog=prog, description=apart.__doc__)
            return apart.main(cfg) or 0
        else:
            main(tyro.cli(Config, args=args, prog="python -m bench", description=__doc__))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
