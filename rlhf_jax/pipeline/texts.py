"""Texts that a run trains and is evaluated on: from a generated task, or from sources of rows."""

import importlib
import importlib.util
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from rlhf_jax import tasks
from rlhf_jax.bounds import Bound, Count, Inside, Settings, Whole
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import ComparisonFields
from rlhf_jax.data.demonstrations import (
    Answers,
    CorpusFields,
)
from rlhf_jax.data.ratings import RatingFields
from rlhf_jax.data.splits import group_of, split
from rlhf_jax.data.transcripts import lines_of
from rlhf_jax.people import annotators
from rlhf_jax.rewards.functions import summary
from rlhf_jax.tasks.task import Environment, Task

FILES = ("corpus", "comparisons", "ratings", "prompts")
"""The settings of `data` that name sources of rows."""


@dataclass(frozen=True)
class PromptFields(Settings):
    """Field names of a prompt row, of which "a.b" is the field b within a; a Python reward can read all
    other fields."""

    prompt: str = "prompt"
    """Prompt fields, separated by commas and joined by newlines; empty ones are dropped."""
    text: str = "text"
    """Field of a text whose first words become the prompt, for rows without a prompt."""
    answer: str = "answer"
    """Field of a reference answer, or of a list of them, which verifiers and evaluation compare responses
    with; its column is called "answer"."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Training data: files and data sets of others, or a generated task where none is named.

    Weights mix sources, as in `--data.corpus 0.7:a.jsonl,0.3:b.jsonl`: of every ten rows seven come from the
    first, at random and none twice, until one source runs out. All sources of a setting have weights, or
    none.
    """

    _main = ("corpus", "comparisons", "ratings", "prompts", "prompt_length")

    corpus: str = ""
    """Source of texts for SFT: JSONL or Parquet files (commas, globs and .gz allowed),
    `tfds:NAME[/CONFIG][:SPLIT]` with slices such as train[:90%], `hf:NAME[/CONFIG][:SPLIT]`, or a folder of
    TFDS or of `save_to_disk`. A row has "text", or "prompt" and "response", or "messages" that end with an
    answer."""
    corpus_fields: CorpusFields = CorpusFields()
    turns: Answers = "last"
    """Answers of the assistant that SFT learns in a dialogue of the corpus: the last, or all that follow the
    first question. What others say is never learned."""
    comparisons: str = ""
    """Source of preferences that train the reward model and the held-out reward model: files, tfds:NAME,
    hf:NAME, or a folder."""
    fields: ComparisonFields = ComparisonFields()
    ratings: str = ""
    """Source of rated responses, which reward models and KTO learn from in place of comparisons: rows with
    "prompt", "response" and a number, "rating", "score" or "label". They also give the prompts, and the
    corpus (the responses rated at least as high as the mean), where none of these are named."""
    ratings_fields: RatingFields = RatingFields()
    prompts: str = ""
    """Source of prompts: files, tfds:NAME, hf:NAME, or a folder. A row has "prompt" (text or messages), or
    "text", whose first words become the prompt. A Python reward can read the other fields of a row."""
    prompts_fields: PromptFields = PromptFields()
    bad: Literal["fail", "skip"] = "fail"
    """Treatment of records that cannot be used (no JSON, not UTF-8, a field missing, an empty text, a label
    out of range): "fail" refuses the first one, "skip" leaves them out and tells how many, where and why."""
    long: Literal["cut", "bad"] = "cut"
    """Treatment of prompts and answers with more tokens than `prompt_length` and `sample.length`: "cut"
    shortens them, "bad" makes bad records of their rows, which `bad` refuses or leaves out. Either way the
    run tells how many, where, and the lengths that would keep them."""
    prompt_words: Count = 4
    """Number of words of a "text" that become its prompt."""
    prompt_length: Whole = 0
    """Columns of a prompt, in tokens (P). Longer texts keep their end, longer dialogues their latest
    messages. 0: the task's own length, or for files the least length that holds 99 % of the prompts of
    each."""
    held_out: Inside = 0.1
    """Share of prompts held out from training, together with every text and comparison that answers them;
    also the share of other texts held out for early stopping of SFT."""
    vocab_size: Annotated[int, Bound(ge=259)] = 600
    """Largest vocabulary of a tokenizer trained here; 256 bytes and three special tokens are the minimum."""
    demonstrations: Count = 20_000
    """Demonstrations that a generated task writes for SFT; a tenth as many more are held out."""
    pairs: Count = 20_000
    """Comparisons labelled by simulated people in a generated task; half train the held-out reward model."""


class Feedback(NamedTuple):
    """Comparisons, or ratings, by people, with each prompt on one side of the split.

    The halves of `train` train the reward model and the held-out reward model; where no held-out one is
    trained, the first half is all of `train`.
    """

    train: list[Any]
    halves: tuple[list[Any], list[Any]]
    held_out: list[Any]


class Row(NamedTuple):
    """A prompt, the other fields of its row, and the key shared by all rows that answer it."""

    prompt: str
    columns: dict[str, Any]
    group: str


class Texts(NamedTuple):
    """All texts of a run."""

    corpus: list[tuple[str, str]]  # prompts and responses to imitate
    corpus_held_out: list[tuple[str, str]]
    rows: list[Row]  # prompts to answer
    rows_held_out: list[Row]
    pairs: Feedback | None  # comparisons of files, or ratings in their place
    compared: list[Row]  # prompts whose responses simulated people compare, in a generated task
    ties: int  # comparisons of files that prefer neither response
    task: Task | None  # the generated task
    origins: Mapping[str, dict[tuple[str, str], str]] = {}  # `BadRecords.origins` of each source

    @property
    def environment(self) -> Environment | None:
        """The environment of a task of several turns."""
        return self.task.environment if self.task else None

    @property
    def said(self) -> list[tuple[str, str]]:
        """Texts for a new tokenizer: the pairs of the corpus, or of the prompts and single lines."""
        if not self.environment:
            return self.corpus
        return [(prompt, line) for prompt, said in self.corpus for line in lines_of(said)]


class Needs(NamedTuple):
    """The files that a method needs, and those that it can use.

    Where "ratings" are optional, they can replace all files that are needed.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    halves: bool = False  # half of the comparisons train a held-out reward model


ALL = Needs(("corpus", "comparisons", "prompts"), ("ratings",), halves=True)
"""The needs of a method that maximises a reward model."""


# --- a generated task


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__)]
    folder = pathlib.Path(tasks.__path__[0])
    return [name for name in names if "\nTASK = " in (folder / f"{name}.py").read_text()]


def load_task(name: str) -> Task:
    """The built-in task `name`, or the `TASK` of FILE.py. Raises ValueError where there is none."""
    if name.endswith(".py"):
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise ValueError(
                f'task = "{name}" is no file: give the path of a FILE.py that defines TASK'
            )
        spec: Any = importlib.util.spec_from_file_location(f"task_in_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise ValueError(f'task = "{name}" fails with {summary(error)}: mend it') from error
    elif name in task_names():
        module = importlib.import_module(f"{tasks.__name__}.{name}")
    else:
        known = ", ".join(task_names())
        raise ValueError(
            f'task = "{name}" is not known: use {known}, or a FILE.py that defines TASK'
        )
    if not isinstance(getattr(module, "TASK", None), Task):
        raise ValueError(f'task = "{name}" defines no TASK: set it to a rlhf_jax.tasks.task.Task')
    return module.TASK


def generated(cfg: DataConfig, task: Task, seed: int, needs: Needs) -> Texts:
    """The texts of a generated task. Held-out prompts appear in no training stage."""
    train, held_out = task.prompts(cfg.held_out, seed)
    asked = [train[row] for row in rows_at(len(train), cfg.pairs, seed, 0)]
    rows, rows_held_out, compared = (list(map(row_of, rows)) for rows in (train, held_out, asked))
    if "comparisons" in needs.needed:  # too few are refused before SFT
        divided(compared, cfg, seed, f"data.pairs = {cfg.pairs}", needs.halves)
    return Texts(
        corpus=task.corpus(seed, cfg.demonstrations, train),
        corpus_held_out=task.corpus(seed + 1, max(8, cfg.demonstrations // 10), held_out),
        rows=rows,
        rows_held_out=rows_held_out,
        pairs=None,
        compared=compared,
        ties=0,
        task=task,
    )


def row_of(row: dict[str, Any]) -> Row:
    """A row of a generated task in the form of rows read from files."""
    columns = {name: value for name, value in row.items() if name != "prompt"}
    return Row(row["prompt"], columns, group_of(row["prompt"]))


def plain_row(row: Row) -> dict[str, Any]:
    """A row in the form that a task accepts."""
    return {"prompt": row.prompt} | row.columns


# --- splits


def of_group(row) -> str:
    """The group key of a row."""
    return row.group


def divided(
    items: Sequence, cfg: DataConfig, seed: int, name: str, halves: bool = True
) -> Feedback:
    """Comparisons or ratings, or the rows that they answer, divided into training and held-out ones.

    Raises ValueError, naming `name`, where a part would be empty.
    """
    train, held_out = split(items, of_group, cfg.held_out, seed, f"{name} by data.held_out")
    return Feedback(train, halved(train, seed, name) if halves else (train, []), held_out)


def halved(train: Sequence, seed: int, name: str) -> tuple[list, list]:
    """(half for the reward model, half for the held-out reward model)."""
    name = f"the halves of {name}, for the reward model and for the held-out one"
    return split(train, of_group, 0.5, seed + 1, name)


def has_files(cfg: DataConfig) -> bool:
    """True where files are named; otherwise a generated task provides the texts."""
    return any(getattr(cfg, name) for name in FILES)


def judged(task: Task, rows: Sequence[Row], a: list[str], b: list[str]) -> annotators.Pairs:
    """Gold and length of both responses to each row."""
    plain = [plain_row(row) for row in rows]
    words = [np.array([len(x.split()) for x in side], float) for side in (a, b)]
    return annotators.Pairs(task.gold(plain, a), task.gold(plain, b), *words)
