"""Texts that a run trains and is evaluated on: from a generated task, or from sources of rows."""

import importlib
import importlib.util
import json
import pathlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from rlhf_jax import tasks
from rlhf_jax.bounds import Bound, Count, Inside, Settings, Whole
from rlhf_jax.data import sources
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import ComparisonFields, read_comparisons
from rlhf_jax.data.demonstrations import (
    Answers,
    CorpusFields,
    Demonstration,
    read_demonstrations,
    taught,
)
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.ratings import Rating, RatingFields, check_alike, read_ratings
from rlhf_jax.data.splits import group_of, make_teaches, split, words
from rlhf_jax.data.transcripts import lines_of
from rlhf_jax.people import annotators
from rlhf_jax.tasks.task import Environment, Task

FILES = ("corpus", "comparisons", "ratings", "prompts")
"""The settings of `data` that name sources of rows."""


@dataclass(frozen=True)
class PromptFields(Settings):
    """Field names of a prompt row; a Python reward can read all other fields."""

    prompt: str = "prompt"
    """Prompt fields, separated by commas and joined by newlines; empty ones are dropped."""
    text: str = "text"
    """Field of a text whose first words become the prompt, for rows without a prompt."""
    answer: str = "answer"
    """Field of a reference answer, which verifiers and evaluation compare responses with; its column is
    called "answer"."""


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
    tfds:NAME[/CONFIG][:SPLIT] with slices such as train[:90%], hf:NAME[/CONFIG][:SPLIT], or a folder of TFDS
    or of `save_to_disk`. A row has "text", or "prompt" and "response", or "messages" that end with an
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
    """Source of rated responses that train reward models in place of comparisons: rows with "prompt",
    "response" and a number, "rating", "score" or "label". They also give the prompts, and the corpus (the
    responses rated at least as high as the mean), where none of these are named."""
    ratings_fields: RatingFields = RatingFields()
    prompts: str = ""
    """Source of prompts: files, tfds:NAME, hf:NAME, or a folder. A row has "prompt" (text or messages), or
    "text", whose first words become the prompt. A Python reward can read the other fields of a row."""
    prompts_fields: PromptFields = PromptFields()
    bad: Literal["fail", "skip"] = "fail"
    """Treatment of records that cannot be used (no JSON, not UTF-8, a field missing, an empty text, a label
    out of range): "fail" refuses the first one, "skip" leaves them out and tells how many, where and why."""
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
    reviews: Count = 20_000
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
        spec.loader.exec_module(module)
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
        corpus=task.corpus(seed, cfg.reviews, train),
        corpus_held_out=task.corpus(seed + 1, max(8, cfg.reviews // 10), held_out),
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


def unseen(train: Sequence, held_out: Sequence, prompts=()) -> Callable:
    """`teaches(group, prompt, response)` of `splits.make_teaches`, for held-out feedback and prompts.

    A response that only held-out prompts have is a held-out text.
    """
    sides = [(x.prompt, text) for x in held_out for text in x.responses]
    common = {words(text) for x in train for text in x.responses}
    texts = [f"{prompt} {text}" for prompt, text in sides]
    texts += [text for _, text in sides if words(text) not in common]
    asked = [*(x.prompt for x in held_out), *(row.prompt for row in prompts)]
    return make_teaches([row.group for row in [*held_out, *prompts]], asked, texts)


def kept(items: list, teaches: Callable, name: str) -> list:
    """The items that may be trained on; prints how many may not. `name` is the setting of their files.

    Raises ValueError where none is left.
    """
    found = [item for item in items if teaches(item)]
    if len(found) < len(items):
        count = f"{len(items) - len(found)} of {len(items)}"
        print(
            f"left out: {count} rows of {name}, which answer or repeat what is held out", flush=True
        )
    if not found:
        raise ValueError(f"{name}: all rows answer or repeat held-out texts: give more rows")
    return found


# --- files


def check_files(cfg: DataConfig, needs: Needs):
    """Raises ValueError where files are missing or unused, or where fields are named for files not given."""
    for name in FILES:
        fields = "fields" if name == "comparisons" else f"{name}_fields"
        value = getattr(cfg, fields)
        if value != type(value)() and not getattr(cfg, name):
            raise ValueError(
                f"data.{fields} names fields of files, and data.{name} is empty: give the files too, or "
                "leave the fields out"
            )
    if cfg.turns != "last" and not cfg.corpus:
        raise ValueError(
            f'data.turns = "{cfg.turns}" says what is learned of dialogues in data.corpus, which is empty: '
            "name its files, or leave data.turns out"
        )
    if not has_files(cfg):
        return
    rated = cfg.ratings and "ratings" in needs.optional
    if rated and cfg.comparisons:
        raise ValueError(
            f'data.ratings = "{cfg.ratings}" and data.comparisons = "{cfg.comparisons}" are both given, and '
            "a reward model learns from one of them: leave the other out"
        )
    for name in FILES:
        if name in needs.needed and not getattr(cfg, name) and not rated:
            raise ValueError(
                f"data.{name} is empty while other files are given: name its files or data set, or give none "
                "for a generated task (reference replaces the corpus; reward_model, or rl.reward alone, "
                "replaces the comparisons)"
            )
    for name in FILES:
        if getattr(cfg, name) and name not in needs.needed + needs.optional:
            raise ValueError(
                f'data.{name} = "{getattr(cfg, name)}" has no effect because nothing here is trained on it: '
                "leave it out"
            )


def read_prompts(cfg: DataConfig, chat: Chat, bad: BadRecords | None = None) -> list[Row]:
    """Each prompt of the source with its columns, the other fields of its row.

    The reference answer is the column "answer", in place of any other field of that name. Rows with equal
    prompt and columns are merged; a prompt with two answers keeps two rows. Raises BadRecord, in one sentence
    that names path and line, for a row without a prompt, or without an answer in a field that the settings
    name, unless `bad` skips it.
    """
    fields, default, rows = cfg.prompts_fields, PromptFields(), {}
    bad = bad or BadRecords()
    names = [name.strip() for name in fields.prompt.split(",") if name.strip()]
    for row in sources.read(cfg.prompts, bad=bad):
        with bad:
            row, used = plain(row, chat, names), names
            by_text = fields.text in row and fields.prompt == default.prompt
            if by_text and (fields.text != default.text or default.prompt not in row):
                used = [fields.text]
                text = sources.field(row, fields.text, str)
                prompt = " ".join(text.split()[: cfg.prompt_words])
            else:
                prompt = sources.texts(row, names)
            if not prompt:
                more = ": leave the row out, or give a text"
                raise BadRecord(row.where, "the prompt is empty", more)
            columns = {key: value for key, value in row.items() if key not in used}
            if fields.answer != default.answer:
                columns[default.answer] = _answer(row, fields.answer)
                columns.pop(fields.answer, None)
            asked = Row(prompt, columns, row.group or group_of(prompt))
            rows.setdefault((prompt, json.dumps(columns, sort_keys=True)), asked)
    bad.check(rows, cfg.prompts)
    return list(rows.values())


def _answer(row: sources.Row, name: str) -> Any:
    """The reference answer in a field that the settings name."""
    if row.get(name) is None:
        found = ", ".join(map(repr, row)) or "none"
        more = f", which data.prompts_fields.answer names, and the fields found are {found}"
        raise BadRecord(row.where, f"field {name!r} is missing", more)
    return row[name]


def _records(cfg: DataConfig, seed: int, chat: Chat) -> tuple[list, int, list, list]:
    """(comparisons or ratings, number of ties, demonstrations, prompts) of the sources; prints what is left
    out."""
    judged, ties, demos, rows = [], 0, [], []
    bad = {name: BadRecords(skip=cfg.bad == "skip") for name in FILES}
    if cfg.ratings:
        judged = read_ratings(cfg.ratings, cfg.ratings_fields, chat, bad["ratings"])
    elif cfg.comparisons:
        judged, ties = read_comparisons(cfg.comparisons, cfg.fields, seed, chat, bad["comparisons"])
    if cfg.corpus:
        demos = read_demonstrations(cfg.corpus, chat, cfg.corpus_fields, cfg.turns, bad["corpus"])
    if cfg.prompts:
        rows = read_prompts(cfg, chat, bad["prompts"])
    for name, records in bad.items():
        if records.found:
            print(f"left out of data.{name}: {records}", flush=True)
    if ties:
        print(f"left out: {ties} ties of data.comparisons", flush=True)
    return judged, ties, demos, rows


def from_files(cfg: DataConfig, seed: int, chat: Chat = NO_TEMPLATE, needs: Needs = ALL) -> Texts:
    """Texts of files and data sets, split by hash. Every one is read and checked before any training.

    Prompts and comparisons are held out by one hash of one key, so a prompt is on the same side of both.
    Corpus texts that answer or repeat held-out ones are not used at all. Without prompt files, the prompts
    of the feedback or of the corpus are used; without a corpus where one is needed, the chosen responses, or
    those rated at least as high as the mean.
    """
    judged, ties, demos, rows = _records(cfg, seed, chat)  # all are read before any is split
    source = "data.ratings" if cfg.ratings else "data.comparisons"
    side = lambda rows, seed, name: split(
        rows, of_group, cfg.held_out, seed, f"{name} by data.held_out"
    )
    rows, rows_held_out = side(rows, seed, "data.prompts") if rows else ([], [])
    feedback = None
    if judged:
        train, held_out = side(judged, seed, source)
        teaches = unseen(train, held_out, rows_held_out)
        all_of = lambda x: all(teaches(x.group, x.prompt, text) for text in x.responses)
        train = kept(train, all_of, source)
        halves = halved(train, seed, source) if needs.halves else (train, [])
        feedback = Feedback(train, halves, held_out)
        check_alike([[x.score for x in half if isinstance(x, Rating)] for half in halves])
    else:
        teaches = unseen([], [], rows_held_out)
    name = "data.corpus"
    if not demos and feedback and "corpus" in needs.needed + needs.optional:
        name = f"the better responses of {source}"
        demos = better(feedback.train)
    demos_held_out = []
    if demos:
        said = lambda demo: taught(demo.prompt, demo.response, cfg.turns)
        fresh = lambda demo: all(teaches(demo.group, *pair) for pair in said(demo))
        demos, demos_held_out = side(kept(demos, fresh, name), seed + 2, name)
    if not cfg.prompts:
        own = (feedback.train, feedback.held_out) if feedback else (demos, demos_held_out)
        rows, rows_held_out = (
            list({x.prompt: Row(x.prompt, {}, x.group) for x in part if x.prompt}.values())
            for part in own
        )
        if "prompts" in needs.needed and not (rows and rows_held_out):
            raise ValueError(
                f"data.prompts is empty, and too few rows of {source} have a prompt: name files of prompts"
            )
    return Texts(
        corpus=[demo[:2] for demo in demos],
        corpus_held_out=[demo[:2] for demo in demos_held_out],
        rows=rows,
        rows_held_out=rows_held_out,
        pairs=feedback,
        compared=[],
        ties=ties,
        task=None,
    )


def better(train: list) -> list[Demonstration]:
    """The chosen responses of comparisons, or those rated at least as high as the mean, each once."""
    rated = [x for x in train if isinstance(x, Rating)]
    mean = sum(x.score for x in rated) / max(len(rated), 1)
    found = (
        Demonstration(x.prompt, x.responses[0], x.group)
        for x in train
        if not isinstance(x, Rating) or x.score >= mean
    )
    return list(dict.fromkeys(found))


def has_files(cfg: DataConfig) -> bool:
    """True where files are named; otherwise a generated task provides the texts."""
    return any(getattr(cfg, name) for name in FILES)


def read(cfg: DataConfig, task: Task | None, seed: int, chat: Chat, needs: Needs) -> Texts:
    """Texts of the files in `cfg`, or of `task` where no file is named."""
    check_files(cfg, needs)
    if task is None:
        return from_files(cfg, seed, chat, needs)
    return generated(cfg, task, seed, needs)


def judged(task: Task, rows: Sequence[Row], a: list[str], b: list[str]) -> annotators.Pairs:
    """Gold and length of both responses to each row."""
    plain = [plain_row(row) for row in rows]
    words = [np.array([len(x.split()) for x in side], float) for side in (a, b)]
    return annotators.Pairs(task.gold(plain, a), task.gold(plain, b), *words)
