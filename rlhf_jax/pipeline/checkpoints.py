"""Policies and reward models in the checkpoints of a run."""

import pathlib
import re
from collections.abc import Callable
from types import SimpleNamespace

from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig, RopeScaling
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.models.lora import LoraConfig
from rlhf_jax.pipeline import pretrained
from rlhf_jax.pipeline.reuse import STAGES
from rlhf_jax.runs import checkpoint, disk, manifest, metrics
from rlhf_jax.runs import run as runs

POLICY = (
    *("['best']['policy']", "['best']", "['state'].params['policy']", "['state'].params"),
    ".params",
)
"""Paths at which a checkpoint may hold the parameters of a policy or a reward model; the first match
counts."""


def settings_of(folder: pathlib.Path) -> SimpleNamespace:
    """The settings of a run that make its model. Raises ValueError for a run without a language model."""
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
    names = {"pretrained": "", "reference": "", "policy": ""}
    default = names | {"sample": {}, "bos": "tokenizer"}
    return SimpleNamespace(**default | settings | read)


def own_stage(folder: pathlib.Path) -> str:
    """The last stage of a run that is its method's own. Raises ValueError where there is none."""
    if (name := runs.read_config(folder)["experiment"]) in STAGES:  # a run of that stage alone
        return name
    found = dict.fromkeys(row["stage"] for row in metrics.read(folder / metrics.FILE))
    own = [name for name in found if name not in STAGES]
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


def is_policy(folder: pathlib.Path, stage: str) -> bool:
    """True where the last checkpoint of a stage holds a policy, or adapters of one; no array is read."""
    place = folder / "stages" / stage
    paths = manifest.read(place / f"{checkpoint.latest(place)}{manifest.SUFFIX}")["arrays"]
    top = next((top for top in POLICY if any(path.startswith(top) for path in paths)), None)
    return any(path.startswith(f"{top}['blocks']") for path in paths)


def is_whole(trained: dict) -> bool:
    """True for the parameters of a whole model, and False for adapters and heads."""
    return "embedding" in trained.get("trunk", trained)


def whole(folder: pathlib.Path, of: SimpleNamespace, stage: str, trained: dict):
    """All parameters at the end of a stage: its `trained` ones, merged into its initial ones."""
    if is_whole(trained):
        return trained
    if of.policy and stage not in STAGES:
        base = policy(of.policy, **pretrained.kept(of))
    elif stage == "sft" or of.reference:
        base = pretrained.start(of)
    else:
        base = whole(folder, of, "sft", arrays(folder, "sft"))
    base = {"trunk": networks.headless(base)} if "trunk" in trained else base
    return lora.merge(lora.join(base, trained, of.lora))


def policy(name: str, *, places: Callable | None = None, **settings):
    """Parameters of the policy that a run's method trained, or of the model `name`.

    A model is read with the `settings` and into the shardings of `places`, as by `huggingface.load`.
    """
    if not runs.is_run(name):
        return huggingface.load(name, places=places, **settings).params
    folder = pathlib.Path(name)
    stage = own_stage(folder)
    return whole(folder, settings_of(folder), stage, arrays(folder, stage))


def base_of(of: SimpleNamespace, stage: str, model: ModelConfig, base: str) -> str:
    """Name of the model beneath a stage's adapters; raises ValueError where `base` names another one."""
    own = of.pretrained if stage == "sft" else of.reference
    over, how = "this run's SFT policy", "export the SFT policy with --stage sft"
    if of.policy and stage not in STAGES:
        own = of.policy
    if own and runs.is_run(own):
        over, how, own = f"the policy of {own}", "export that run", ""
    if own and base:
        raise ValueError(f'base = "{base}", and the adapters stand over "{own}": leave base out')
    if not own and not base:
        raise ValueError(
            f"base is empty, and the adapters stand over {over}: {how}, and name that folder as base"
        )
    base = own or base
    found = huggingface.read_config(huggingface.resolve(base))[1]
    if writing.explicit(found) != writing.explicit(model):
        raise ValueError(
            f'base = "{base}" has other settings than this run\'s model: {how}, and name that folder'
        )
    return str(pathlib.Path(base).resolve()) if pathlib.Path(base).is_dir() else base
