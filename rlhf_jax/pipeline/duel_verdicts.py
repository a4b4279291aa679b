"""A judge's verdicts on duels of runs: who is better, and how far the judge agrees with people."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from rich.table import Table

from rlhf_jax.people import bradley_terry, judges


class Judged(NamedTuple):
    """A judge's verdicts on A pairs of answers of runs."""

    pairs: list[tuple[str, str, str]]  # a prompt and two answers
    runs: Int[np.ndarray, "A 2"]  # the numbers of the runs that gave them
    of_judge: judges.Verdicts


def asked(judge: judges.Judge, items: Sequence[dict[str, Any]], runs: Sequence[str]) -> Judged:
    """Verdicts on the pairs of `duels.of_runs`. Raises ValueError where the judge gives none at all."""
    answers = [[x["text"] for x in item["responses"]] for item in items]
    pairs = [(_plain(item["prompt"]), a, b) for item, (a, b) in zip(items, answers, strict=True)]
    found = judges.verdicts(judge, pairs)
    if np.isnan(found.probability).all():
        raise ValueError(
            f"the judge gave no verdict on any of {len(items)} pairs: name another judge"
        )
    number = {name: n for n, name in enumerate(runs)}
    whose = [[number[x["policy"]] for x in item["responses"]] for item in items]
    return Judged(pairs, np.array(whose), found)


def written(found: Judged, runs: Sequence[str], database: pathlib.Path) -> Iterator[Table | str]:
    """A table of strengths and win rates by Bradley and Terry, and lines about the judge.

    One of them is its agreement with people where the database of their votes is there.
    """
    p = found.of_judge.probability
    read = ~np.isnan(p)
    (a, b), p = found.runs[read].T, p[read]
    result = np.where(p == 0.5, 0.5, (p > 0.5).astype(float))
    fitted = bradley_terry.fit(bradley_terry.Contests(a, b, result), runs)
    rates, strengths = bradley_terry.win_rates(fitted), fitted.strength_against(0)
    table = Table("run", "strength", *(f"beats {name}" for name in runs))
    for n, name in enumerate(runs):
        own = [f"{x:.2f}" if k != n else "" for k, x in enumerate(rates[n])]
        table.add_row(name, f"{strengths[n]:.2f}", *own)
    yield table
    yield (
        f"{int(read.sum())} pairs judged in both orders, {found.of_judge.malformed} without a verdict"
    )
    yield f"preference for the first place: {found.of_judge.first_place:+.2f}"
    if database.is_file():
        share, n = found.of_judge.agreement(_votes(database, found.pairs))
        yield f"agreement with people: {share:.2f} of {n} pairs that both decided"


def _votes(database: pathlib.Path, pairs: list[tuple[str, str, str]]) -> np.ndarray:
    """The share of people's votes for the first answer of each pair; NaN where there is none."""
    command = [sys.executable, "-m", "feedback", "export", "--database", f"sqlite:///{database}"]
    done = subprocess.run(command, capture_output=True, check=True)
    rows = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    share = {(_plain(x["prompt"]), *x["responses"]): x["probability"] for x in rows}
    return np.array([share.get(pair, np.nan) for pair in pairs], float)


def _plain(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(x["content"] for x in prompt)
