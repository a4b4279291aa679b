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

import os
from dataclasses import dataclass

from rich.console import Console

from rlhf_jax.bounds import Count
from rlhf_jax.data import sources
from rlhf_jax.people import judges
from rlhf_jax.pipeline import duel_verdicts, duels, labelling
from rlhf_jax.rewards import functions


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
        found = duel_verdicts.asked(
            judge, [dict(row) for row in sources.read(str(items))], cfg.runs
        )
        for part in duel_verdicts.written(found, cfg.runs, folder / "feedback.db"):
            Console(markup=False).print(part)


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
