"""A page on which people judge responses, kept in a database.

    python launch.py label --demo
    python launch.py label --run runs/sentiment/1f0c5a77b2
    python launch.py label --pairs pairs.jsonl

`--demo` shows the page with pairs of a generated task. `--run` compares two responses of a run's policy to
each prompt, or one of its SFT policy with one of its own (`--against sft`). `--pairs` takes a file: ours,
chosen and rejected, UltraFeedback, SafeRLHF, OASST, arena, Label Studio or Argilla (docs/feedback.md). The
server prints a link for the owner and one for each annotator, and keeps everything in the folder --to. The
same command serves the same items and judgements again.

    python -m feedback export comparisons.jsonl --database sqlite:///label/feedback.db
    python launch.py reward --data.comparisons comparisons.jsonl

turn judgements into comparisons, and teach a reward model. `python -m feedback --help` lists what else the
page's owner can do. It needs the extra [feedback].
"""

import importlib.util
import os
import pathlib
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_jax.bounds import Bound, Count, Seed, Settings
from rlhf_jax.data.sources import write_jsonl
from rlhf_jax.pipeline import questions
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs

ITEMS, SOURCE, TASK = "items.jsonl", "source.json", "reviews"


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the labelling page."""

    _main = ("demo", "run", "pairs", "task", "against", "number", "kind", "to", "wanted", "people")

    demo: bool = False
    """Show the page with pairs of the task of film reviews, and nothing to prepare."""
    run: str = ""
    """Run directory whose policy wrote the responses."""
    pairs: str = ""
    """File of items, in any of the formats that the page reads."""
    task: str = ""
    """Task that generates the responses, by name or as a FILE.py that defines TASK."""
    against: Literal["", "sft"] = ""
    """Policy of each second response of a run: empty for the same policy, sft for the SFT policy."""
    held_out: bool = False
    """Ask about held-out prompts, to judge a run; otherwise about training ones, to teach a reward model."""
    kind: questions.Kind = "pair"
    """Question about the responses: which of two is better; a thumb, or one to five stars, for one response;
    or the order of four."""
    number: Count = 50
    """Items to prepare."""
    to: str = "label"
    """Folder of the items and of the database."""
    database: str = ""
    """URL of a PostgreSQL database; empty: the SQLite file feedback.db in the folder."""
    wanted: Count = 1
    """People who judge each item."""
    people: Count = 3
    """Annotators who are invited, each by a link."""
    guidelines: str = ""
    """Markdown file with the guidelines for annotators."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs an owner's password, in FEEDBACK_PASSWORD."""
    port: Annotated[int, Bound(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes any free one."""
    seed: Seed = 0
    """Seed of the choice of prompts and of the responses."""
    backup: str = ""
    """File to which the SQLite database is copied, also while the page is served; nothing is served then."""

    def _conditions(self, at: str):
        if self.against and self.kind != "pair":
            raise ValueError(
                f'{at}against = "{self.against}" compares two policies, and {at}kind = "{self.kind}" shows '
                "no pair: leave one out"
            )

    def _unread(self) -> dict[str, str]:
        unread: dict[str, str] = {}
        if not self.run:
            unread |= dict.fromkeys(("against", "held_out"), "no run is given")
        if self.pairs:
            made = ("number", "kind", "seed", "wanted")
            unread |= dict.fromkeys(made, "a file has its items")
        return unread


config = Config()
order = 2


def main(cfg: Config):
    """Prepares the items, then serves the page until it is interrupted."""
    if not importlib.util.find_spec("feedback") or not importlib.util.find_spec("fastapi"):
        raise ValueError(
            'the labelling page needs further packages: pip install "rlhf_jax[feedback]"'
        )
    runs.check_folder("to", cfg.to)
    folder = pathlib.Path(cfg.to)
    database = cfg.database or f"sqlite:///{folder / 'feedback.db'}"
    if cfg.backup:
        serve("backup", cfg.backup, "--database", database)
    given = {"demo": cfg.demo, "run": cfg.run, "pairs": cfg.pairs, "task": cfg.task}
    named = [name for name, value in given.items() if value]
    if len(named) != 1:
        said = " and ".join(named) + " are given" if named else "no source is given"
        raise ValueError(f"{said}: give one of demo, run, pairs and task")
    prepared(cfg, folder)
    settings = ["--host", cfg.host, "--port", str(cfg.port), "--people", str(cfg.people)]
    settings += ["--guidelines", cfg.guidelines] if cfg.guidelines else []
    items = cfg.pairs or str(folder / ITEMS)
    serve("serve", "--database", database, "--items", items, *settings)


def serve(*command: str):
    """Replaces this process by the page's own, which has no model and no JAX."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "feedback", *command])


def prepared(cfg: Config, folder: pathlib.Path):
    """Writes the items of the folder, unless an earlier start of the same command did.

    Raises ValueError where the folder has the items of another command.
    """
    asked = {
        name: getattr(cfg, name) for name in ("demo", "run", "pairs", "task", "against", "seed")
    }
    asked |= {
        "held_out": cfg.held_out,
        "kind": cfg.kind,
        "number": cfg.number,
        "wanted": cfg.wanted,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SOURCE).exists():
        if disk.read_json(folder / SOURCE) != asked:
            raise ValueError(
                f'to = "{folder}" holds the items of another command: name a new folder, or repeat that '
                f"command ({folder / SOURCE} has its settings)"
            )
        return
    if not cfg.pairs:
        rows = (
            of_run(cfg)
            if cfg.run
            else questions.of_task(cfg.task or TASK, cfg.kind, cfg.number, cfg.seed)
        )
        if len(rows) < cfg.number:
            print(f"{len(rows)} items: the other prompts have equal responses", flush=True)
        write_jsonl(folder / ITEMS, [row | {"wanted": cfg.wanted} for row in rows])
    disk.write_json(folder / SOURCE, asked)


def of_run(cfg: Config) -> list[dict]:
    """Items with responses that the policies of a run give to its prompts."""
    from rlhf_jax.pipeline import checkpoints, finished

    run = finished.opened(pathlib.Path(cfg.run))
    own = checkpoints.own_stage(run.folder)
    stages = [own, finished.SFT] if cfg.against else [own] * questions.RESPONSES[cfg.kind]
    rows = run.texts.rows_held_out if cfg.held_out else run.texts.rows
    return questions.of_policies(run, stages, rows, cfg.kind, cfg.number, cfg.seed)
