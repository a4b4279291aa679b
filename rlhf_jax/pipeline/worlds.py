"""What the stages learn from and are judged on, as texts: the generated world, or JSONL files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from rlhf_jax.bounds import Bound, Count, Inside, Settings, Whole
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import Comparison, ComparisonFields, read_comparisons
from rlhf_jax.data.demonstrations import CorpusFields, read_demonstrations
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.sources import field, read_jsonl, texts
from rlhf_jax.data.splits import group_of, make_teaches, split, words
from rlhf_jax.people import annotators
from rlhf_jax.runs import run
from rlhf_jax.tasks import reviews


@dataclass(frozen=True)
class PromptFields(Settings):
    """Which fields of a row of prompts hold what; the others are columns, for Python rewards."""

    prompt: str = "prompt"
    """fields of the prompt, joined by newlines; empty ones are left out"""
    text: str = "text"
    """a text whose first words are the prompt, in rows that have no prompt"""


@dataclass(frozen=True)
class DataConfig(Settings):
    """What is learned from. With no files, the generated world."""

    _main = ("corpus", "comparisons", "prompts", "prompt_length")

    corpus: str = ""
    """JSONL files of what the language model learns (commas and globs allowed): rows with "text", with
    "prompt" and "response", or with "messages" that end with an answer."""
    corpus_fields: CorpusFields = CorpusFields()
    comparisons: str = ""
    """JSONL files of preferences: what the reward model and its held-out judge learn."""
    fields: ComparisonFields = ComparisonFields()
    prompts: str = ""
    """JSONL files with a field "prompt" (a text or messages), or "text" whose first words are the prompt. A
    Python reward may ask for the other fields of a row."""
    prompts_fields: PromptFields = PromptFields()
    prompt_words: Count = 4
    """Words of a "text" that make a prompt."""
    prompt_length: Whole = 0
    """Columns of a prompt, in tokens (P); a longer text keeps its end, a longer dialogue its latest messages.
    0: 10 in the generated world, and of files what holds 99 % of the prompts of each."""
    held_out: Inside = 0.1
    """Share of the prompts that nothing is trained on, with all texts and comparisons that answer them; and
    share of the other texts that tell when SFT ends."""
    vocab_size: Annotated[int, Bound(ge=259)] = 600
    """Most tokens of a tokenizer that is trained here; 256 bytes and three marks are the least."""
    reviews: Count = 20_000
    """Generated world: reviews in the corpus; a tenth as many are held out."""
    pairs: Count = 20_000
    """Generated world: comparisons of the SFT model's responses; half teach the held-out judge."""


class Pairs(NamedTuple):
    """Comparisons, each prompt on one side; the halves of `train` teach the reward model and the judge."""

    train: list[Comparison]
    halves: tuple[list[Comparison], list[Comparison]]
    held_out: list[Comparison]


class Asked(NamedTuple):
    """A prompt, the other fields of its row, and its key."""

    prompt: str
    columns: dict
    group: str


class World(NamedTuple):
    """Prompts and responses to imitate, prompts to answer, and how answers are judged."""

    corpus: list[tuple[str, str]]
    corpus_held_out: list[tuple[str, str]]
    prompts: list[str]
    prompts_held_out: list[str]
    columns: list[dict]  # the other fields of each prompt's row, which a Python reward may ask for
    columns_held_out: list[dict]
    comparisons: Callable | None  # (run directory, respond: prompts -> responses) -> Pairs
    known: Callable  # ([Comparison]) -> facts about the world that results stand beside
    gold: Callable | None  # (prompts, responses) -> float32 [N]; None where nobody knows it


def generated(cfg: DataConfig, people: annotators.AnnotatorConfig, seed: int) -> World:
    """The grammar of `tasks.reviews` and its annotators, who judge what `respond` says.

    Held-out prompts appear in no stage.
    """
    train, held_out = reviews.split_prompts(cfg.held_out, seed)
    corpus_held_out = reviews.generate(seed + 1, max(8, cfg.reviews // 10), held_out)

    asked = [train[row] for row in rows_at(len(train), cfg.pairs, seed, 0)]
    pairs_of = lambda items, group: divided(
        items, group, cfg.held_out, seed, f"data.pairs = {cfg.pairs}"
    )
    pairs_of(asked, lambda prompt: prompt)  # too few are refused now, and not after SFT

    def judged(prompts, a, b):
        words = [np.array([len(x.split()) for x in side], float) for side in (a, b)]
        return annotators.Pairs(reviews.golds(prompts, a), reviews.golds(prompts, b), *words)

    def compare(respond):
        print(f"comparisons: simulated people judge {cfg.pairs} pairs of responses", flush=True)
        both = respond([prompt for prompt in asked for _ in range(2)])
        a, b = both[::2], both[1::2]
        preferred = annotators.annotate(judged(asked, a, b), people, seed)
        return [
            {"prompt": prompt, "responses": [x, y], "preference": best, "annotator": "simulated"}
            for prompt, x, y, best in zip(asked, a, b, preferred.tolist(), strict=True)
        ]

    def comparisons(folder, respond):
        run.cached(folder, "comparisons.jsonl", lambda: compare(respond))
        compared, _ = read_comparisons([str(folder / "comparisons.jsonl")])
        return Pairs(*pairs_of(compared, lambda c: c.group))

    def known(comparisons):
        asked, chosen, rejected = list(zip(*comparisons, strict=True))[:3]
        p = annotators.preference_probability(*judged(asked, chosen, rejected), people)
        nats = -np.mean([reviews.log_prob(*review) for review in corpus_held_out])
        return {
            "reward accuracy ceiling (annotator noise)": annotators.accuracy_ceiling(p),
            "entropy of the grammar, nats a response": float(nats),
        }

    return World(
        corpus=[(prompt, said) for prompt, said in reviews.generate(seed, cfg.reviews, train)],
        corpus_held_out=[(prompt, said) for prompt, said in corpus_held_out],
        prompts=train,
        prompts_held_out=held_out,
        columns=[{} for _ in train],
        columns_held_out=[{} for _ in held_out],
        comparisons=comparisons,
        known=known,
        gold=reviews.golds,
    )


def check_fields(cfg):
    """Raises ValueError where fields are named of files that are not given."""
    for files, fields in (
        ("corpus", "corpus_fields"),
        ("comparisons", "fields"),
        ("prompts", "prompts_fields"),
    ):
        named = getattr(cfg, fields, None)
        if named is not None and named != type(named)() and not getattr(cfg, files):
            raise ValueError(
                f"data.{fields} names fields of files, and data.{files} is empty: give the files too, or "
                "leave the fields out"
            )


def divided(items: Sequence, group_of: Callable, held_out: float, seed: int, name: str) -> tuple:
    """What is trained on, its two halves, and what is held out: the fields of Pairs.

    Raises ValueError, with `name` in it, where one of them would be empty.
    """
    train, others = split(items, group_of, held_out, seed, f"{name} by data.held_out")
    return train, halved(train, group_of, seed, name), others


def halved(train: Sequence, group_of: Callable, seed: int, name: str) -> tuple[list, list]:
    """The half that the reward model learns, and the half that the judge learns."""
    name = f"the halves of {name}, for the reward model and for the judge"
    return split(train, group_of, 0.5, seed + 1, name)


def read_prompts(cfg: DataConfig, chat: Chat) -> list[Asked]:
    """Each prompt of the files with its columns, which are the other fields of its row.

    Rows that repeat a prompt and all of its columns are one; a prompt with two answers stays two rows.
    Raises ValueError, in one sentence that names path and line, for a row without a prompt.
    """
    fields, default, rows = cfg.prompts_fields, PromptFields(), {}
    names = [name.strip() for name in fields.prompt.split(",") if name.strip()]
    for row in read_jsonl(cfg.prompts):
        row, used = plain(row, chat, names), names
        by_text = fields.text in row and fields.prompt == default.prompt
        if by_text and (fields.text != default.text or default.prompt not in row):
            used = [fields.text]
            prompt = " ".join(field(row, fields.text, str).split()[: cfg.prompt_words])
        else:
            prompt = texts(row, names)
        if not prompt:
            raise ValueError(f"{row.where}: the prompt is empty: leave the row out, or give a text")
        columns = {key: value for key, value in row.items() if key not in used}
        asked = Asked(prompt, columns, row.group or group_of(prompt))
        rows.setdefault((prompt, json.dumps(columns, sort_keys=True)), asked)
    return list(rows.values())


def unseen(train: Sequence[Comparison], held_out: Sequence[Comparison], prompts=()) -> Callable:
    """`teaches(group, prompt, response)` of `splits.make_teaches`, for held-out comparisons and prompts.

    A response to a held-out prompt alone is a held-out text; one that prompts of `train` have too is not.
    """
    sides = [(c.prompt, text) for c in held_out for text in (c.chosen, c.rejected)]
    common = {words(text) for c in train for text in (c.chosen, c.rejected)}
    texts = [f"{prompt} {text}" for prompt, text in sides]
    texts += [text for _, text in sides if words(text) not in common]
    asked = [*(c.prompt for c in held_out), *(row.prompt for row in prompts)]
    return make_teaches([row.group for row in [*held_out, *prompts]], asked, texts)


def kept(items: list, teaches: Callable, name: str) -> list:
    """The items that may teach, with a line about those that may not; `name` is the setting of their files.

    Raises ValueError where none is left.
    """
    found = [item for item in items if teaches(item)]
    if len(found) < len(items):
        count = f"{len(items) - len(found)} of {len(items)}"
        print(
            f"left out: {count} rows of {name}, which answer or repeat what is held out", flush=True
        )
    if not found:
        raise ValueError(
            f"{name}: all of its rows answer or repeat what is held out: give others too"
        )
    return found


def from_files(
    cfg: DataConfig, seed: int, chat: Chat = NO_TEMPLATE, dispensable: tuple[str, ...] = ()
) -> World:
    """The texts of JSONL files, split by hash. Every file is read, and refused, before any training.

    Prompts and comparisons are held out by one hash of one key, so that a prompt is on the same side of both.
    No text of the corpus that answers or repeats what is held out is used at all. The files that
    `dispensable` lists may be missing; nothing is then learned from them.
    """
    needed = [n for n in ("corpus", "comparisons", "prompts") if n not in dispensable]
    missing = [n for n in needed if not getattr(cfg, n)]
    if missing:
        raise ValueError(
            f"data.{missing[0]} is empty while other files are given: name its JSONL files, or give none "
            "for the generated world (a Python reward alone, rl.reward, needs no comparisons, and with "
            "reference no corpus)"
        )
    compared, ties, demos = [], 0, []  # every file is read before any is split
    if cfg.comparisons:
        compared, ties = read_comparisons(cfg.comparisons, cfg.fields, seed, chat)
    if cfg.corpus:
        demos = read_demonstrations(cfg.corpus, chat, cfg.corpus_fields)
    group, asked = lambda row: row.group, read_prompts(cfg, chat)
    side = lambda rows, seed, name: split(
        rows, group, cfg.held_out, seed, f"{name} by data.held_out"
    )
    if ties:
        print(f"left out: {ties} ties of data.comparisons", flush=True)
    prompts, prompts_held_out = side(asked, seed, "data.prompts")
    pairs = Pairs([], ([], []), [])
    if cfg.comparisons:
        train, held_out = side(compared, seed, "data.comparisons")
        pairs = Pairs(train, ([], []), held_out)
    teaches = unseen(pairs.train, pairs.held_out, prompts_held_out)
    if cfg.comparisons:
        of_pair = lambda c: all(teaches(c.group, c.prompt, x) for x in (c.chosen, c.rejected))
        train = kept(pairs.train, of_pair, "data.comparisons")
        pairs = Pairs(train, halved(train, group, seed, "data.comparisons"), pairs.held_out)
    corpus, corpus_held_out = [], []
    if cfg.corpus:
        fresh = lambda demo: teaches(demo.group, demo.prompt, demo.response)
        corpus, corpus_held_out = side(kept(demos, fresh, "data.corpus"), seed + 2, "data.corpus")
    return World(
        corpus=[demo[:2] for demo in corpus],
        corpus_held_out=[demo[:2] for demo in corpus_held_out],
        prompts=[row.prompt for row in prompts],
        prompts_held_out=[row.prompt for row in prompts_held_out],
        columns=[row.columns for row in prompts],
        columns_held_out=[row.columns for row in prompts_held_out],
        comparisons=(lambda folder, respond: pairs) if cfg.comparisons else None,
        known=lambda comparisons: {},
        gold=None,
    )


def has_files(cfg: DataConfig) -> bool:
    """Whether any data are named; without, the world is the generated one."""
    return bool(cfg.corpus or cfg.comparisons or cfg.prompts)


def read(
    cfg: DataConfig,
    people: annotators.AnnotatorConfig,
    seed: int,
    chat: Chat,
    dispensable: tuple[str, ...] = (),
) -> World:
    """The world of the files in `cfg`, or the generated one where it names none."""
    check_fields(cfg)
    if has_files(cfg):
        return from_files(cfg, seed, chat, dispensable)
    return generated(cfg, people, seed)
