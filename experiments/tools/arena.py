"""A blind comparison of runs by people, or by a judge in their place.

    python launch.py arena --runs runs/sentiment/1f0c5a77b2 runs/rloo/93ab00c1d2
    python launch.py feedback-report --data arena/feedback.db
    python launch.py arena --runs A B --judge my_judge.py:clearer
    OPENAI_API_KEY=... python launch.py arena --runs A B --judge http://127.0.0.1:8000/v1 --model judge

The prompts are the first run's held-out ones, each for a pair of runs in turn. The page shows no names, and
an answer that says the name of its run or of its model is left out and counted. The report gives strengths
by Bradley and Terry with ties, an order term and intervals by prompt and person, win rates, and both again
for answers of equal length.

`--judge` asks a Python function or an OpenAI-compatible server in people's place, each pair in both orders,
and says how far it agrees with the people who have judged so far. A function takes prompts and responses and
returns scores, the higher for the better one.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_jax.bounds import Count
from rlhf_jax.data import sources
from rlhf_jax.people import bradley_terry, judges
from rlhf_jax.pipeline import duels, labelling
from rlhf_jax.rewards import functions

Item = dict[str, Any]


@dataclass(frozen=True)
class Config(labelling.PageConfig):
    """Settings of the comparison."""

    _main = ("runs", "number", "judge", "model", "to", "wanted", "people")

    runs: tuple[str, ...] = ()
    """Run directories whose policies are compared, two or more."""
    number: Count = 60
    """Pairs to ask about."""
    judge: str = ""
    """Judge in people's place: a function as FILE.py:NAME, whose higher score wins, or the address of an
    OpenAI-compatible server."""
    model: str = ""
    """Name of the model at the judge's address."""
    to: str = "arena"
    """Folder of the items and of the database."""

    def _conditions(self, at: str):
        if len({*self.runs}) != len(self.runs):
            raise ValueError(f"{at}runs names a run twice: name different ones")

    def _unread(self) -> dict[str, str]:
        if self.judge:
            page = ("database", "people", "guidelines", "host", "port")
            unread = {name: "a judge needs no page" for name in page}
            if not self._at_address():
                unread["model"] = "the judge has no address"
            return unread
        return {"model": "no judge is given"}

    def _at_address(self) -> bool:
        return self.judge.startswith(("http://", "https://"))


config = Config()
order = 4


def main(cfg: Config):
    """Samples the answers, then serves the page, or asks the judge."""
    if len(cfg.runs) < 2:
        raise ValueError("runs has fewer than two run directories: name those to compare")
    judge = judge_of(cfg) if cfg.judge else None
    folder = labelling.folder_of(cfg)
    asked = {name: getattr(cfg, name) for name in ("number", "seed", "wanted")}
    items = labelling.prepared(
        folder,
        asked | {"runs": [*cfg.runs]},
        lambda: duels.of_runs(cfg.runs, cfg.number, cfg.wanted, cfg.seed),
    )
    if judge is None:
        labelling.serve(cfg, items)
    else:
        conclude(cfg, [dict(row) for row in sources.read(str(items))], judge)


def judge_of(cfg: Config) -> judges.Judge:
    """The judge that the settings name."""
    if cfg._at_address():
        if not cfg.model:
            raise ValueError("model is empty: name the model at the judge's address")
        return judges.endpoint(cfg.judge, cfg.model, os.environ.get("OPENAI_API_KEY", ""))
    reward = functions.load(cfg.judge)
    needed = [
        name
        for name, has_to in functions.signature_of("the judge", reward).columns.items()
        if has_to
    ]
    if needed:
        raise ValueError(
            f'judge = "{cfg.judge}" needs the columns {", ".join(needed)}, and a judge gets prompts and '
            "responses alone: name another function"
        )
    return judges.by_reward(reward)


def conclude(cfg: Config, items: list[Item], judge: judges.Judge):
    """Asks the judge about every pair, and prints who is better, and its agreement with people."""
    texts = [tuple(x["text"] for x in item["responses"]) for item in items]
    asked = [(plain(item["prompt"]), a, b) for item, (a, b) in zip(items, texts, strict=True)]
    found = judges.verdicts(judge, asked)
    read = ~np.isnan(found.probability)
    if not read.any():
        raise ValueError(
            f"the judge gave no verdict on any of {len(items)} pairs: name another judge"
        )
    number = {name: n for n, name in enumerate(cfg.runs)}
    a, b = (
        np.array([number[item["responses"][k]["policy"]] for item in items])[read] for k in (0, 1)
    )
    p = found.probability[read]
    result = np.where(p == 0.5, 0.5, (p > 0.5).astype(float))
    fitted = bradley_terry.fit(bradley_terry.Contests(a, b, result), cfg.runs)
    rates = bradley_terry.win_rates(fitted)
    table = Table("run", "strength", *(f"beats {name}" for name in cfg.runs))
    for n, name in enumerate(cfg.runs):
        own = [f"{x:.2f}" if k != n else "" for k, x in enumerate(rates[n])]
        table.add_row(name, f"{fitted.strength_against(0)[n]:.2f}", *own)
    console = Console(markup=False)
    console.print(table)
    console.print(
        f"{int(read.sum())} pairs judged in both orders, {found.malformed} without a verdict"
    )
    console.print(f"preference for the first place: {found.first_place:+.2f}")
    votes = votes_of(cfg, asked)
    if votes is not None:
        share, n = found.agreement(votes)
        console.print(f"agreement with people: {share:.2f} of {n} pairs that both decided")


def votes_of(cfg: Config, asked: list[tuple[str, str, str]]) -> np.ndarray | None:
    """The share of people's votes for the first answer of each pair; None where nobody was asked."""
    page = dataclasses.replace(cfg, judge="", model="")
    if not (pathlib.Path(cfg.to) / "feedback.db").is_file():
        return None
    command = [sys.executable, "-m", "feedback", "export", "--database", labelling.address(page)]
    done = subprocess.run(command, capture_output=True, check=True)
    rows = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    share = {(plain(x["prompt"]), *x["responses"]): x["probability"] for x in rows}
    return np.array([share.get(pair, np.nan) for pair in asked], float)


def plain(prompt: Any) -> str:
    """A prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(x["content"] for x in prompt)
