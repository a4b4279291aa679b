"""Pairs of answers of different runs to one prompt, without names, for people or judges to compare."""

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.data.batching import rows_at
from rlhf_jax.pipeline import checkpoints, finished

Item = dict[str, Any]


def of_runs(runs: Sequence[str], number: int, wanted: int, seed: int) -> list[Item]:
    """Items with answers of two of the run directories each, in turn, to held-out prompts of the first one.

    Left out and counted are pairs with equal answers or with an answer that says a name. Raises ValueError
    where no pair is left.
    """
    opened = [finished.opened(pathlib.Path(name)) for name in runs]
    fresh = opened[0].texts.rows_held_out
    rows = [fresh[i] for i in rows_at(len(fresh), number, seed, 0)]
    pairs = list(
        itertools.islice(itertools.cycle(itertools.combinations(range(len(opened)), 2)), number)
    )
    texts: dict[tuple[int, int], str] = {}  # of a run, to a row
    for n, run in enumerate(opened):
        mine = [k for k, pair in enumerate(pairs) if n in pair]
        own = checkpoints.own_stage(run.folder)
        said = finished.sampled(run, own, [rows[k] for k in mine], seed + n)
        texts |= {(n, k): text for k, text in zip(mine, said, strict=True)}
    found, told, equal = [], 0, 0
    for k, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        said = [texts[n, k] for n in pair]
        if said[0] == said[1]:
            equal += 1
        elif any(says_a_name(text, opened[n], runs[n]) for text, n in zip(said, pair, strict=True)):
            told += 1
        else:
            answers = [{"text": x, "policy": runs[n]} for x, n in zip(said, pair, strict=True)]
            found.append(
                {"kind": "pair", "prompt": row.prompt, "responses": answers, "wanted": wanted}
            )
    if told or equal:
        print(
            f"left out: {told} pairs with an answer that says a name, {equal} of equal answers",
            flush=True,
        )
    if not found:
        raise ValueError(
            f"no pair is left to compare: {told} have an answer that says a name, and {equal} equal answers"
        )
    return found


def says_a_name(text: str, run: Any, folder: str) -> bool:
    """True for an answer that has the name of its run or of the model that it began as, as a word."""
    cfg = run.cfg
    models = ("pretrained", "reference", "policy")
    names = [pathlib.Path(folder).name, *(getattr(cfg, x, "") for x in models)]
    words = [re.escape(pathlib.Path(name).name) for name in names if name]
    return bool(re.search(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", text, re.IGNORECASE))
