"""From the command to the end of the first PPO iteration: each time a process that begins from nothing.

The command is `launch.py sentiment` with a policy and a reward model that are given. On its way it teaches a
held-out judge too, which PPO does not need, by so few comparisons that only what is compiled for it counts.
Peers are their sides, up to the end of the first iteration; they have no compilation cache.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench import measure
from bench.measure import ROOT, Side, pinned
from bench.peers import PEERS, interpreter


def ours(folder: Path, cache: Path, cores: list[int], log: Path) -> float:
    """Seconds of `launch.py sentiment` up to its first row of PPO's metrics; then it is ended."""
    run = Path(tempfile.mkdtemp())
    command = [
        *(sys.executable, "launch.py", "sentiment", "--run", str(run / "run")),
        *("--reference", str(folder / "policy"), "--reward-model", str(folder / "reward")),
        *("--data.prompt-length", "32", "--sample.length", "64", "--rl.batch-size", "16"),
        *("--data.pairs", "64", "--data.demonstrations", "500", "--reward.epochs", "1"),
    ]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [*pinned(cores), *command],
            cwd=ROOT,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
        )
    try:
        while not first_row(run / "run" / "metrics.jsonl"):
            if process.poll() is not None:
                last = log.read_text().strip().splitlines()[-1:]
                raise RuntimeError(f"launch.py ended before its first iteration: {last} ({log})")
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(run)


def first_row(metrics: Path) -> bool:
    """Whether a row of PPO's stands in the file."""
    if not metrics.exists():
        return False
    rows = metrics.read_text().splitlines()
    return any("ppo/loss" in row for row in rows)


def theirs(command: list[str], asked: dict, cores: list[int], log: Path) -> float:
    """Seconds until a peer's process has ended its first iteration."""
    began = time.perf_counter()
    with Side(command, asked, cores, log) as side:
        side.ask("go")
        return time.perf_counter() - began


def measured(cfg, work, model: str, folder: Path) -> Iterator[dict]:
    """A row for each peer: ours cold, then warm, beside the peer as it is."""
    for count in cfg.cores:
        cores = measure.cores()[:count]
        logs, cache = cfg.out / "logs", Path(tempfile.mkdtemp())
        logs.mkdir(parents=True, exist_ok=True)
        row = {"work": "start", "model": model, "cores": len(cores), "rate": 0}
        row |= {"operations": 0, "their_operations": 0}
        try:
            cold = ours(folder, cache, cores, logs / f"start-{model}-{count}-ours.log")
            warm = [
                ours(folder, cache, cores, logs / f"start-{model}-{count}-ours.log")
                for _ in range(3)
            ]
        except RuntimeError as error:
            yield row | {"peer": "", "missing": str(error)}
            continue
        mine = {"wall": sorted(warm)[1], "cpu": 0, "rate": 0, "peak": 0}
        mine |= {"cold": cold, "warm": mine["wall"]}
        for peer in cfg.peer or work.peers:
            told = row | {"peer": peer, "ours": mine}
            try:
                command = [interpreter(peer, cfg.envs), "-m", PEERS[peer][1]]
                asked = {"name": "ppo", "folder": str(folder), "work": asdict(work)}
                log = logs / f"start-{model}-{count}-{peer}.log"
                took = sorted(theirs(command, asked, cores, log) for _ in range(3))
            except (ValueError, RuntimeError) as error:
                yield told | {"missing": str(error)}
                continue
            told["theirs"] = {"wall": took[1], "cpu": 0, "rate": 0, "peak": 0}
            speeds = [x / mine["wall"] for x in took]
            yield told | {"ratio": speeds[1], "least": speeds[0], "most": speeds[-1]}
        shutil.rmtree(cache)
