"""Adapters in the format of PEFT: adapter_config.json beside adapter_model.safetensors.

A matrix [out, in] has A [r, in] and B [out, r], and what is added is alpha / r B A. Where a family's file
fuses several of our matrices into one (queries, keys, values), so are their adapters: with n of them, the A's
stand one over the other, B has a block for each, and r and alpha are n times ours.
"""

import json
import pathlib
import re

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families.family import Family, Tensor
from rlhf_jax.models.lora import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # of every name
READ = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, [], ["score"], ["classifier", "score"]),
}  # settings that change the arithmetic, and what is read of each


def modules(family: Family, cfg: ModelConfig) -> dict[str, dict[str, Tensor]]:
    """The file's matrices of a block, as "layers.*.mlp.up_proj", and what of ours each holds, in order."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, tensor in family.tensors(cfg).items():
        if path.startswith("blocks/") and path.endswith("/kernel"):
            name = tensor.name.removesuffix(".weight")
            found.setdefault(name, {})[path.split("/")[1]] = tensor
    return found


def write(
    folder: pathlib.Path, family: Family, cfg: ModelConfig, trained, lora: LoraConfig, base: str
):
    """Writes what `lora.split` gives to train of a language or a reward model, over the model `base`."""
    is_reward = "head" in trained
    blocks = (trained["trunk"] if is_reward else trained)["blocks"]
    arrays, targets, rank, alpha, turned = {}, [], {}, {}, False
    for module, parts in modules(family, cfg).items():
        ours = [name for name in parts if name in blocks]
        if not ours:
            continue
        tensor = parts[ours[0]]
        target, n, r = module.rpartition("*.")[2], len(ours), lora.rank
        targets, turned = [*targets, target], turned or not tensor.linear
        if n > 1:
            rank[target], alpha[target] = n * r, n * lora.alpha
        width = blocks[ours[0]]["lora_b"].shape[-1]
        for layer in range(cfg.layers):
            a = [np.asarray(blocks[name]["lora_a"][layer]) for name in ours]  # [in, r] each
            b = {name: np.zeros((n * r, width), np.float32) for name in parts}
            for i, name in enumerate(ours):
                b[name][i * r : (i + 1) * r] = blocks[name]["lora_b"][layer]
            place = ROOT + family.prefix + module.replace("*", str(layer))
            arrays[f"{place}.lora_A.weight"] = np.ascontiguousarray(np.concatenate(a, axis=1).T)
            arrays[f"{place}.lora_B.weight"] = tensor._replace(linear=True).write([*b.values()])
    if is_reward:
        arrays[f"{ROOT}score.weight"] = np.asarray(trained["head"])[None]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_reward else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": rank,
        "alpha_pattern": alpha,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "modules_to_save": ["score"] if is_reward else None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1))


def read_config(folder: pathlib.Path) -> dict:
    """adapter_config.json. Raises ValueError where it asks for what is not known here."""
    config = json.loads((folder / CONFIG).read_text())
    for key, known in READ.items():
        if config.get(key) not in known:
            raise ValueError(
                f"{folder / CONFIG} has {key} = {config.get(key)!r}: read is {known[0]!r}"
            )
    return config


def read(folder: pathlib.Path, family: Family, cfg: ModelConfig, blocks):
    """(trained, LoraConfig), as `lora.join` takes them; a classifier's are a reward model's.

    `blocks` are those of the model that is adapted.
    Raises ValueError for a tensor whose name or shape the model has no place for, by its name.
    """
    config = read_config(folder)
    try:
        arrays = {k.removeprefix(ROOT): x for k, x in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}): fetch it again") from None
    lora = LoraConfig(rank=config["r"], alpha=float(config["lora_alpha"]))
    head, found = (
        arrays.pop("score.weight", None),
        {},
    )  # name of ours -> layer -> (a [in, r], b [r, out])
    for module, parts in modules(family, cfg).items():
        for layer in range(cfg.layers):
            name = family.prefix + module.replace("*", str(layer))
            names = [f"{name}.lora_{x}.weight" for x in "AB"]
            if not all(x in arrays for x in names):
                continue
            a, b = (arrays.pop(x).astype(np.float32) for x in names)
            times = scaling(config, name, len(a)) / (lora.alpha / lora.rank)
            for ours, tensor in parts.items():
                part = tensor._replace(linear=True).read(times * b)
                found.setdefault(ours, {})[layer] = a.T, part
    for name in arrays:
        raise ValueError(
            f"{folder / WEIGHTS} holds {name}, which {family.model_type} has no place for"
        )
    adapters = {}
    for ours, layers in found.items():
        r = max(a.shape[1] for a, _ in layers.values())
        _, n, m = blocks[ours]["kernel"].shape
        stacked = {
            "lora_a": np.zeros((cfg.layers, n, r), np.float32),
            "lora_b": np.zeros((cfg.layers, r, m), np.float32),
        }  # zero in layers that are not adapted
        for layer, (a, b) in layers.items():
            if (len(a), b.shape[1]) != (n, m):
                raise ValueError(
                    f"{folder / WEIGHTS}: the adapter of {ours} in layer {layer} is of a matrix "
                    f"{[len(a), b.shape[1]]}, and the model's is {[n, m]}: name the model it was made for"
                )
            stacked["lora_a"][layer, :, : a.shape[1]] = a
            stacked["lora_b"][layer, : len(b)] = b
        adapters[ours] = stacked
    trained = {"blocks": adapters}
    if head is not None:
        trained = {"trunk": trained, "head": head[0].astype(np.float32), "bias": np.float32(0)}
    return trained, lora


def scaling(config: dict, name: str, r: int) -> float:
    """What B A of the matrix `name` is multiplied by."""
    patterns = (config.get("alpha_pattern") or {}).items()
    own = (x for key, x in patterns if re.fullmatch(rf"(.*\.)?({key})", name))
    return next(own, config["lora_alpha"]) / (r**0.5 if config.get("use_rslora") else r)
