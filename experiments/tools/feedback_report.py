"""Agreement, annotators, and the better policy in what people judged.

    python launch.py feedback-report --data label/feedback.db
    python launch.py feedback-report --data raw.jsonl
    FEEDBACK_TOKEN=... python launch.py feedback-report --data http://127.0.0.1:8000

`--data` is the database of the labelling page, a raw export, or the address of a page that runs, with the
token of the owner's link in FEEDBACK_TOKEN. The folder --to gets summary.json, all numbers, and picture.png:
agreement with intervals, annotators, the preference for the first place, and agreement and speed over time.
"""

import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_jax.bounds import Settings
from rlhf_jax.data import sources
from rlhf_jax.people import summary
from rlhf_jax.people.client import Client
from rlhf_jax.pipeline.feedback_picture import picture
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the report."""

    _main = ("data", "to")

    data: str = ""
    """SQLite file of the labelling page, raw export in JSON Lines, or address of a page that runs."""
    to: str = "feedback_report"
    """Folder of the numbers and of the picture."""
    question: str | None = None
    """Question whose answers are wanted, where the pairs ask several; empty: the page's own."""


config = Config()
order = 3


def main(cfg: Config):
    """Prints the numbers, and writes them with their picture."""
    if not cfg.data:
        raise ValueError("data is empty: name a database, a raw export or the address of a page")
    runs.check_folder("to", cfg.to)
    found = summary.summary(raw(cfg.data), cfg.question)
    if not found["judgements"]:
        raise ValueError(f"data = {cfg.data} has no judgement of a pair that stands")
    folder = pathlib.Path(cfg.to)
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_json(folder / "summary.json", found)
    picture(found).savefig(folder / "picture.png", dpi=120)
    show(found)
    print(f"{folder / 'summary.json'} has all numbers, {folder / 'picture.png'} the picture.")


def raw(data: str) -> list[Numbers]:
    """The rows of a raw export: those of a file, of a database, or of a page that runs."""
    if data.startswith(("http://", "https://")):
        token = os.environ.get("FEEDBACK_TOKEN", "")
        if not token:
            raise ValueError(
                "FEEDBACK_TOKEN is empty: set it to the last part of the owner's link, after /i/"
            )
        return Client(data, token).export("raw")
    if not pathlib.Path(data).is_file():
        raise ValueError(f"data = {data} is no file, and no address that begins with http")
    if pathlib.Path(data).suffix in (".db", ".sqlite", ".sqlite3"):
        # the page is a package of its own, which this one reaches by its command alone
        command = [sys.executable, "-m", "feedback", "export", "--kind", "raw"]
        done = subprocess.run(
            [*command, "--database", f"sqlite:///{data}"], capture_output=True, check=False
        )
        if done.returncode:
            raise ValueError(done.stderr.decode().strip().removeprefix("error: "))
        return [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    return list(sources.read(data))


def show(found: Numbers):
    """Prints tables of agreement, annotators and policies."""
    console, between = Console(markup=False), Table("agreement", "alpha", "95 % interval")
    for name, words in (("degree", "how much better"), ("side", "which is better")):
        alpha = found["agreement"][name]
        between.add_row(words, said(alpha["alpha"]), interval(alpha))
    people = Table("annotator", "judged", "accuracy", "agrees", "first chosen", "seconds", "flags")
    for x in found["people"]:
        shares = [said(x[name]["mean"]) for name in ("consensus", "position")]
        people.add_row(
            *(x["name"], str(x["judged"]), said(x["accuracy"]), *shares),
            *(said(x["seconds"]), ", ".join(x["flags"])),
        )
    console.print(between, people)
    if found["chosen"]:
        console.print(
            f"Agreement and policies leave out {found['chosen']} judgements of pairs that a strategy chose."
        )
    for key, head in (("policies", "policy"), ("policies_at_equal_length", "at equal length")):
        if policies := found[key]:
            console.print(standing(policies, head))
    if not (policies := found["policies"]):
        return
    console.print(f"Strengths are logits beside {policies['reference']}.")
    if policies["loose"]:
        console.print(f"Only a weak prior holds {', '.join(policies['loose'])}.")
    if policies["rough"]:
        console.print("The intervals are rough: fewer than eight people have judged.")


def standing(policies: Numbers, head: str) -> Table:
    """Strengths with their intervals, and the matrix of win rates."""
    table = Table(head, "strength", "95 % interval", *(f"beats {x}" for x in policies["names"]))
    for n, name in enumerate(policies["names"]):
        ends = {end: policies[end][n] for end in ("low", "high")}
        rates = [said(p) if k != n else "" for k, p in enumerate(policies["win_rate"][n])]
        table.add_row(name, said(policies["strength"][n]), interval(ends), *rates)
    return table


def said(x: float | None) -> str:
    """A number with two digits; empty for None."""
    return "" if x is None else f"{x:.2f}"


def interval(x: Numbers) -> str:
    """The ends of an interval."""
    return "" if x["low"] is None or x["high"] is None else f"{x['low']:.2f} to {x['high']:.2f}"
