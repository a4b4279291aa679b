"""Decoders in the Hugging Face format: a folder with config.json and safetensors, read and written.

    model = huggingface.load("EleutherAI/pythia-160m")       # or a folder
    lm = networks.language_model(model.cfg)
    lm.policy_fn(model.params, ...)

Reading streams: one tensor of one layer at a time, and of the embeddings one device's slice, goes from the
mapped file to its devices, in their sharding and dtype, and layers are stacked there. Above the file cache
this process never holds more than one of those, as it was and as it becomes (`bench/reading.py`).
"""

import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.models import lora, networks, peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.models.families.family import Family, Tensor

INDEX = "model.safetensors.index.json"
PART = 2**23  # bytes that are on their way to a device at once, of a tensor that is no layer's
PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
]  # what is fetched of a hub's repository


class Loaded(NamedTuple):
    """A checkpoint."""

    cfg: ModelConfig
    params: Any  # of networks.language_model(cfg), or of its reward_model where `is_reward`
    family: Family
    config: dict  # config.json as it was
    folder: pathlib.Path
    is_reward: bool  # it classifies, into one label


def resolve(name: str) -> pathlib.Path:
    """The folder `name`, or that of a hub's repository in the hub's own cache, fetched where it is not there.

    NAME@REVISION is a branch, a tag or a commit of a repository. Raises ValueError where it is neither.
    """
    if pathlib.Path(name).is_dir():
        return pathlib.Path(name)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=PATTERNS
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"model {name!r} is no folder, and no model of a hub: {why}") from None
    return pathlib.Path(found)


def read_config(folder: pathlib.Path, **settings) -> tuple[Family, ModelConfig, dict]:
    """The family and the settings that config.json means; `settings` are further fields of ModelConfig.

    An adapter's are those of the model that it adapts. Raises ValueError for an architecture or a setting
    that is not known.
    """
    path = folder / "config.json"
    if (folder / peft.CONFIG).exists():
        family, cfg, config = read_config(base_of(folder), **settings)
        if peft.read_config(folder).get("task_type") == "SEQ_CLS":
            config |= {"architectures": [family.reward_architecture]}
        return family, cfg, config
    if not path.exists():
        raise ValueError(f"{folder} holds no config.json: name a folder in the Hugging Face format")
    config = json.loads(path.read_text())
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{path} has model_type = {kind!r}: known are {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    try:
        cfg = ModelConfig(**family.settings(config), **settings)
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}, which a {kind} needs") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return family, cfg, config


def base_of(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the model that the adapter in `folder` adapts; `folder` itself where there is none."""
    if not (folder / peft.CONFIG).exists():
        return folder
    return resolve(peft.read_config(folder)["base_model_name_or_path"])


def classifies(config: dict) -> bool:
    """Whether config.json is a reward model's."""
    return any("SequenceClassification" in x for x in config.get("architectures") or [])


def load(
    name: str,
    *,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    **settings,
) -> Loaded:
    """The model `name` (a folder or a hub's), with its parameters on the devices.

    `sharding(path, shape)` says where a parameter lies, as "blocks/query/kernel" [layers, D, H h]; by default
    on the first device. `settings` are fields of ModelConfig that config.json does not decide (dtype,
    param_dtype, remat). An adapter in PEFT's format is read with its model and merged into it.

    Raises ValueError for what does not fit, naming the tensor, before any is read.
    """
    folder = resolve(name)
    if (folder / peft.CONFIG).exists():
        return with_adapter(folder, load(str(base_of(folder)), sharding=sharding, **settings))
    family, cfg, config = read_config(folder, **settings)
    is_reward = classifies(config)
    files = Files(folder, family)
    like = jax.eval_shape(networks.language_model(cfg).init, jax.random.key(0))
    if is_reward:
        like = {path: x for path, x in like.items() if path != "unembedding"}
    shapes = {"/".join(k.key for k in path): x.shape for path, x in jax.tree.leaves_with_path(like)}
    tensors = {path: tensor for path, tensor in family.tensors(cfg).items() if path in shapes}
    check(files, tensors, shapes, cfg, is_reward)
    where = sharding or (lambda path, shape: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    dtype = jnp.dtype(cfg.param_dtype)
    flat = {
        path: read(files, tensors[path], shape, dtype, where(path, shape))
        for path, shape in shapes.items()
    }
    params = unflatten(flat)
    if is_reward:
        head = files.tensor("score.weight").astype(np.float32)[0]
        params = {"trunk": params, "head": jnp.asarray(head), "bias": jnp.float32(0.0)}
    return Loaded(cfg, params, family, config, folder, is_reward)


def with_adapter(folder: pathlib.Path, base: Loaded) -> Loaded:
    """The model, with the adapter in `folder` merged into it."""
    trunk = base.params["trunk"] if base.is_reward else base.params
    trained, cfg = peft.read(folder, base.family, base.cfg, trunk["blocks"])
    _, _, config = read_config(folder)
    params, is_reward = base.params, classifies(config)
    if is_reward and not base.is_reward:
        params = {"trunk": networks.headless(params)}
    if is_reward and "trunk" not in trained:
        trained = {"trunk": trained}
    params = lora.merge(lora.join(params, trained, cfg))
    if is_reward and "head" not in params:
        raise ValueError(
            f"{folder} adapts a classifier, and neither it nor its model has a score.weight"
        )
    return base._replace(params=params, config=config, folder=folder, is_reward=is_reward)


def save(
    folder: pathlib.Path,
    cfg: ModelConfig,
    params,
    *,
    is_reward: bool = False,
    config: dict | None = None,
    tokenizer=None,
    shard_bytes: int = 5 * 10**9,
):
    """Writes `params` so that transformers reads them back: config.json, safetensors, and the tokenizer.

    `config` is the config.json that the model was read from, whose other keys are kept. A reward model
    becomes a classifier of one label; its `bias` has no place there, and shifts all scores alike. Files hold
    at most `shard_bytes`, and one of them is held here at a time. Raises ValueError where no family has the
    settings.
    """
    family = family_of(cfg, config)
    trunk = params["trunk"] if is_reward else params
    flat = {"/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(trunk)}
    wanted: dict[
        str, list
    ] = {}  # name in the files -> where each of its parts lies, path and layer
    for path, tensor in family.tensors(cfg).items():
        if path not in flat:
            continue
        layers = range(cfg.layers) if "*" in tensor.name else [None]
        for layer in layers:
            name = tensor.name.replace("*", str(layer))
            prefix = "" if name == family.head else family.prefix
            wanted.setdefault(prefix + name, []).append((tensor, path, layer))
    if is_reward:
        flat["head"] = params["head"][None]
        wanted["score.weight"] = [(Tensor("score.weight"), "head", None)]

    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    size, total = 0, 0
    for name, parts in wanted.items():
        more = sum(
            flat[path].nbytes // (1 if layer is None else cfg.layers) for _, path, layer in parts
        )
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + more, total + more
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = ["model.safetensors"] if len(shards) == 1 else files
    for file, names in zip(files, shards, strict=True):
        arrays = {}
        for name in names:
            ours = [flat[path] if i is None else flat[path][i] for _, path, i in wanted[name]]
            arrays[name] = wanted[name][0][0].write([np.asarray(x) for x in jax.device_get(ours)])
        save_file(arrays, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / INDEX).write_text(json.dumps(index, indent=1))

    architecture = family.reward_architecture if is_reward else family.architecture
    keys = (config or {}) | family.config(cfg) | {"model_type": family.model_type}
    keys |= {"architectures": [architecture], "dtype": cfg.param_dtype}
    if is_reward:
        keys |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    if tokenizer is not None:
        names = ("pad_token_id", "bos_token_id", "eos_token_id")
        keys |= {name: getattr(tokenizer, name) for name in names}
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(keys, indent=1))


def family_of(cfg: ModelConfig, config: dict | None = None) -> Family:
    """The family of `config`, or the first whose config.json can say `cfg`. Raises ValueError if none can."""
    want, name = explicit(cfg), (config or {}).get("model_type")
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        try:
            if explicit(ModelConfig(**family.settings(family.config(cfg)))) == want:
                return family
        except (KeyError, ValueError):
            continue
    raise ValueError(
        f"{name or 'no family of Hugging Face checkpoints'} has not this model's settings: "
        f"known families are {', '.join(sorted(FAMILIES))}"
    )


def explicit(cfg: ModelConfig) -> ModelConfig:
    """The settings with the zeros that mean "as usual" spelt out, and without what no checkpoint says."""
    return replace(
        cfg,
        kv_heads=cfg.kv_heads or cfg.heads,
        head_dim=cfg.head_dim or cfg.d_model // cfg.heads,
        d_mlp=cfg.d_mlp or 4 * cfg.d_model,
        remat=False,
        param_dtype="float32",
        dtype="float32",
        logprob_chunk=0,
    )


class Files:
    """The tensors of a folder, in one file or in several with an index, by the names of its family."""

    def __init__(self, folder: pathlib.Path, family: Family):
        self.folder, self.family, self.open = folder, family, {}
        if (folder / INDEX).exists():
            self.file_of = json.loads((folder / INDEX).read_text())["weight_map"]
        elif (folder / "model.safetensors").exists():
            names = self.file("model.safetensors").keys()
            self.file_of = dict.fromkeys(names, "model.safetensors")
        else:
            raise ValueError(f"{folder} holds neither model.safetensors nor {INDEX}")

    def file(self, name: str):
        """An open file, mapped into memory; raises ValueError for one that is absent or cut off."""
        if name not in self.open:
            try:
                self.open[name] = safe_open(self.folder / name, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self.folder / name} cannot be read ({error}): fetch it again"
                ) from None
        return self.open[name]

    def real(self, name: str) -> str | None:
        """The name that a tensor has here: with the family's prefix, or without."""
        return next((x for x in (self.family.prefix + name, name) if x in self.file_of), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, from the head of its file."""
        name = self.real(name) or name
        return tuple(self.file(self.file_of[name]).get_slice(name).get_shape())

    def tensor(self, name: str) -> np.ndarray:
        """The array itself."""
        name = self.real(name) or name
        return self.file(self.file_of[name]).get_tensor(name)

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the array, and no more of it."""
        name = self.real(name) or name
        return self.file(self.file_of[name]).get_slice(name)[index]

    def surplus(self, wanted: set[str]) -> Iterator[str]:
        """Tensors that are neither wanted nor known to hold no weight."""
        for name in self.file_of:
            bare = name.removeprefix(self.family.prefix)
            idle = any(re.fullmatch(pattern, bare) for pattern in self.family.ignored)
            if name not in wanted and bare not in wanted and not idle:
                yield name


def check(files: Files, tensors: dict[str, Tensor], shapes, cfg: ModelConfig, is_reward: bool):
    """Raises ValueError for a tensor that is missing or surplus, or whose shape does not fit, by its name."""
    wanted = {files.family.head} if cfg.tied or is_reward else set()
    for path, tensor in tensors.items():
        layers = range(cfg.layers) if "*" in tensor.name else [0]
        shape = shapes[path][1:] if "*" in tensor.name else shapes[path]
        want = tensor.shape(shape)
        for layer in layers:
            name = tensor.name.replace("*", str(layer))
            wanted.add(name)
            if files.real(name) is None:
                raise ValueError(f"{files.folder} lacks the tensor {files.family.prefix}{name}")
            if files.shape(name) != want:
                raise ValueError(
                    f"{files.folder}: the tensor {files.real(name)} is {list(files.shape(name))}, and "
                    f"config.json asks for {list(want)}"
                )
    if is_reward:
        if files.real("score.weight") is None or files.shape("score.weight") != (1, cfg.d_model):
            raise ValueError(
                f"{files.folder} classifies, and has no score.weight of [1, {cfg.d_model}]: a reward "
                "model has one label"
            )
        wanted.add("score.weight")
    for name in files.surplus(wanted):
        raise ValueError(
            f"{files.folder} holds a tensor that its config.json does not explain: {name}"
        )


def read(files: Files, tensor: Tensor, shape, dtype, sharding) -> jax.Array:
    """One parameter on its devices; of one that is stacked [layers, ...], a layer at a time."""
    if "*" not in tensor.name:  # the largest there are, and none of them is fused
        turn = -1 if tensor.linear else 1
        get = lambda index: tensor.read(files.part(tensor.name, index[::turn]))
        return place(get, shape, dtype, sharding)
    whole = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
    put = jax.jit(
        lambda whole, x, i: jax.lax.dynamic_update_index_in_dim(whole, x, i, 0),
        donate_argnums=0,
        out_shardings=sharding,
    )
    for layer in range(shape[0]):
        x = tensor.read(files.tensor(tensor.name.replace("*", str(layer))))
        x = place(x.__getitem__, shape[1:], dtype, without_layers(sharding))
        whole = jax.block_until_ready(put(whole, x, layer))  # or layers would queue up before it
    return whole


def place(get: Callable[[tuple], np.ndarray], shape, dtype, sharding) -> jax.Array:
    """An array of what `get` reads of an index: each device takes its slice, one after the other.

    A large slice is filled some rows at a time. All is waited for, because transfers that are under way keep
    what they copy from.
    """

    def put(index, device):
        return jax.block_until_ready(
            jax.device_put(np.asarray(get(index), dtype, order="C"), device)
        )

    def fill(index, device):
        first, end, _ = index[0].indices(shape[0])
        mine = [len(range(*x.indices(n))) for x, n in zip(index, shape, strict=True)]
        rows = max(1, PART // (math.prod(mine[1:]) * dtype.itemsize))
        if mine[0] <= rows:
            return put(index, device)
        whole = jnp.zeros(mine, dtype, device=device)
        for row in range(first, end, rows):
            part = put((slice(row, min(row + rows, end)), *index[1:]), device)
            whole = jax.block_until_ready(write_rows(whole, part, row - first))
        return whole

    where = sharding.addressable_devices_indices_map(tuple(shape))
    slices = [fill(index, device) for device, index in where.items()]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, slices)


@partial(jax.jit, donate_argnums=0)
def write_rows(whole, part, row):
    """`whole` with `part` from `row` on, in the same memory."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, row, 0)


def without_layers(sharding):
    """The sharding of one layer of what is stacked."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(
            sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:])
        )
    return sharding


def unflatten(flat: dict[str, Any]) -> dict:
    """A tree of "a/b/c" paths."""
    tree = {}
    for path, x in flat.items():
        *parents, last = path.split("/")
        place = tree
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = x
    return tree
