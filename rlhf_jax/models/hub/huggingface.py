"""Decoders in the Hugging Face format: folders with config.json and safetensors, and how they are read.

    model = huggingface.load("EleutherAI/pythia-160m")       # or a folder
    lm = networks.language_model(model.cfg)
    lm.policy_fn(model.params, ...)

Reading streams: one tensor of one layer at a time (of the embeddings, one device's slice) goes from the
mapped file to its devices, in its sharding and dtype, and layers are stacked there. Beyond the file cache,
this process never holds more than one of these, before and after conversion (`bench/reading.py`).
"""

import pathlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import peft
from rlhf_jax.models.hub.families import FAMILIES
from rlhf_jax.models.hub.families.family import Family
from rlhf_jax.models.hub.families.keys import shown
from rlhf_jax.models.hub.streaming import Files, check, check_finite, read, read_json

PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""File patterns to download from a hub repository."""
GENERATION = "generation_config.json"
EOS = "eos_token_id"


class Loaded(NamedTuple):
    """A loaded checkpoint."""

    cfg: ModelConfig
    params: Any  # parameters of networks.language_model(cfg), or of its reward_model if `is_reward`
    family: Family
    config: dict  # config.json, unchanged
    folder: pathlib.Path
    is_reward: bool  # True for a classifier with one label


def resolve(name: str) -> pathlib.Path:
    """The folder `name`, or that of a hub repository in the hub's own cache, downloaded if needed.

    NAME@REVISION is a branch, a tag or a commit of a repository. Raises ValueError for a name that is
    neither, and for a folder in which a link leads out of it.
    """
    if pathlib.Path(name).is_dir():
        return closed(pathlib.Path(name))
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
    return closed(pathlib.Path(found))


def closed(folder: pathlib.Path) -> pathlib.Path:
    """`folder`. Raises ValueError where a model file in it is a link that leads out of the folder.

    Links of a hub's cache, from snapshots/COMMIT to the blobs of the same repository, are allowed.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append((inside[0].parent.parent / "blobs").resolve())
    for path in sorted(x for pattern in PATTERNS for x in folder.glob(pattern)):
        if not path.is_symlink():
            continue
        try:
            end = path.resolve()
        except (OSError, RuntimeError):  # links that lead to each other
            end = None
        if end is None or not any(end.is_relative_to(place) for place in inside):
            raise ValueError(
                f"{path} is a link that leads out of its folder (to {path.readlink()}): put the file "
                "itself there"
            )
    return folder


def read_config(folder: pathlib.Path, **settings) -> tuple[Family, ModelConfig, dict]:
    """The family, the settings that config.json means, and config.json; `settings` are further fields of
    ModelConfig.

    An adapter has the settings of the model it adapts. A head in the files that differs from the embedding
    is never tied to it, whatever config.json says. Raises ValueError for an unknown architecture or
    setting.
    """
    path = folder / "config.json"
    if (folder / peft.CONFIG).exists():
        family, cfg, config = read_config(base_of(folder), **settings)
        if peft.read_config(folder).get("task_type") == "SEQ_CLS":
            config |= {"architectures": [family.reward_architecture]}
        return family, cfg, config
    if not path.exists():
        raise ValueError(f"{folder} holds no config.json: name a folder in the Hugging Face format")
    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"{path} has model_type = {shown(kind)}: known are {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    try:
        cfg = ModelConfig(**family.settings(config), **settings)
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}, which a {kind} needs") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    has_weights = any(folder.glob("*.safetensors"))  # a plan needs none
    if cfg.tied and not classifies(config) and has_weights and unties(Files(folder, family), cfg):
        cfg = replace(cfg, tied=False)
    return family, cfg, config


def unties(files: Files, cfg: ModelConfig) -> bool:
    """True where the files hold a head that differs from the embedding, which transformers then does not
    tie."""
    head, embedding = files.family.head, files.family.tensors(cfg)["embedding/embedding"].name
    if files.real(head) is None or files.real(embedding) is None:
        return False
    if files.shape(head) != files.shape(embedding):
        return True
    rows = files.shape(head)[0]
    parts = [(slice(row, min(row + 4096, rows)),) for row in range(0, rows, 4096)]
    return any(not np.array_equal(files.part(head, x), files.part(embedding, x)) for x in parts)


def chain(folder: pathlib.Path) -> list[pathlib.Path]:
    """`folder`, then for an adapter the folder of the model it adapts, and so on.

    Raises ValueError for an adapter over itself.
    """
    found = [folder]
    while (found[-1] / peft.CONFIG).exists():
        config = peft.read_config(found[-1])
        name, revision = config["base_model_name_or_path"], config.get("revision")
        is_whole = revision is None or pathlib.Path(name).is_dir() or "@" in name
        base = resolve(name if is_whole else f"{name}@{revision}")
        if any(base.samefile(x) for x in found):
            raise ValueError(
                f"{found[-1] / peft.CONFIG} has base_model_name_or_path = {name!r}, which is an adapter "
                f"over {found[-1]} itself: name the model that it was made for"
            )
        found.append(base)
    return found


def base_of(folder: pathlib.Path) -> pathlib.Path:
    """Folder of the model that the adapter in `folder` adapts; `folder` itself where it is no adapter."""
    return chain(folder)[:2][-1]


def stops_of(folder: pathlib.Path) -> tuple[int, ...]:
    """Every token id that ends a response of the model in `folder`, in order.

    They come from generation_config.json, from config.json (a list, or a number if the former names none),
    and from the model that an adapter adapts. Raises ValueError for a value that is no id.
    """
    found = set()
    for place in chain(folder):
        generation, config = ids_of(place / GENERATION), ids_of(place / "config.json")
        found |= set(generation) | set(config if len(config) > 1 or not generation else [])
    return tuple(sorted(found))


def ids_of(path: pathlib.Path) -> list[int]:
    """The ids under eos_token_id in a JSON file; none without such a file."""
    ids = read_json(path).get(EOS) if path.exists() else None
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    for x in ids:
        if not isinstance(x, int) or isinstance(x, bool) or x < 0:
            raise ValueError(f"{path} has {EOS} = {x!r}: it must be a token id or a list of ids")
    return ids


def generation_of(folder: pathlib.Path) -> dict:
    """The generation_config.json of the model in `folder`, or of the model that an adapter adapts."""
    paths = (place / GENERATION for place in chain(folder))
    return next((read_json(path) for path in paths if path.exists()), {})


def classifies(config: dict) -> bool:
    """True for the config.json of a reward model."""
    return any("SequenceClassification" in x for x in config.get("architectures") or [])


def load(name: str, *, places: Callable[[Any], Any] | None = None, **settings) -> Loaded:
    """The model `name` (a folder or a hub name), with its parameters on the devices.

    `places(tree of shapes)` gives the shardings of the parameters, as `parallel.Devices.places` does; by
    default all go to the first device. `settings` are fields of ModelConfig that config.json does not
    decide (`config.COMPUTED`). An adapter in PEFT's format is read with its model and merged into it.

    Raises ValueError, naming the tensor, for anything that does not fit, before any tensor is read.
    """
    folder = resolve(name)
    if places is None:
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = partial(jax.tree.map, lambda x: first)
    if (folder / peft.CONFIG).exists():
        return with_adapter(folder, load(str(base_of(folder)), places=places, **settings), places)
    family, cfg, config = read_config(folder, **settings)
    is_reward = classifies(config)
    files = Files(folder, family)
    like = jax.eval_shape(networks.language_model(cfg).init, jax.random.key(0))
    if is_reward:
        like = {path: x for path, x in like.items() if path != "unembedding"}
    by_path = lambda tree: {
        "/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(tree)
    }
    shapes = {path: x.shape for path, x in by_path(like).items()}
    tensors = {path: tensor for path, tensor in family.tensors(cfg).items() if path in shapes}
    check(files, tensors, shapes, cfg, is_reward)
    dtype = jnp.dtype(cfg.param_dtype)
    flat = {
        path: read(files, tensors[path], shapes[path], dtype, where)
        for path, where in by_path(places(like)).items()
    }
    params = unflatten(flat)
    if is_reward:
        head = files.tensor("score.weight").astype(np.float32)[0]
        check_finite(head, files.place("score.weight"))
        bias = np.float32(peft.score_bias(config.get(peft.BIAS, 0.0), folder / "config.json"))
        params = {"trunk": params} | placed({"head": head, "bias": bias}, places)
    return Loaded(cfg, params, family, config, folder, is_reward)


def placed(tree, places: Callable):
    """NumPy arrays, moved to the devices."""
    put = lambda x, where: jax.make_array_from_callback(x.shape, where, lambda index: x[index])
    return jax.tree.map(put, tree, places(tree))


def with_adapter(folder: pathlib.Path, base: Loaded, places: Callable) -> Loaded:
    """The model with the adapter in `folder` merged into it."""
    trunk = base.params["trunk"] if base.is_reward else base.params
    trained, cfg = peft.read(folder, base.family, base.cfg, trunk["blocks"])
    _, _, config = read_config(folder)
    params, is_reward = base.params, classifies(config)
    if is_reward and not base.is_reward:
        params = {"trunk": networks.headless(params)}
    if is_reward and "trunk" not in trained:
        trained = {"trunk": trained}
    params = lora.merge(lora.join(params, placed(trained, places), cfg))
    if is_reward and "head" not in params:
        raise ValueError(
            f"{folder} adapts a classifier, and neither it nor its model has a score.weight"
        )
    return base._replace(params=params, config=config, folder=folder, is_reward=is_reward)


def unflatten(flat: dict[str, Any]) -> dict:
    """A tree from paths "a/b/c"."""
    tree = {}
    for path, x in flat.items():
        *parents, last = path.split("/")
        place = tree
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = x
    return tree
