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

import pathlib
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.bounds import Count
from rlhf_jax.pipeline import labelling, questions

TASK = "reviews"
OF_ITEMS = (
    "demo",
    "run",
    "pairs",
    "task",
    "against",
    "seed",
    "held_out",
    "kind",
    "number",
    "wanted",
)
"""Settings on which the items depend."""


@dataclass(frozen=True)
class Config(labelling.PageConfig):
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
    folder = labelling.folder_of(cfg)
    if cfg.backup:
        labelling.run("backup", cfg.backup, "--database", labelling.address(cfg))
    given = {"demo": cfg.demo, "run": cfg.run, "pairs": cfg.pairs, "task": cfg.task}
    named = [name for name, value in given.items() if value]
    if len(named) != 1:
        said = " and ".join(named) + " are given" if named else "no source is given"
        raise ValueError(f"{said}: give one of demo, run, pairs and task")
    asked = {name: getattr(cfg, name) for name in OF_ITEMS}
    if cfg.pairs:
        labelling.prepared(folder, asked)
        labelling.serve(cfg, cfg.pairs)
    labelling.serve(cfg, labelling.prepared(folder, asked, lambda: made(cfg)))


def made(cfg: Config) -> list[dict]:
    """Items with responses of a task, or that the policies of a run give to its prompts."""
    if not cfg.run:
        rows = questions.of_task(cfg.task or TASK, cfg.kind, cfg.number, cfg.seed)
    else:
        from rlhf_jax.pipeline import checkpoints, finished

        run = finished.opened(pathlib.Path(cfg.run))
        own = checkpoints.own_stage(run.folder)
        stages = [own, finished.SFT] if cfg.against else [own] * questions.RESPONSES[cfg.kind]
        asked = run.texts.rows_held_out if cfg.held_out else run.texts.rows
        rows = questions.of_policies(run, stages, asked, cfg.kind, cfg.number, cfg.seed)
    if len(rows) < cfg.number:
        print(f"{len(rows)} items: the other prompts have equal responses", flush=True)
    return [row | {"wanted": cfg.wanted} for row in rows]
