"""A source, or a whole generated task, as TensorFlow Datasets and files.

    python launch.py prepare pairs.jsonl --to prepared/pairs
    python launch.py prepare --task reviews --to prepared/reviews

A source becomes one data set with the split "train". A task becomes corpus, comparisons and prompts, each as
a data set (with the splits "train" and "held_out") and as JSONL files, and the tokenizer that a run trains:

    corpus.jsonl       corpus_held_out.jsonl     corpus/        prompt, response
    comparisons.jsonl                            comparisons/   prompt, responses, preference
    prompts.jsonl      prompts_held_out.jsonl    prompts/       prompt, and the columns of the task's rows
    tokenizer/

The simulated people compare two responses that the corpus might give to one prompt, since there is no policy
yet. The format is array_record, which tfds.builder_from_directory(FOLDER).as_data_source() reads without
TensorFlow. Any experiment here reads the files and the folders alike, but of a task of several turns only a
run with --task tells the policy's turns from the environment's.
"""

import os
import pathlib
import tempfile
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.bounds import Seed, Settings
from rlhf_jax.data.builders import builder
from rlhf_jax.data.builders.demonstrations import Demonstrations
from rlhf_jax.data.builders.preferences import Preferences
from rlhf_jax.data.builders.prompts import Prompts
from rlhf_jax.data.sources import read
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.pipeline import task_sets, texts
from rlhf_jax.runs import run as runs

KINDS = {"preferences": Preferences, "demonstrations": Demonstrations, "prompts": Prompts}
"""Builders by the name of their kind, in the order in which they are tried."""


@dataclass(frozen=True)
class TaskData(texts.DataConfig):
    """Size of a generated task."""

    _main = ("held_out", "vocab_size", "demonstrations", "pairs")
    _hidden = (
        *texts.FILES,
        *("corpus_fields", "fields", "ratings_fields", "prompts_fields", "turns", "bad", "long"),
        *("prompt_words", "prompt_length"),
    )


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the preparation."""

    _first = "source"
    _main = ("source", "to", "kind", "task", "seed")

    source: str = ""
    """Source of the rows: JSONL or Parquet files (commas, globs and .gz allowed), tfds:NAME, hf:NAME, or a
    folder. The first word of the command may set it without the name."""
    to: str = ""
    """Folder to create."""
    kind: Literal["", "preferences", "demonstrations", "prompts"] = ""
    """Kind of the rows of the source; empty: the first kind that their fields allow."""
    task: str = ""
    """Task to write in place of a source, by name or as a FILE.py that defines TASK."""
    seed: Seed = 0
    """Seed of the texts of the task and of its simulated people."""
    data: TaskData = TaskData()
    annotators: AnnotatorConfig = AnnotatorConfig()

    def _unread(self) -> dict[str, str]:
        if self.task:
            return dict.fromkeys(("source", "kind"), "a task is written")
        return dict.fromkeys(("seed", "data", "annotators"), "no task is written")


config = Config()
order = 1


def main(cfg: Config):
    """Writes the folder, and prints how to use it."""
    if not (cfg.source or cfg.task):
        raise ValueError("source and task are empty: name a source of rows, or a task to write")
    if not cfg.to:
        raise ValueError("to is empty: name a folder")
    runs.check_folder("to", cfg.to)
    to = pathlib.Path(cfg.to)
    if to.exists():
        raise ValueError(f'to = "{to}" is there already: name a new folder')
    task = texts.load_task(cfg.task) if cfg.task else None
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as partial:
        whole = pathlib.Path(partial) / to.name
        if task is None:
            _write_source(cfg, whole)
        else:
            whole.mkdir()
            task_sets.write(whole, task, cfg.data, cfg.annotators, cfg.seed)
        os.rename(whole, to)
    print(f"written: {to}")


def _write_source(cfg: Config, whole: pathlib.Path):
    """Writes the rows of the source as one data set."""
    rows = read(cfg.source)
    kind = cfg.kind or next((name for name in KINDS if KINDS[name].fits([*rows[0]])), "")
    if not kind:
        raise ValueError(
            f"{rows[0].where}: no kind ({', '.join(KINDS)}) has the fields {', '.join(map(repr, rows[0]))}: "
            "rename yours"
        )
    task_sets.tell(kind, builder.prepare(KINDS[kind], {task_sets.TRAIN: rows}, whole))
