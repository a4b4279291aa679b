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
import re
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.data import tokenizer
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.hub import huggingface, peft
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.pipeline import pretrained, stages
from rlhf_jax.pipeline.reuse import STAGES as SHARED
from rlhf_jax.runs import checkpoint, disk, metrics
from rlhf_jax.runs import run as runs

POLICY = ("['best']", "['state'].params['policy']", "['state'].params", ".params")
"""Paths at which a checkpoint may hold the parameters of a policy or a reward model; the first match
counts."""


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
    of = settings_of(folder)
    stage = cfg.stage or own_stage(folder)
    trained = arrays(folder, stage, best=cfg.best)
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
        if "embedding" in (trained["trunk"] if is_reward else trained):
            raise ValueError(
                f"stage {stage} trained the whole model (lora.rank = {of.lora.rank}): no adapter"
            )
        family, base = huggingface.family_of(model, original), base_of(cfg, of, stage, model)
        peft.write(to, family, model, trained, of.lora, base)
        words.save_pretrained(to)
        if not is_reward:
            huggingface.write_generation(to, words, stops, generation)
    else:
        params = whole(folder, of, stage, trained)
        pad = words.get_vocab()[str(words.pad_token)]
        if pad >= model.vocab_size:  # the model that was read has no row for it
            if is_reward:
                model, params = with_row(model, params, pad)
            else:
                words = tokenizer.load(name, pad=False, bos=pretrained.begins(of))
        huggingface.save(
            to, model, params,
            is_reward=is_reward, config=original, tokenizer=words, stops=stops, generation=generation,
            shard_bytes=int(cfg.shard_gb * 1e9),
        )  # fmt: skip
    print(f"the {'reward model' if is_reward else 'policy'} of {folder}, stage {stage}: {to}")
    use = "--reward-model" if is_reward else "--reference (as it is) or --pretrained (SFT goes on)"
    print(f"any experiment here takes it as {use}")
    if is_reward:
        print(f"transformers' scores are ours less score_bias = {float(trained['bias']):.6g}")


def base_of(cfg: Config, of: SimpleNamespace, stage: str, model: ModelConfig) -> str:
    """Name of the model beneath a stage's adapters; raises ValueError where `base` names another one."""
    own = of.pretrained if stage == "sft" else of.reference
    if own and cfg.base:
        raise ValueError(
            f'base = "{cfg.base}", and the adapters stand over "{own}": leave base out'
        )
    if not own and not cfg.base:
        raise ValueError(
            "base is empty, and the adapters stand over this run's SFT policy: export it with "
            "--stage sft, and name that folder as base"
        )
    base = own or cfg.base
    found = huggingface.read_config(huggingface.resolve(base))[1]
    if huggingface.explicit(found) != huggingface.explicit(model):
        raise ValueError(
            f'base = "{base}" has other settings than this run\'s model: export the SFT policy with '
            "--stage sft, and name that folder"
        )
    return str(pathlib.Path(base).resolve()) if pathlib.Path(base).is_dir() else base


def settings_of(folder: pathlib.Path) -> SimpleNamespace:
    """Settings of a run that the export reads. Raises ValueError for a run without a language model."""
    if not (folder / "config.json").exists():
        raise ValueError(f'run = "{folder}" holds no config.json: name the folder of a run')
    settings = runs.read_config(folder)["settings"]
    if not {"model", "tokenizer"} <= settings.keys():
        raise ValueError(
            f'run = "{folder}" trained no language model with a tokenizer: nothing to export'
        )
    model, adapters = settings["model"], settings.get("lora", {})
    scaling, local = model.get("rope_scaling", {}), model.get("local_layers", ())
    if (folder / "lengths.json").exists():
        model["context"] = disk.read_json(folder / "lengths.json")["context"]
    model |= {"rope_scaling": RopeScaling(**scaling), "local_layers": tuple(local)}
    if adapters:
        adapters |= {"matrices": tuple(adapters["matrices"])}
    read = {"model": ModelConfig(**model), "lora": LoraConfig(**adapters)}
    default = {"pretrained": "", "reference": "", "sample": {}, "bos": "tokenizer"}
    return SimpleNamespace(**default | settings | read)


def own_stage(folder: pathlib.Path) -> str:
    """The last stage of a run that is its method's own. Raises ValueError where there is none."""
    if (name := runs.read_config(folder)["experiment"]) in SHARED:  # a run of that stage alone
        return name
    stages = dict.fromkeys(row["stage"] for row in metrics.read(folder / metrics.FILE))
    own = [name for name in stages if name not in SHARED]
    if not own:
        raise ValueError(
            f'run = "{folder}" has no policy of a method: set stage to sft, reward or held_out_reward'
        )
    return own[-1]


def arrays(folder: pathlib.Path, stage: str, best: bool = False) -> dict:
    """Trained parameters of a stage, or its adapters and heads. Raises ValueError for an unfinished stage.

    With `best` the stage may be unfinished; ValueError is raised where it has no best checkpoint.
    """
    place = folder / "stages" / stage
    known = sorted(path.name for path in (folder / "stages").glob("*"))
    if stage not in known:
        raise ValueError(f'stage = "{stage}" is none of those in {folder}: {", ".join(known)}')
    if best and checkpoint.best(place) is None:
        raise ValueError(f"best = True, and no checkpoint of stage {stage} of {folder} was rated")
    if not best and not runs.finished(folder, stage):
        raise ValueError(
            f'stage = "{stage}" has not ended in {folder}: start the command of that run again'
        )
    step = checkpoint.best(place) if best else checkpoint.latest(place)
    found = checkpoint.read(place, step, *POLICY) if step is not None else {}
    tree = huggingface.unflatten(
        {"/".join(re.findall(r"\['(.*?)'\]", k)): x for k, x in found.items()}
    )
    if "blocks" not in tree.get("trunk", tree):
        raise ValueError(
            f"stage {stage} of {folder} holds no policy and no reward model of this format"
        )
    return tree


def whole(folder: pathlib.Path, of: SimpleNamespace, stage: str, trained: dict):
    """All parameters at the end of a stage: its `trained` ones, merged into its initial ones."""
    is_reward = "trunk" in trained
    if "embedding" in (trained["trunk"] if is_reward else trained):
        return trained
    start_given = stage == "sft" or of.reference
    base = pretrained.start(of) if start_given else whole(folder, of, "sft", arrays(folder, "sft"))
    base = {"trunk": networks.headless(base)} if is_reward else base
    return lora.merge(lora.join(base, trained, of.lora))


def with_row(model: ModelConfig, params, row: int):
    """A reward model whose embedding is zero-padded to include `row`, because transformers looks padding
    up."""
    table = np.asarray(params["trunk"]["embedding"]["embedding"])
    table = np.pad(table, ((0, row + 1 - len(table)), (0, 0)))
    trunk = params["trunk"] | {"embedding": {"embedding": table}}
    return replace(model, vocab_size=len(table)), params | {"trunk": trunk}
