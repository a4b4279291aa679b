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
from dataclasses import dataclass

from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.models.hub import card, huggingface, uploading, writing
from rlhf_jax.pipeline import exporting
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
    found = exporting.read(pathlib.Path(cfg.run), cfg.stage, cfg.best)
    original = huggingface.read_config(found.source)[2] if found.source else None
    family, base = writing.family_of(found.model, original), ""
    if cfg.adapter:
        base = exporting.beneath(found, cfg.base)
        if cfg.push_to_hub and pathlib.Path(base).is_dir():
            raise ValueError(
                f'push_to_hub = "{cfg.push_to_hub}" would upload adapters over {base}, a folder that nobody '
                "else has: leave adapter out, or upload that folder first and name it on the hub as base"
            )
    if cfg.push_to_hub:
        uploading.create(cfg.push_to_hub, cfg.private)

    if cfg.adapter:
        exporting.write_adapter(found, to, family, base)
    else:
        exporting.write(found, to, original, int(cfg.shard_gb * 1e9))
    name = cfg.push_to_hub or to.name
    page = exporting.describe(found, name, base, is_adapter=cfg.adapter, is_best=cfg.best)
    (to / card.FILE).write_text(page, encoding="utf-8")
    tell(cfg, found, to)


def tell(cfg: Config, found: exporting.Exported, to: pathlib.Path):
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
