"""Finished runs, opened again: their texts, their tokenizer, and their policies, to sample from."""

import dataclasses
import pathlib
import typing
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from rlhf_jax.bounds import unchecked
from rlhf_jax.data import dialogues
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.pipeline import (
    checkpoints,
    generation,
    keys,
    pretrained,
    reading,
    settings,
    stages,
    texts,
)
from rlhf_jax.runs import run as runs

T = TypeVar("T")
SFT = "sft"
"""The stage of the SFT policy."""


class Finished(NamedTuple):
    """A run that ended: its settings in effect, its texts, and what samples from its policies."""

    folder: pathlib.Path
    cfg: Any
    texts: texts.Texts
    generator: generation.Generator

    def policy(self, stage: str) -> Any:
        """Parameters of the run's policy at the end of a stage, as the function `policy` gives them."""
        return policy(self.folder, stage)


def policy(folder: pathlib.Path, stage: str) -> Any:
    """Parameters of the policy at the end of a stage, or of the reference where `stage` is "sft".

    Raises ValueError for a stage that the run has not finished.
    """
    of = checkpoints.settings_of(folder)
    if stage == SFT and of.reference:
        return pretrained.start(of)
    trained = checkpoints.arrays(folder, stage)
    if "trunk" in trained:
        raise ValueError(f'stage = "{stage}" of {folder} is a reward model: name a policy')
    return checkpoints.whole(folder, of, stage, trained)


def used(folder: pathlib.Path) -> Any:
    """The settings in effect of the run in `folder`.

    Raises ValueError for a folder without a run, or with one that was stopped before it read its texts.
    """
    checkpoints.settings_of(folder)  # which refuses what is no run of a language model
    config = runs.read_config(folder)
    if "used" not in config:
        raise ValueError(
            f'run = "{folder}" did not begin to train: start its command again ({config.get("command")})'
        )
    return of_record(settings.RunConfig(), config["used"])


def opened(folder: pathlib.Path, batch_size: int = 64) -> Finished:
    """The run in `folder`, sampled from at its own lengths and temperature on this machine's devices.

    Raises ValueError as `used`.
    """
    cfg = used(folder)
    chat, task = dialogues.template(cfg.tokenizer), settings.task_of(cfg)
    read = reading.read(cfg.data, task, cfg.seed, chat, texts.Needs((), texts.FILES))
    name = cfg.tokenizer or str(folder / "tokenizer")
    words = stages.read_tokenizer(folder, name, read.said, 0, pretrained.begins(cfg))
    devices = parallel.choose("auto", {}, cfg.model.cuts)
    generator = generation.make_generator(
        cfg.sample,
        devices,
        networks.language_model(cfg.model),
        words,
        cfg.data.prompt_length,
        batch_size,
        read.environment,
    )
    return Finished(folder, cfg, read, generator)


def of_record(default: T, values: dict[str, Any]) -> T:
    """The settings `default` with the `values` of config.json; names that `default` lacks are left out."""
    kept = {}
    for field in dataclasses.fields(typing.cast(Any, default)):
        if field.name in values:
            own, value = getattr(default, field.name), values[field.name]
            if dataclasses.is_dataclass(own):
                value = of_record(own, value)
            elif isinstance(value, list):
                value = tuple(value)
            kept[field.name] = value
    with unchecked():
        return replace(typing.cast(Any, default), **kept)


def sampled(run: Finished, stage: str, rows: list[texts.Row], seed: int) -> list[str]:
    """A response to each row of the policy at the end of `stage`; equal rows get different responses."""
    key = keys.key_of(seed, "people")
    return run.generator.generate(run.policy(stage), rows, key).texts
