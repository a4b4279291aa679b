"""Adapters in the format of PEFT: adapter_config.json beside adapter_model.safetensors.

A matrix [out, in] has A [r, in] and B [out, r], and alpha / r B A is added to it. Where a family's file
fuses several of our matrices into one (queries, keys, values), their adapters are fused too: with n of
them, the A's are stacked, B has a block for each, and r and alpha are n times ours.

The head of a reward model is the tensor score.weight. The format has no place for its bias: it is stored as
"score_bias" in the metadata of adapter_model.safetensors, is read back from there, and is the difference
between our scores and PEFT's.
"""

import json
import math
import pathlib
import re

import numpy as np
from safetensors import SafetensorError, safe_open

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.family import Family, Tensor
from rlhf_jax.models.hub.streaming import check_finite, check_type, read_json, write_tensors
from rlhf_jax.models.lora import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ROOT = "base_model.model."  # prefix of every name
BIAS = "score_bias"  # a reward model's bias, in the metadata of an adapter or the config.json of a model
PLAIN = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    "bias": ("none", None),
    "modules_to_save": (None, [], ["score"], ["classifier", "score"]),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""Settings of adapter_config.json, and the values with which an adapter adds alpha / r B A to a matrix.

Other initialisations (pissa, olora, loftq, corda, lora_ga) subtract something from the matrix itself.
"""
HARMLESS = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),  # they are read
    *("base_model_name_or_path", "revision"),  # so are these
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # as tensors
    *("fan_in_fan_out", "lora_dropout", "inference_mode", "auto_mapping", "peft_version"),
    *("megatron_core", "qalora_group_size", "eva_config"),  # each is read beside another setting
}
"""Settings that change no output of the adapter, or whose values are all supported."""
OFF = (None, False, [], {})
"""Values at which every other setting, later versions of PEFT included, has no effect."""


def modules(family: Family, cfg: ModelConfig) -> dict[str, dict[str, Tensor]]:
    """The file's matrices of a block, as "layers.*.mlp.up_proj", and our matrices in each, in order."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, tensor in family.tensors(cfg).items():
        if path.startswith("blocks/") and path.endswith("/kernel"):
            name = tensor.name.removesuffix(".weight")
            found.setdefault(name, {})[path.split("/")[1]] = tensor
    return found


def write(
    folder: pathlib.Path, family: Family, cfg: ModelConfig, trained, lora: LoraConfig, base: str
):
    """Writes the trained part of `lora.split`, for a language or a reward model, over the model `base`.

    `base` is a folder or a hub name, NAME or NAME@REVISION.
    """
    is_folder = pathlib.Path(base).is_dir()
    base, _, revision = (base, "", "") if is_folder else base.partition("@")
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
    facts = {}
    if is_reward:
        arrays[f"{ROOT}score.weight"] = np.asarray(trained["head"])[None]
        facts[BIAS] = str(float(trained["bias"]))
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if is_reward else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision or None,
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
    write_tensors(arrays, folder / WEIGHTS, **facts)
    (folder / CONFIG).write_text(json.dumps(config, indent=1))


def read_config(folder: pathlib.Path) -> dict:
    """adapter_config.json. Raises ValueError, naming the setting, for anything not implemented."""
    path = folder / CONFIG
    config = read_json(path)
    for key, value in config.items():
        known = PLAIN.get(key, OFF)
        if key not in HARMLESS and value not in known:
            raise ValueError(
                f"{path} has {key} = {value!r}, which is not implemented (known: "
                f"{', '.join(map(repr, known))}): merge the adapter into its model with PEFT's "
                "merge_and_unload, and name that model"
            )
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x > 0
    real = lambda x: isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf
    each = lambda good: (
        lambda x: isinstance(x, dict) and all(is_pattern(k) and good(v) for k, v in x.items())
    )
    kinds = {
        "peft_type": (lambda x: x == "LORA", "'LORA'"),
        "base_model_name_or_path": (lambda x: isinstance(x, str) and x, "a folder or a name"),
        "revision": (lambda x: isinstance(x, str) or x is None, "a name or null"),
        "r": (whole, "a whole number of 1 or more"),
        "lora_alpha": (real, "a number above 0"),
        "use_rslora": (lambda x: isinstance(x, bool) or x is None, "true or false"),
        "rank_pattern": (each(whole), "regular expressions and whole numbers of 1 or more"),
        "alpha_pattern": (each(real), "regular expressions and numbers above 0"),
    }
    for key, (good, want) in kinds.items():
        if key in ("rank_pattern", "alpha_pattern"):
            config[key] = config.get(key) or {}
        if not good(config.get(key)):
            raise ValueError(f"{path} has {key} = {config.get(key)!r}: it must be {want}")
    return config


def is_pattern(x: str) -> bool:
    """True where `x` is a regular expression rather than a plain name."""
    try:
        return bool(re.compile(x))
    except re.error:
        return False


def arrays_of(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of an adapter in float32, and the metadata of their file.

    Raises ValueError for a file that cannot be read, and for a tensor that does not hold finite floats.
    """
    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                place = f"{path}: the tensor {name}"
                check_type(file.get_slice(name), place)
                arrays[name.removeprefix(ROOT)] = file.get_tensor(name).astype(np.float32)
                check_finite(arrays[name.removeprefix(ROOT)], place)
            return arrays, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from None


def read(folder: pathlib.Path, family: Family, cfg: ModelConfig, blocks):
    """(trained, LoraConfig) for `lora.join`; a classifier gives those of a reward model.

    `blocks` are those of the model to adapt. Raises ValueError for a tensor whose name or shape the model
    has no place for, by its name.
    """
    config, path = read_config(folder), folder / WEIGHTS
    arrays, facts = arrays_of(path)
    lora = LoraConfig(rank=config["r"], alpha=float(config["lora_alpha"]))
    head = arrays.pop("score.weight", None)
    found = {}  # name of ours -> layer -> (a [in, r], b [r, out])
    for module, parts in modules(family, cfg).items():
        for layer in range(cfg.layers):
            name = family.prefix + module.replace("*", str(layer))
            names = [f"{name}.lora_{x}.weight" for x in "AB"]
            if not all(x in arrays for x in names):
                continue
            a, b = (arrays.pop(x) for x in names)
            r = pattern(config, "rank_pattern", name, config["r"])
            if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == r:
                raise ValueError(
                    f"{path}: {names[0]} is {list(a.shape)}, lora_B beside it is {list(b.shape)}, and "
                    f"{folder / CONFIG} says r = {r}: download both again"
                )
            for ours, tensor in parts.items():
                _, n, m = blocks[ours]["kernel"].shape
                if (a.shape[1], len(b)) != (n, m * tensor.parts):
                    raise ValueError(
                        f"{path}: the adapter of {ours} in layer {layer} is of a matrix "
                        f"{[a.shape[1], len(b) // tensor.parts]}, and the model's is {[n, m]}: name "
                        "the model it was made for"
                    )
                times = scaling(config, name, r) / (lora.alpha / lora.rank)
                part = tensor._replace(linear=True).read(times * b)
                found.setdefault(ours, {})[layer] = a.T, part
    for name in arrays:
        raise ValueError(f"{path} holds {name}, which {family.model_type} has no place for")
    adapters = {}
    for ours, layers in found.items():
        r = max(a.shape[1] for a, _ in layers.values())
        _, n, m = blocks[ours]["kernel"].shape
        stacked = {
            "lora_a": np.zeros((cfg.layers, n, r), np.float32),
            "lora_b": np.zeros((cfg.layers, r, m), np.float32),
        }  # zero in layers that are not adapted
        for layer, (a, b) in layers.items():
            stacked["lora_a"][layer, :, : a.shape[1]] = a
            stacked["lora_b"][layer, : len(b)] = b
        adapters[ours] = stacked
    trained = {"blocks": adapters}
    if head is not None:
        if head.shape != (1, cfg.d_model):
            raise ValueError(
                f"{path}: score.weight is {list(head.shape)}, and a reward model over this one has "
                f"{[1, cfg.d_model]}: it has one label"
            )
        bias = np.float32(score_bias(facts.get(BIAS, 0.0), path))
        trained = {"trunk": trained, "head": head[0], "bias": bias}
    return trained, lora


def score_bias(value, path: pathlib.Path) -> float:
    """Bias of a reward model's scores, as stored in the file `path`; raises ValueError unless it is a
    number."""
    try:
        bias = float(value)
    except (TypeError, ValueError):
        bias = math.nan
    if not math.isfinite(bias) or isinstance(value, bool):
        raise ValueError(f"{path} has {BIAS} = {value!r}: it must be a finite number")
    return bias


def pattern(config: dict, key: str, name: str, default):
    """The value for the matrix `name` in a dict of patterns in adapter_config.json."""
    own = (x for words, x in config[key].items() if re.fullmatch(rf"(.*\.)?({words})", name))
    return next(own, default)


def scaling(config: dict, name: str, r: int) -> float:
    """The multiplier of B A for the matrix `name`."""
    alpha = pattern(config, "alpha_pattern", name, config["lora_alpha"])
    return alpha / (r**0.5 if config.get("use_rslora") else r)
