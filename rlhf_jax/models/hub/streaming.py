"""Tensors of a checkpoint's files: checked by their headers, then streamed to their devices.

One tensor of one layer at a time goes from the mapped file to its device, in its sharding and dtype, and
layers are stacked there: beyond the file cache, this process never holds more than that.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.family import Family, Tensor
from rlhf_jax.models.hub.families.keys import shown

INDEX = "model.safetensors.index.json"
PART = 2**23  # bytes that are on their way to a device at once, of a tensor that is no layer's
FLOATS = ("F64", "F32", "F16", "BF16")  # the types of numbers that are read


def read_json(path: pathlib.Path) -> dict:
    """The JSON object in a file. Raises ValueError, with the file's path, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {shown(found)}: it must hold an object with keys")
    return found


def write_tensors(arrays: dict[str, np.ndarray], path: pathlib.Path, **facts: str):
    """Writes a safetensors file for transformers, with `facts` in its metadata.

    The file has the mode that the umask gives to new files; safetensors itself makes files that only their
    owner can read.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(arrays, path, metadata={"format": "pt"} | facts)
    path.chmod(mode)


class Files:
    """The tensors of a folder, in one file or in several with an index, by the names of its family."""

    def __init__(self, folder: pathlib.Path, family: Family):
        self.folder, self.family, self.open = folder, family, {}
        if (folder / INDEX).exists():
            self.file_of = weight_map(folder / INDEX)
        elif (folder / "model.safetensors").exists():
            names = self.file("model.safetensors").keys()
            self.file_of = dict.fromkeys(names, "model.safetensors")
        else:
            raise ValueError(f"{folder} holds neither model.safetensors nor {INDEX}")

    def file(self, name: str):
        """An open file, mapped into memory; raises ValueError for one that is missing or truncated."""
        if name not in self.open:
            try:
                self.open[name] = safe_open(self.folder / name, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self.folder / name} cannot be read ({error}): download it again"
                ) from None
        return self.open[name]

    def real(self, name: str) -> str | None:
        """The name of a tensor in the files: with the family's prefix, or without."""
        return next((x for x in (self.family.prefix + name, name) if x in self.file_of), None)

    def place(self, name: str) -> str:
        """File and name of a tensor, for messages."""
        name = self.real(name) or name
        return f"{self.folder / self.file_of[name]}: the tensor {name}"

    def slices(self, name: str):
        """The tensor as a safetensors slice; raises ValueError where its file lacks it."""
        name = self.real(name) or name
        try:
            return self.file(self.file_of[name]).get_slice(name)
        except SafetensorError as error:
            raise ValueError(f"{self.place(name)} cannot be read ({error})") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header of its file; raises ValueError where it holds no floats."""
        slices = self.slices(name)
        check_type(slices, self.place(name))
        return tuple(slices.get_shape())

    def tensor(self, name: str) -> np.ndarray:
        """The whole array."""
        name = self.real(name) or name
        return self.file(self.file_of[name]).get_tensor(name)

    def part(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the array, read alone."""
        return self.slices(name)[index]

    def surplus(self, wanted: set[str]) -> Iterator[str]:
        """Tensors that are neither wanted nor known to hold no weight."""
        for name in self.file_of:
            bare = name.removeprefix(self.family.prefix)
            idle = any(re.fullmatch(pattern, bare) for pattern in self.family.ignored)
            if name not in wanted and bare not in wanted and not idle:
                yield name


def weight_map(path: pathlib.Path) -> dict[str, str]:
    """The file of each tensor, from an index. Raises ValueError for a file outside the index's folder."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f'{path} has no "weight_map" of names to files: download it again')
    for name, file in found.items():
        beside = isinstance(file, str) and pathlib.PurePath(file).name == file
        if not beside or not file.endswith(".safetensors"):
            raise ValueError(
                f"{path} says that {name} is in {file!r}: it must be a *.safetensors file beside the index"
            )
    return found


def check_type(slices, place: str):
    """Raises ValueError where a tensor, `place` in messages, holds no floats of 16, 32 or 64 bits."""
    if slices.get_dtype() not in FLOATS:
        raise ValueError(
            f"{place} is of type {slices.get_dtype()}: read are {', '.join(FLOATS)}, and a quantized "
            "model is none of them"
        )


def check_finite(x: np.ndarray, place: str):
    """Raises ValueError where an array, `place` in messages, holds NaN or infinity."""
    if x.itemsize > 2:
        finite = np.isfinite(x).all()
    else:  # by the bits of the exponent, in an eighth of the time
        bits = f"u{x.itemsize}"
        exponent = np.asarray(np.inf, x.dtype).view(bits)
        finite = not np.any((x.view(bits) & exponent) == exponent)
    if not finite:
        raise ValueError(
            f"{place} holds NaN or infinity in {x.dtype}: download it again, or choose another model"
        )


def check(files: Files, tensors: dict[str, Tensor], shapes, cfg: ModelConfig, is_reward: bool):
    """Raises ValueError, naming the tensor, for one that is missing or surplus, or whose shape is wrong."""
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
    """One parameter on its devices; a stacked one [layers, ...] is read one layer at a time."""
    if "*" not in tensor.name:  # the largest there are, and none of them is fused
        turn = -1 if tensor.linear else 1
        get = lambda index: tensor.read(files.part(tensor.name, index[::turn]))
        return place(get, shape, dtype, sharding, files.place(tensor.name))
    zeros, put = stacking(tuple(shape), dtype, sharding)
    whole = zeros()
    for layer in range(shape[0]):
        name = tensor.name.replace("*", str(layer))
        x = tensor.read(files.tensor(name))
        x = place(x.__getitem__, shape[1:], dtype, without_layers(sharding), files.place(name))
        whole = jax.block_until_ready(put(whole, x, layer))  # or layers would queue up before it
    return whole


@cache
def stacking(shape: tuple[int, ...], dtype, sharding) -> tuple[Callable, Callable]:
    """(function that makes an empty stack, function that inserts a layer), compiled once per kind."""
    put = lambda whole, x, i: jax.lax.dynamic_update_index_in_dim(whole, x, i, 0)
    return (
        jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding),
        jax.jit(put, donate_argnums=0, out_shardings=sharding),
    )


def place(get: Callable[[tuple], np.ndarray], shape, dtype, sharding, name: str) -> jax.Array:
    """An array from `get(index)`: each device gets its slice, one after the other.

    A large slice is filled a few rows at a time. Every transfer is awaited, because pending ones keep their
    source in memory. Raises ValueError, naming `name`, where a slice is not finite in `dtype`.
    """

    def put(index, device):
        x = np.asarray(get(index), dtype, order="C")
        check_finite(x, name)
        return jax.block_until_ready(jax.device_put(x, device))

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
    """`whole` with `part` written from `row` on, in the same memory."""
    return jax.lax.dynamic_update_slice_in_dim(whole, part, row, 0)


def without_layers(sharding):
    """The sharding of one layer of a stacked parameter."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(
            sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[1:])
        )
    return sharding
