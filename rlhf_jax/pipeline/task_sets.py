"""A generated task written whole: corpus, comparisons and prompts as data sets and files, and a tokenizer."""

import pathlib
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from rlhf_jax.data.builders import builder
from rlhf_jax.data.builders.demonstrations import Demonstrations
from rlhf_jax.data.builders.preferences import Preferences
from rlhf_jax.data.builders.prompts import Prompts
from rlhf_jax.data.sources import read, write_jsonl
from rlhf_jax.people.annotators import AnnotatorConfig, annotate
from rlhf_jax.pipeline import stages, texts
from rlhf_jax.tasks.task import Task

TRAIN, HELD_OUT = "train", "held_out"
"""The splits of a data set."""


def write(
    folder: pathlib.Path, task: Task, data: texts.DataConfig, people: AnnotatorConfig, seed: int
):
    """Writes all texts of the task, and the tokenizer that a run trains, into the folder.

    The simulated people compare two responses that the corpus might give to one prompt, since there is no
    policy yet. Raises ValueError for a task that gives one response to each prompt.
    """
    found = texts.generated(data, task, seed, texts.ALL)
    pairs = lambda texts: [{"prompt": prompt, "response": said} for prompt, said in texts]
    asked = lambda rows: [*map(texts.plain_row, rows)]
    corpus = {TRAIN: pairs(found.corpus), HELD_OUT: pairs(found.corpus_held_out)}
    prompts = {TRAIN: asked(found.rows), HELD_OUT: asked(found.rows_held_out)}
    _write(folder / "corpus", Demonstrations, corpus)
    compared = {TRAIN: _compared(task, found.compared, people, seed)}
    _write(folder / "comparisons", Preferences, compared)
    _write(folder / "prompts", Prompts, prompts)
    print(f"tokenizer: at most {data.vocab_size} tokens, trained on the corpus", flush=True)
    if task.environment:
        print(
            "the responses are whole transcripts: only a run with --task tells the policy's turns from the "
            "environment's, and learns from the first alone",
            flush=True,
        )
    stages.read_tokenizer(folder, "", found.said, data.vocab_size)


def tell(name: str, counts: dict[str, int]):
    """Prints the number of rows of each split of a data set."""
    print(
        f"{name}: " + ", ".join(f"{n} rows of {split}" for split, n in counts.items()), flush=True
    )


def _compared(
    task: Task, asked: list[texts.Row], people: AnnotatorConfig, seed: int
) -> list[dict[str, Any]]:
    """Comparisons by simulated people of two responses to each row, both drawn as those of the corpus."""
    rows, a, b = [], [], []
    quiet = not Console().is_terminal
    for number, row in enumerate(track(asked, "comparisons", transient=True, disable=quiet)):
        own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        (_, first), (_, second) = task.corpus(own, 2, [texts.plain_row(row)])
        if first != second:
            rows.append(row)
            a.append(first)
            b.append(second)
    if not rows:
        raise ValueError(
            "the task gives one response to each prompt, and nothing can be compared: write the texts of "
            "another task"
        )
    if len(rows) < len(asked):
        left_out = len(asked) - len(rows)
        print(f"left out: {left_out} of {len(asked)} pairs of equal responses", flush=True)
    best = annotate(texts.judged(task, rows, a, b), people, seed)
    return [
        {"prompt": row.prompt, "responses": [x, y], "preference": preferred}
        for row, x, y, preferred in zip(rows, a, b, best.tolist(), strict=True)
    ]


def _write(to: pathlib.Path, kind: type[builder.Builder], splits: dict[str, list[dict[str, Any]]]):
    """Writes each split as a JSONL file beside the folder `to`, and all of them as one data set in it."""
    files = {TRAIN: f"{to}.jsonl", HELD_OUT: f"{to}_{HELD_OUT}.jsonl"}
    for split, rows in splits.items():
        write_jsonl(files[split], rows)
    tell(to.name, builder.prepare(kind, {s: read([files[s]]) for s in splits}, to))
