"""Texts of a run read from files and data sets, split so that nothing held out is learned."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.data import sources
from rlhf_jax.data.bad_records import BadRecord, BadRecords
from rlhf_jax.data.comparisons import read_comparisons
from rlhf_jax.data.demonstrations import Demonstration, read_demonstrations, taught
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.ratings import Rating, check_alike, read_ratings
from rlhf_jax.data.splits import group_of, make_teaches, split, words
from rlhf_jax.pipeline.texts import (
    ALL,
    FILES,
    DataConfig,
    Feedback,
    Needs,
    PromptFields,
    Row,
    Texts,
    generated,
    halved,
    has_files,
    of_group,
)
from rlhf_jax.tasks.task import Task


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


def decided(items: list, name: str) -> list:
    """The held-out items that can be right or wrong: all but pairs whose probability is 1/2; prints how many
    are not. `name` is the setting of their files.

    Raises ValueError where none is left.
    """
    found = [x for x in items if isinstance(x, Rating) or x.probability > 0.5]
    if len(found) < len(items):
        count = f"{len(items) - len(found)} of {len(items)}"
        print(
            f"not counted: {count} held-out pairs of {name}, of which neither is better", flush=True
        )
    if not found:
        raise ValueError(
            f"{name}: in every held-out pair both responses are as good: give more rows in which one is "
            "better"
        )
    return found


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
            "a run learns from one of them: leave the other out"
        )
    unused = [x for x in FILES if getattr(cfg, x) and x not in needs.needed + needs.optional]
    lacking = [
        f"data.{x}" for x in FILES if x in needs.needed and not getattr(cfg, x) and not rated
    ]
    if unused and (not lacking or "ratings" in unused):
        name = "ratings" if "ratings" in unused else unused[0]
        raise ValueError(
            f'data.{name} = "{getattr(cfg, name)}" has no effect because nothing here is trained on it: '
            "leave it out"
        )
    if lacking:
        raise ValueError(
            f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} empty while other files are "
            "given: name files or a data set there, or give none for a generated task (reference replaces "
            "the corpus; reward_model, or rl.reward alone, replaces the comparisons)"
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
    names, deep = sources.field_names(fields.prompt), sources.paths(fields)
    for row in sources.read(cfg.prompts, bad=bad):
        with bad:
            row, used = plain(sources.reached(row, deep), chat, names), names
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
            bad.keep(row.where, prompt)
    bad.check(rows, cfg.prompts)
    return list(rows.values())


def _answer(row: sources.Row, name: str) -> Any:
    """The reference answer in a field that the settings name."""
    if row.get(name) is None:
        found = ", ".join(map(repr, row)) or "none"
        more = f", which data.prompts_fields.answer names, and the fields found are {found}"
        raise BadRecord(row.where, f"field {name!r} is missing", more)
    return row[name]


def _records(cfg: DataConfig, seed: int, chat: Chat) -> tuple[list, int, list, list, dict]:
    """(comparisons or ratings, number of ties, demonstrations, prompts, and the origins of their texts by
    setting) of the sources; prints what is left out."""
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
    origins = {name: records.origins for name, records in bad.items() if records.origins}
    return judged, ties, demos, rows, origins


def from_files(cfg: DataConfig, seed: int, chat: Chat = NO_TEMPLATE, needs: Needs = ALL) -> Texts:
    """Texts of files and data sets, split by hash. Every one is read and checked before any training.

    Prompts and comparisons are held out by one hash of one key, so a prompt is on the same side of both.
    Corpus texts that answer or repeat held-out ones are not used at all. Without prompt files, the prompts
    of the feedback or of the corpus are used; without a corpus where one is needed, the chosen responses, or
    those rated at least as high as the mean.
    """
    # all are read before any is split
    judged, ties, demos, rows, origins = _records(cfg, seed, chat)
    source = "data.ratings" if cfg.ratings else "data.comparisons"
    side = lambda rows, seed, name: split(
        rows, of_group, cfg.held_out, seed, f"{name} by data.held_out"
    )
    rows, rows_held_out = side(rows, seed, "data.prompts") if rows else ([], [])
    feedback, train, held_out = None, [], []
    if judged:
        train, held_out = side(judged, seed, source)
        teaches = unseen(train, held_out, rows_held_out)
        all_of = lambda x: all(teaches(x.group, x.prompt, text) for text in x.responses)
        train = kept(train, all_of, source)
        halves = halved(train, seed, source) if needs.halves else (train, [])
        feedback = Feedback(train, halves, decided(held_out, source))
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
        own = (train, held_out) if feedback else (demos, demos_held_out)
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
        origins=origins,
    )


def better(train: list) -> list[Demonstration]:
    """The better responses of comparisons, or those rated at least as high as the mean, each once."""
    rated = [x for x in train if isinstance(x, Rating)]
    mean = sum(x.weight * x.score for x in rated) / (sum(x.weight for x in rated) or 1)
    found = (
        Demonstration(x.prompt, x.responses[0], x.group)
        for x in train
        if (x.score >= mean if isinstance(x, Rating) else x.probability > 0.5)
    )
    return list(dict.fromkeys(found))


def read(cfg: DataConfig, task: Task | None, seed: int, chat: Chat, needs: Needs) -> Texts:
    """Texts of the files in `cfg`, or of `task` where no file is named."""
    check_files(cfg, needs)
    if task is None:
        return from_files(cfg, seed, chat, needs)
    return generated(cfg, task, seed, needs)
