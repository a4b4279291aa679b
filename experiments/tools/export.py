"""A run's model in the Hugging Face format: weights, tokenizer, template.

    python launch.py export --run runs/rloo/1f0c5a77b2 --to my-policy
    python launch.py export --run runs/rloo/1f0c5a77b2 --stage reward --to my-reward-model

transformers loads both (AutoModelForCausalLM, AutoModelForSequenceClassification with one label), and so does
any experiment here, as --pretrained, --reference or --reward-model. Adapters are merged into their model, or
written for PEFT with --adapter. README.md in the folder is its model card.

    python launch.py export --run runs/rloo/1f0c5a77b2 --to my-policy --push-to-hub USER/my-policy

also uploads the folder, with the token of `hf auth login` or HF_TOKEN. Files of the repository that have the
name of a written one are replaced, weights without one are deleted, and others stay.

A response ends at each id under eos_token_id in generation_config.json and config.json. A classifier of
transformers has no bias: our score is transformers' plus the "score_bias" in config.json, or in the
metadata of adapter_model.safetensors. Loaded here, the folder gives our scores.
"""

import pathlib
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.data import tokenizer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import card, huggingface, peft, uploading, writing
from rlhf_jax.pipeline import checkpoints, pretrained, reuse, stages
from rlhf_jax.runs import disk
from rlhf_jax.runs import run as runs


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the export."""

    run: str = ""
    """Run directory to export from."""
    to: str = ""
    """Folder to create."""
    stage: str = ""
    """Stage to export: sft (the SFT policy), reward, held_out_reward, or empty for the policy that the method
    trained."""
    best: bool = False
    """Write the checkpoint with the highest rl.best instead of the last one."""
    adapter: bool = False
    """Write only the adapters, in PEFT's format."""
    base: str = ""
    """Folder or hub name of the model beneath the adapters, needed where that is the run's own SFT policy:
    the folder to which it was exported."""
    shard_gb: Positive = 5.0
    """Maximum size of a weight file, in gigabytes."""
    push_to_hub: str = ""
    """Repository of the Hugging Face Hub to upload the folder to, as USER/NAME; it is made if it is not
    there."""
    private: bool = False
    """Make that repository a private one; an existing one that is public is then refused."""

    def _unread(self) -> dict[str, str]:
        missing = {"base": "no adapter is written"}
        if self.adapter:
            missing = {"shard_gb": "adapters are one file"}
        if not self.push_to_hub:
            missing["private"] = "nothing is uploaded"
        return missing


config = Config()


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


def main(cfg: Config):
    """Writes the folder, uploads it if asked to, and prints how to use it."""
    to = pathlib.Path(cfg.to)
    for name, value in (("run", cfg.run), ("to", cfg.to)):
        if not value:
            raise ValueError(f"{name} is empty: name a folder")
    runs.check_folder("to", cfg.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f'to = "{to}" is there and not empty: name a new folder')
    if cfg.push_to_hub:
        uploading.check_name(cfg.push_to_hub)
    found = read(cfg)
    original = huggingface.read_config(found.source)[2] if found.source else None
    family, base = writing.family_of(found.model, original), ""
    if cfg.adapter:
        base = beneath(cfg, found)
    if cfg.push_to_hub:
        uploading.create(cfg.push_to_hub, cfg.private)

    if cfg.adapter:
        peft.write(to, family, found.model, found.trained, found.of.lora, base)
        words = found.tokenizer()
        words.save_pretrained(to)
        if not found.is_reward:
            generation = huggingface.generation_of(found.source) if found.source else {}
            writing.write_generation(to, words, found.stops(words), generation)
    else:
        write(cfg, found, to, original)
    (to / card.FILE).write_text(describe(cfg, found, base), encoding="utf-8")
    tell(cfg, found, to)


def read(cfg: Config) -> Exported:
    """The stage to export. Raises ValueError where there is none."""
    folder = pathlib.Path(cfg.run)
    of = checkpoints.settings_of(folder)
    stage = cfg.stage or checkpoints.own_stage(folder)
    trained = checkpoints.arrays(folder, stage, best=cfg.best)
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


def beneath(cfg: Config, found: Exported) -> str:
    """The name of the model beneath the adapters."""
    if checkpoints.is_whole(found.trained):
        raise ValueError(
            f"stage {found.stage} trained the whole model (lora.rank = {found.of.lora.rank}): no adapter"
        )
    base = checkpoints.base_of(found.of, found.stage, found.model, cfg.base)
    if cfg.push_to_hub and pathlib.Path(base).is_dir():
        raise ValueError(
            f'push_to_hub = "{cfg.push_to_hub}" would upload adapters over {base}, a folder that nobody else '
            "has: leave adapter out, or upload that folder first and name it on the hub as base"
        )
    return base


def write(cfg: Config, found: Exported, to: pathlib.Path, original: dict | None):
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
        shard_bytes=int(cfg.shard_gb * 1e9),
    )  # fmt: skip


def describe(cfg: Config, found: Exported, base: str) -> str:
    """The model card."""
    of, results = found.of, found.folder / "results.json"
    start = of.policy if found.stage not in reuse.STAGES else ""
    export = card.Export(
        name=cfg.push_to_hub or pathlib.Path(cfg.to).name,
        stage=found.stage,
        is_reward=found.is_reward,
        is_adapter=cfg.adapter,
        is_best=cfg.best,
        base=base or start or pretrained.named(of),
    )
    return card.text(
        export,
        runs.read_config(found.folder),
        disk.read_json(results) if results.exists() else {},
    )


def tell(cfg: Config, found: Exported, to: pathlib.Path):
    """Prints how to use the folder, and uploads it if asked to."""
    print(
        f"the {'reward model' if found.is_reward else 'policy'} of {found.folder}, stage {found.stage}: {to}"
    )
    ways = "--reference (as it is), --policy (RL goes on) or --pretrained (SFT goes on)"
    print(f"any experiment here takes it as {'--reward-model' if found.is_reward else ways}")
    if found.is_reward:
        print(f"transformers' scores are ours less score_bias = {float(found.trained['bias']):.6g}")
    if cfg.push_to_hub:
        message = f"Upload stage {found.stage} of a run by rlhf_jax"
        print(f"uploaded: {uploading.upload(to, cfg.push_to_hub, cfg.private, message)}")
