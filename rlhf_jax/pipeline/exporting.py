"""A finished stage of a run, read to be written in the Hugging Face format."""

import pathlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.data import tokenizer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import card, huggingface, peft, writing
from rlhf_jax.pipeline import checkpoints, pretrained, reuse, stages
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs


class Exported(NamedTuple):
    """A finished stage of a run, read to be written."""

    of: SimpleNamespace  # the run's settings
    folder: pathlib.Path
    stage: str
    trained: dict  # all parameters, or adapters and heads
    model: ModelConfig
    source: pathlib.Path | None  # the folder of the model that SFT or the run began as

    @property
    def is_reward(self) -> bool:
        """True for a reward model."""
        return "trunk" in self.trained

    def tokenizer(self, pad: bool = True) -> Any:
        """The run's tokenizer."""
        name = self.of.tokenizer or self.folder / "tokenizer"
        return tokenizer.load(name, pad=pad, bos=pretrained.begins(self.of))

    def stops(self, words) -> tuple[int, ...]:
        """Tokens that end a response."""
        return tuple(
            dict.fromkeys([*pretrained.stops(self.of, words), *self.of.sample.get("stop", ())])
        )


def read(folder: pathlib.Path, stage: str = "", best: bool = False) -> Exported:
    """The stage to export, or the method's own. Raises ValueError where there is none."""
    of = checkpoints.settings_of(folder)
    stage = stage or checkpoints.own_stage(folder)
    trained = checkpoints.arrays(folder, stage, best=best)
    centre = folder / "stages" / stage / stages.CENTRE
    if (
        "trunk" in trained and centre.exists()
    ):  # it does not where a run was made by an older version
        trained = reward_model.centre(trained, np.float32(disk.read_json(centre)["mean"]))
    named = pretrained.named(of)
    found = Exported(
        of, folder, stage, trained, of.model, huggingface.resolve(named) if named else None
    )
    if named:
        return found
    return found._replace(model=replace(of.model, vocab_size=tokenizer.size(found.tokenizer())))


def beneath(found: Exported, base: str) -> str:
    """The name of the model beneath the adapters; `base` is that of the run's own SFT policy."""
    if checkpoints.is_whole(found.trained):
        raise ValueError(
            f"stage {found.stage} trained the whole model (lora.rank = {found.of.lora.rank}): no adapter"
        )
    return checkpoints.base_of(found.of, found.stage, found.model, base)


def write(found: Exported, to: pathlib.Path, original: dict | None, shard_bytes: int):
    """Writes a whole model."""
    params = checkpoints.whole(found.folder, found.of, found.stage, found.trained)
    model, words = found.model, found.tokenizer()
    stops = found.stops(words)
    pad = words.get_vocab()[str(words.pad_token)]
    if pad >= model.vocab_size:  # the model that was read has no row for it
        if found.is_reward:
            model, params = writing.with_row(model, params, pad)
        else:
            words = found.tokenizer(pad=False)
    writing.save(
        to, model, params,
        is_reward=found.is_reward, config=original, tokenizer=words, stops=stops,
        generation=huggingface.generation_of(found.source) if found.source else {},
        shard_bytes=shard_bytes,
    )  # fmt: skip


def write_adapter(found: Exported, to: pathlib.Path, family, base: str):
    """Writes adapters alone, over the model `base`."""
    peft.write(to, family, found.model, found.trained, found.of.lora, base)
    words = found.tokenizer()
    words.save_pretrained(to)
    if not found.is_reward:
        generation = huggingface.generation_of(found.source) if found.source else {}
        writing.write_generation(to, words, found.stops(words), generation)


def describe(found: Exported, name: str, base: str, is_adapter: bool, is_best: bool) -> str:
    """The model card of the repository or folder `name`."""
    of, results = found.of, found.folder / "results.json"
    start = of.policy if found.stage not in reuse.STAGES else ""
    export = card.Export(
        name=name,
        stage=found.stage,
        is_reward=found.is_reward,
        is_adapter=is_adapter,
        is_best=is_best,
        base=base or start or pretrained.named(of),
    )
    return card.text(
        export,
        runs.read_config(found.folder),
        disk.read_json(results) if results.exists() else {},
    )
