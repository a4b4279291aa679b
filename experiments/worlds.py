"""What the stages learn from and are judged on, as texts: the generated world, or JSONL files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf_jax import run
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import ComparisonFields, read_comparisons
from rlhf_jax.data.demonstrations import read_demonstrations
from rlhf_jax.data.dialogues import NO_TEMPLATE, Chat, plain
from rlhf_jax.data.sources import field, read_jsonl
from rlhf_jax.data.splits import split
from rlhf_jax.data.tokenizer import at_seam
from rlhf_jax.tasks import annotators, reviews


@dataclass(frozen=True)
class DataConfig:
    """What is learned from. With no files, the generated world."""

    corpus: str = ""
    """JSONL files of what the language model learns (commas and globs allowed): rows with "text", with
    "prompt" and "response", or with "messages" that end with an answer."""
    comparisons: str = ""
    """JSONL files of preferences: what the reward model and its held-out judge learn."""
    prompts: str = ""
    """JSONL files with a field "prompt" (a text or messages), or "text" whose first words are the prompt."""
    fields: ComparisonFields = ComparisonFields()
    prompt_words: int = 4
    """Words of a "text" that make a prompt."""
    prompt_length: int = 10
    """Columns of a prompt, in tokens (P); longer ones keep their end."""
    held_out: float = 0.1
    """Share of texts, of prompts, and of comparisons by prompt, that nothing is trained on."""
    vocab_size: int = 600
    """Most tokens of a tokenizer that is trained here."""
    reviews: int = 20_000
    """Generated world: reviews in the corpus; a tenth as many are held out."""
    pairs: int = 20_000
    """Generated world: comparisons of the SFT model's responses; half teach the held-out judge."""


class World(NamedTuple):
    """Prompts and responses to imitate, prompts to answer, and how answers are judged."""

    corpus: list[tuple[str, str]]
    corpus_held_out: list[tuple[str, str]]
    prompts: list[str]
    prompts_held_out: list[str]
    columns: list[dict]  # the other fields of each prompt's row, which a Python reward may ask for
    columns_held_out: list[dict]
    comparisons: Callable  # (run directory, respond: prompts -> responses) -> [Comparison]
    known: Callable  # ([Comparison]) -> facts about the world that results stand beside
    gold: Callable | None  # (prompts, responses) -> float32 [N]; None where nobody knows it


def generated(cfg: DataConfig, people: annotators.AnnotatorConfig, seed: int) -> World:
    """The grammar of `tasks.reviews` and its annotators, who judge what `respond` says.

    Held-out prompts appear in no stage.
    """
    train, held_out = reviews.split_prompts(cfg.held_out, seed)
    corpus_held_out = reviews.generate(seed + 1, max(8, cfg.reviews // 10), held_out)

    def judged(prompts, a, b):
        words = [np.array([len(x.split()) for x in side], float) for side in (a, b)]
        return annotators.Pairs(reviews.golds(prompts, a), reviews.golds(prompts, b), *words)

    def compare(respond):
        print(f"comparisons: simulated people judge {cfg.pairs} pairs of responses", flush=True)
        asked = [train[row] for row in rows_at(len(train), cfg.pairs, seed, 0)]
        both = respond([prompt for prompt in asked for _ in range(2)])
        a, b = both[::2], both[1::2]
        preferred = annotators.annotate(judged(asked, a, b), people, seed)
        return [
            {"prompt": prompt, "responses": [x, y], "preference": best, "annotator": "simulated"}
            for prompt, x, y, best in zip(asked, a, b, preferred.tolist(), strict=True)
        ]

    def comparisons(folder, respond):
        run.cached(folder, "comparisons.jsonl", lambda: compare(respond))
        return read_comparisons([str(folder / "comparisons.jsonl")])[0]

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


def read_prompts(cfg: DataConfig, chat: Chat) -> list[tuple[str, dict]]:
    """Each prompt of the files with its columns, which are the other fields of its row.

    Rows that repeat a prompt and all of its columns are one; a prompt with two answers stays two rows.
    """
    rows = {}
    for row in read_jsonl(cfg.prompts):
        row = plain(row, chat)
        if "prompt" in row or "text" not in row:
            name, prompt = "prompt", field(row, "prompt", str)
        else:
            name = "text"
            prompt = " ".join(field(row, name, str).split()[: cfg.prompt_words])
        columns = {key: value for key, value in row.items() if key != name}
        rows.setdefault((prompt, json.dumps(columns, sort_keys=True)), (prompt, columns))
    return list(rows.values())


def from_files(cfg: DataConfig, seed: int, chat: Chat = NO_TEMPLATE) -> World:
    """The texts of JSONL files, split by hash. Every file is read, and refused, before any training."""
    missing = [n for n in ("corpus", "comparisons", "prompts") if not getattr(cfg, n)]
    if missing:
        raise ValueError(
            f"data.{missing[0]} is empty while other files are given: name its JSONL files, "
            "or give none for the generated world"
        )
    compared, _ = read_comparisons(cfg.comparisons, cfg.fields, seed, chat)
    demos = read_demonstrations(cfg.corpus, chat)
    # by another hash than what answers them, of which some of the rest is held out too
    sides = split(read_prompts(cfg, chat), lambda row: row[0], cfg.held_out, seed + 2)
    prompts, prompts_held_out = ([prompt for prompt, _ in side] for side in sides)
    columns, columns_held_out = ([others for _, others in side] for side in sides)
    # one file may be corpus and prompts at once: what begins with a held-out prompt teaches nothing
    begins, held_out = tuple(f"{prompt} " for prompt in prompts_held_out), set(prompts_held_out)
    fresh = lambda prompt, text: (
        prompt not in held_out and not f"{prompt}{at_seam(prompt, text)} ".startswith(begins)
    )
    read = len(demos) + len(compared)
    demos = [demo for demo in demos if fresh(*demo)]
    compared = [c for c in compared if fresh(c.prompt, c.chosen) and fresh(c.prompt, c.rejected)]
    left_out = read - len(demos) - len(compared)
    if left_out:
        print(f"left out: {left_out} texts and comparisons that begin with a held-out prompt")
    corpus, corpus_held_out = split(demos, lambda demo: demo[0] or demo[1], cfg.held_out, seed)
    return World(
        corpus=corpus,
        corpus_held_out=corpus_held_out,
        prompts=prompts,
        prompts_held_out=prompts_held_out,
        columns=columns,
        columns_held_out=columns_held_out,
        comparisons=lambda folder, respond: compared,
        known=lambda comparisons: {},
        gold=None,
    )


def read(cfg: DataConfig, people: annotators.AnnotatorConfig, seed: int, chat: Chat) -> World:
    """The world of the files in `cfg`, or the generated one where it names none."""
    if cfg.corpus or cfg.comparisons or cfg.prompts:
        return from_files(cfg, seed, chat)
    return generated(cfg, people, seed)
