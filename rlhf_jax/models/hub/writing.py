"""Decoders written in the Hugging Face format: a folder with config.json, safetensors and a tokenizer."""

import json
import pathlib
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from rlhf_jax.models.config import COMPUTED, ModelConfig
from rlhf_jax.models.hub import peft
from rlhf_jax.models.hub.families import FAMILIES
from rlhf_jax.models.hub.families.family import Family, Tensor
from rlhf_jax.models.hub.huggingface import EOS, GENERATION
from rlhf_jax.models.hub.streaming import INDEX, write_tensors

NOT_KEPT = (
    "torch_dtype",
    "quantization_config",
    "auto_map",
    "num_labels",
    "problem_type",
    peft.BIAS,
)
"""Keys of a config.json that do not apply to the written weights."""

Part = tuple[Tensor, Any, int | None]
"""The place of one of our parameters in a file's tensor, the parameter, and its layer if it has layers."""


def save(
    folder: pathlib.Path,
    cfg: ModelConfig,
    params,
    *,
    is_reward: bool = False,
    config: dict | None = None,
    tokenizer=None,
    stops: tuple[int, ...] = (),
    generation: dict | None = None,
    shard_bytes: int = 5 * 10**9,
):
    """Writes `params` in the format of transformers: config.json, safetensors, and the tokenizer.

    `config` is the config.json that the model was read from, whose other keys are kept; `stops` are the
    tokens that end a response besides the tokenizer's EOS. A policy gets a generation_config.json with the
    other keys of `generation`. A reward model becomes a classifier with one label, which has no bias: ours
    is stored as "score_bias" in config.json, is read back from there, and is the difference between our
    scores and those of transformers. Files hold at most `shard_bytes`, and only one at a time is in memory.
    Raises ValueError where no family has the settings.
    """
    family = family_of(cfg, config)
    trunk = params["trunk"] if is_reward else params
    tensors = tensors_of(family, cfg, trunk)
    if is_reward:
        tensors["score.weight"] = [(Tensor("score.weight"), params["head"][None], None)]
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors, shard_bytes)

    architecture = family.reward_architecture if is_reward else family.architecture
    keys = keys_of(family, cfg, config) | {"model_type": family.model_type}
    keys |= {"architectures": [architecture], "dtype": cfg.param_dtype}
    if is_reward:
        keys |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        keys[peft.BIAS] = float(params["bias"])
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        keys |= marks(tokenizer, stops)
    (folder / "config.json").write_text(json.dumps(keys, indent=1))
    if tokenizer is not None and not is_reward:
        write_generation(folder, tokenizer, stops, generation)


def tensors_of(family: Family, cfg: ModelConfig, params) -> dict[str, list[Part]]:
    """The parts that each tensor of the files fuses, by its name."""
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(params)}
    found = {}
    for path, tensor in family.tensors(cfg).items():
        if path not in flat:
            continue
        for layer in range(cfg.layers) if "*" in tensor.name else [None]:
            name = tensor.name.replace("*", str(layer))
            prefix = "" if name == family.head else family.prefix
            found.setdefault(prefix + name, []).append((tensor, flat[path], layer))
    return found


def write_weights(folder: pathlib.Path, tensors: dict[str, list[Part]], limit: int):
    """Writes safetensors files of at most `limit` bytes, and the index of several; one at a time is in
    memory."""
    shards: list[list[str]] = [[]]
    size, total = 0, 0
    for name, parts in tensors.items():
        more = sum(x.nbytes if layer is None else x.nbytes // len(x) for _, x, layer in parts)
        if shards[-1] and size + more > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + more, total + more
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = ["model.safetensors"] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        arrays = {}
        for name in names:
            ours = [x if layer is None else x[layer] for _, x, layer in tensors[name]]
            place, *_ = tensors[name][0]
            arrays[name] = place.write([np.asarray(x) for x in jax.device_get(ours)])
        write_tensors(arrays, folder / file)
    if len(shards) > 1:
        file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def marks(tokenizer, stops: tuple[int, ...]) -> dict:
    """The ids of padding, BOS, and all tokens that end a response, as in the files of transformers."""
    ids = list(dict.fromkeys([tokenizer.eos_token_id, *stops]))
    own = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id")}
    return own | {EOS: ids if len(ids) > 1 else ids[0]}


def write_generation(folder: pathlib.Path, tokenizer, stops, generation: dict | None = None):
    """Writes generation_config.json: the tokens that end a response, and the keys of `generation`."""
    keys = (generation or {}) | marks(tokenizer, stops)
    (folder / GENERATION).write_text(json.dumps(keys, indent=1))


def family_of(cfg: ModelConfig, config: dict | None = None) -> Family:
    """The family of `config`, or the first one whose config.json can express `cfg` with the other keys of
    `config`.

    Raises ValueError where none can.
    """
    want, name = explicit(cfg), (config or {}).get("model_type")
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            keys = keys_of(family, cfg, config)
            if explicit(ModelConfig(**family.settings(keys))) == want:
                return family
        except (KeyError, ValueError):
            continue
    raise ValueError(
        f"{name or 'no family of Hugging Face checkpoints'} has not this model's settings: "
        f"known families are {', '.join(sorted(FAMILIES))}"
    )


def keys_of(family: Family, cfg: ModelConfig, config: dict | None) -> dict:
    """The keys of a config.json that express `cfg`, and those keys of `config` that do not concern it."""
    gone = {*family.keys, *NOT_KEPT}
    return {key: x for key, x in (config or {}).items() if key not in gone} | family.config(cfg)


def explicit(cfg: ModelConfig) -> ModelConfig:
    """The settings with default zeros spelt out, and without those that no checkpoint holds."""
    return replace(
        cfg,
        kv_heads=cfg.kv_heads or cfg.heads,
        head_dim=cfg.head_dim or cfg.d_model // cfg.heads,
        local_layers=cfg.local,
        rope_scaling=replace(cfg.rope_scaling, attention_factor=cfg.rope_scaling.gain),
        d_mlp=cfg.d_mlp or 4 * cfg.d_model,
        **{name: getattr(ModelConfig, name) for name in COMPUTED},
    )


def with_row(model: ModelConfig, params, row: int):
    """A reward model whose embedding is zero-padded to include `row`, because transformers looks padding
    up."""
    table = np.asarray(params["trunk"]["embedding"]["embedding"])
    table = np.pad(table, ((0, row + 1 - len(table)), (0, 0)))
    trunk = params["trunk"] | {"embedding": {"embedding": table}}
    return replace(model, vocab_size=len(table)), params | {"trunk": trunk}
