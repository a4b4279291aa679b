"""A run's model in the Hugging Face format: weights, tokenizer, template.

    python launch.py export --run runs/rloo/1f0c5a77b2 --to my-policy
    python launch.py export --run runs/rloo/1f0c5a77b2 --stage reward --to my-reward-model

transformers loads both (AutoModelForCausalLM, AutoModelForSequenceClassification with one label), and so does
any experiment here, as --pretrained, --reference or --reward-model. Adapters are merged into their model, or
written for PEFT with --adapter.

A response ends at each id under eos_token_id in generation_config.json and config.json. A classifier of
transformers has no bias: our score is transformers' plus the "score_bias" in config.json, or in the
metadata of adapter_model.safetensors. Loaded here, the folder gives our scores.
"""

import pathlib
from dataclasses import dataclass, replace

import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.data import tokenizer
from rlhf_jax.models.hub import huggingface, peft, writing
from rlhf_jax.pipeline import checkpoints, pretrained, stages
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

    def _unread(self) -> dict[str, str]:
        if self.adapter:
            return {"shard_gb": "adapters are one file"}
        return {"base": "no adapter is written"}


config = Config()


def main(cfg: Config):
    """Writes the folder, and prints how to use it."""
    folder, to = pathlib.Path(cfg.run), pathlib.Path(cfg.to)
    for name, value in (("run", cfg.run), ("to", cfg.to)):
        if not value:
            raise ValueError(f"{name} is empty: name a folder")
    runs.check_folder("to", cfg.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f'to = "{to}" is there and not empty: name a new folder')
    of = checkpoints.settings_of(folder)
    stage = cfg.stage or checkpoints.own_stage(folder)
    trained = checkpoints.arrays(folder, stage, best=cfg.best)
    name, is_reward = of.tokenizer or folder / "tokenizer", "trunk" in trained
    centre = folder / "stages" / stage / stages.CENTRE
    if is_reward and centre.exists():  # it does not where a run was made by an older version
        trained = reward_model.centre(trained, np.float32(disk.read_json(centre)["mean"]))
    words = tokenizer.load(name, bos=pretrained.begins(of))
    named = pretrained.named(of)
    source = huggingface.resolve(named) if named else None
    original = huggingface.read_config(source)[2] if source else None
    model = of.model if named else replace(of.model, vocab_size=tokenizer.size(words))
    stops = tuple(dict.fromkeys([*pretrained.stops(of, words), *of.sample.get("stop", ())]))
    generation = huggingface.generation_of(source) if source else {}

    if cfg.adapter:
        if checkpoints.is_whole(trained):
            raise ValueError(
                f"stage {stage} trained the whole model (lora.rank = {of.lora.rank}): no adapter"
            )
        family = writing.family_of(model, original)
        base = checkpoints.base_of(of, stage, model, cfg.base)
        peft.write(to, family, model, trained, of.lora, base)
        words.save_pretrained(to)
        if not is_reward:
            writing.write_generation(to, words, stops, generation)
    else:
        params = checkpoints.whole(folder, of, stage, trained)
        pad = words.get_vocab()[str(words.pad_token)]
        if pad >= model.vocab_size:  # the model that was read has no row for it
            if is_reward:
                model, params = writing.with_row(model, params, pad)
            else:
                words = tokenizer.load(name, pad=False, bos=pretrained.begins(of))
        writing.save(
            to, model, params,
            is_reward=is_reward, config=original, tokenizer=words, stops=stops, generation=generation,
            shard_bytes=int(cfg.shard_gb * 1e9),
        )  # fmt: skip
    print(f"the {'reward model' if is_reward else 'policy'} of {folder}, stage {stage}: {to}")
    use = "--reward-model" if is_reward else "--reference (as it is) or --pretrained (SFT goes on)"
    print(f"any experiment here takes it as {use}")
    if is_reward:
        print(f"transformers' scores are ours less score_bias = {float(trained['bias']):.6g}")
