"""Columns of prompts and answers: taken from the data unless set, with a report of what they truncate."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.bad_records import places
from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.data.demonstrations import answer_ids
from rlhf_jax.data.prompts import prompt_ids
from rlhf_jax.data.ratings import Rating
from rlhf_jax.pipeline import pretrained
from rlhf_jax.runs import disk

SHARE = 0.99
"""Share of the texts of each file that fit into lengths taken from the data."""
POSITIONS = 1024
"""Most columns of lengths taken from the data, for a model with random weights whose context is smaller."""
UNKNOWN = 256
"""Most tokens of an answer where the data hold no answers, as in TRL."""
GENERATED = {"data.prompt_length": 64, "sample.length": 64}
"""Prompt and response lengths of a generated task that sets none."""


class Texts(NamedTuple):
    """Prompts and answers in the files of one setting."""

    setting: str
    prompts: list[str]
    answers: list[tuple[str, str]]  # (prompt, answer)
    origins: Mapping[tuple[str, str], str] = {}  # as `BadRecords.origins`

    def places(self, kind: str, which: Sequence[int]) -> str:
        """The first origins of these "prompts" or "answers", after "; "; empty where they are unknown."""
        keys = self.answers if kind == "answers" else [(x, "") for x in self.prompts]
        found = dict.fromkeys(self.origins[keys[i]] for i in which if keys[i] in self.origins)
        return f"; {places([*found])}" if found else ""


def demonstrated(setting: str, pairs: list[tuple[str, str]]) -> Texts:
    """Prompts and responses of a corpus."""
    return Texts(setting, [prompt for prompt, _ in pairs if prompt], pairs)


def judged(items: Sequence[Comparison | Rating]) -> Texts:
    """Prompts and responses of comparisons or ratings."""
    rated = any(isinstance(x, Rating) for x in items)
    answers = [(x.prompt, response) for x in items for response in x.responses]
    prompts = [x.prompt for x in items if x.prompt]
    return Texts("data.ratings" if rated else "data.comparisons", prompts, answers)


def given(cfg) -> dict[str, int]:
    """The prompt and answer lengths in the settings; zero where the data decide."""
    part, name = _answers_of(cfg)
    answers = getattr(getattr(cfg, part), name)
    return {"data.prompt_length": cfg.data.prompt_length, f"{part}.{name}": answers}


def check(cfg):
    """Raises ValueError where both lengths are set and exceed the model's positions."""
    prompt, answer = given(cfg).values()
    if prompt and answer:
        pretrained.check_context(cfg, (prompt, answer))


def put(cfg, prompt: int, answer: int):
    """The settings with zero lengths replaced by these."""
    lengths = [old or new for old, new in zip(given(cfg).values(), (prompt, answer), strict=True)]
    part, name = _answers_of(cfg)
    cfg = replace(cfg, data=replace(cfg.data, prompt_length=lengths[0]))
    return replace(cfg, **{part: replace(getattr(cfg, part), **{name: lengths[1]})})


def settled(cfg, folder: pathlib.Path, words, texts: Callable[[], list[Texts]]) -> Any:
    """The settings with both lengths, and a context that holds them where the model has random weights.

    Prints what the lengths truncate or leave out in each file. Lengths taken from the data hold 99 % of the
    texts of each file, as far as the model has positions; ValueError is raised where they do not hold half of
    a file, and for any text that `data.long` and `data.bad` refuse.
    """
    asked = given(cfg)
    told = disk.cached(folder, "lengths.json", lambda: _measured(cfg, words, texts()))
    cfg = put(cfg, *told["lengths"])
    for line in told["lines"]:
        print(line, flush=True)
    if not all(asked.values()) and not pretrained.named(cfg):
        cfg = replace(cfg, model=replace(cfg.model, context=told["context"]))
    check(cfg)
    return cfg


def too_long(cfg, words, files: list[Texts]) -> list[Texts]:
    """The texts of each file that are longer than the lengths in the settings."""
    found, (prompt, answer) = [], given(cfg).values()
    for file in files:
        counts = _counts(words, file)
        prompts = [file.prompts[i] for i in np.flatnonzero(counts[0] > prompt)]
        answers = [file.answers[i] for i in np.flatnonzero(counts[1] > answer)]
        found.append(Texts(file.setting, prompts, answers))
    return found


def _answers_of(cfg) -> tuple[str, str]:
    """The group and the name of the setting that holds the answer length."""
    return ("sample", "length") if hasattr(cfg, "sample") else ("data", "length")


def _measured(cfg, words, files: list[Texts]) -> dict:
    """The lengths, context and report lines that `settled` keeps in the run directory."""
    names = list(given(cfg))
    ids = [_counts(words, file) for file in files]
    lengths = _chosen(given(cfg), ids, pretrained.positions(cfg, POSITIONS))
    lines = []
    if not all(given(cfg).values()):
        both = " and ".join(f"{name} = {n}" for name, n in zip(names, lengths, strict=True))
        alone = not any(len(answers) for _, answers in ids)
        lines.append(
            f"lengths: {both} tokens (the data hold prompts only, so {names[1]} is a default)"
            if alone and not given(cfg)[names[1]]
            else f"lengths that hold the data: {both} tokens"
        )
    for file, found in zip(files, ids, strict=True):
        lines += _told(file, found, lengths, cfg)
    context = max(cfg.model.context, sum(lengths))
    return {"lengths": lengths, "context": context, "lines": lines}


def _counts(words, file: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Number of tokens of each prompt and of each answer."""
    of_answers = lambda x: answer_ids(words, *map(list, zip(*x, strict=True)))
    return (
        _lengths(lambda x: prompt_ids(words, x), file.prompts),
        _lengths(of_answers, file.answers),
    )


def _lengths(ids_of: Callable, texts: list) -> np.ndarray:
    """Number of tokens of each text, tokenized in parts."""
    parts = (texts[n : n + 4096] for n in range(0, len(texts), 4096))
    return np.array([len(ids) for part in parts for ids in ids_of(part)], int)


def _chosen(asked: dict[str, int], ids: list[tuple], positions: int) -> list[int]:
    """The lengths: those that are set, and otherwise those that hold the data, within the model's
    positions."""
    wanted = []
    for side, n in enumerate(asked.values()):
        longest = [np.quantile(x[side], SHARE, method="higher") for x in ids if len(x[side])]
        wanted.append(n or int(max(longest, default=(1, UNKNOWN)[side])))
    prompt, answer = wanted
    free_prompt, free_answer = (not n for n in asked.values())
    if free_answer:
        least = positions // 2 if free_prompt else 1
        answer = min(answer, max(least, positions - prompt, 1))
    if free_prompt:
        prompt = min(prompt, max(1, positions - answer))
    return [prompt, answer]


def _told(file: Texts, ids: tuple, lengths: list[int], cfg) -> list[str]:
    """Report lines on one file. Raises ValueError where lengths that nobody set truncate too much, and where
    the settings refuse what is too long."""
    whole, cuts, asked, skips = [], [], given(cfg), cfg.data.long == "bad"
    for kind, x, n, (name, own) in zip(
        ("prompts", "answers"), ids, lengths, asked.items(), strict=True
    ):
        over = np.flatnonzero(x > n).tolist()
        if not len(x):
            continue
        whole.append(f"{len(x)} {kind}")
        if not len(over):
            continue
        share = f"{100 * len(over) / len(x):.1f} %"
        counted = f"{len(over)} of {len(x)} {kind} ({share}{file.places(kind, over)})"
        if not own and 2 * len(over) > len(x):
            raise ValueError(
                f"{counted} of {file.setting} are longer than the {n} tokens that the model's positions "
                f"leave for them (up to {x.max()}): set {name} = {n} to truncate them, or use a model with "
                "more positions (model.context, where it starts from random weights)"
            )
        if skips and cfg.data.bad == "fail":
            raise ValueError(
                f'{counted} of {file.setting} are longer than {n} tokens, which data.long = "bad" refuses: '
                f'set {name} = {x.max()} to keep all, data.bad = "skip" to leave them out, or data.long = '
                '"cut"'
            )
        lost = "a text loses its beginning, a dialogue its oldest messages"
        lost = lost if kind == "prompts" else "their end is lost"
        keeps = f"--{name.replace('_', '-')} {x.max()} keeps all"
        cuts.append(
            f"{counted} are longer than {n} tokens and left out ({keeps})"
            if skips
            else f"{counted} are cut to {n} tokens ({lost}; {keeps})"
        )
    if not cuts:
        return [f"{file.setting}: none of {' and '.join(whole)} is cut"] if whole else []
    lines = [f"{file.setting}: {', '.join(cuts)}"]
    ends = int(np.sum(ids[1] <= lengths[1]))
    if 2 * ends < len(ids[1]) and not skips:
        lines.append(
            f"warning: only {ends} of {len(ids[1])} answers ({100 * ends / len(ids[1]):.1f} %) of "
            f"{file.setting} keep their end, so a policy hardly learns to stop: raise {list(asked)[1]}"
        )
    return lines
