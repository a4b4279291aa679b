"""The contract of a family of checkpoints."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub.families.keys import COMMON, Kinds, complete


class Tensor(NamedTuple):
    """Place of one of our parameters, for one layer, in a checkpoint's files."""

    name: str  # name in the file, with * for the layer's number
    linear: bool = False  # stored as [out, in], where our kernels are [in, out]
    part: int = 0  # index of our part in a fused tensor
    parts: int = 1  # number of parts fused along the outputs
    interleaved: int = 0  # 0: parts one after the other; H: parts alternate within each of H heads

    def read(self, x: np.ndarray) -> np.ndarray:
        """Our array from the file's array."""
        x = x.T if self.linear else x
        if self.parts == 1:
            return x
        if self.interleaved:
            x = x.reshape(*x.shape[:-1], self.interleaved, self.parts, -1)
            return x[..., self.part, :].reshape(*x.shape[:-3], -1)
        return np.split(x, self.parts, axis=-1)[self.part]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file, from our shape."""
        whole = (*ours[:-1], ours[-1] * self.parts)
        return whole[::-1] if self.linear else whole

    def write(self, parts: list[np.ndarray]) -> np.ndarray:
        """The file's array, from all parts that it fuses."""
        x = parts[0]
        if self.parts > 1 and self.interleaved:
            heads = [p.reshape(*p.shape[:-1], self.interleaved, 1, -1) for p in parts]
            x = np.concatenate(heads, axis=-2).reshape(*x.shape[:-1], -1)
        elif self.parts > 1:
            x = np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(x.T if self.linear else x)


class Family(NamedTuple):
    """A family of checkpoints."""

    model_type: str  # model_type in config.json
    architecture: str  # the class of transformers that generates
    reward_architecture: str  # the class of transformers that classifies
    keys: Kinds  # keys of config.json that are required, or whose other values are unsupported
    read: Callable[[dict], dict]  # config.json, completed by transformers -> fields of ModelConfig
    config: Callable[[ModelConfig], dict]  # ModelConfig -> the keys that decide the arithmetic
    # our paths, such as "blocks/query/kernel" -> their places in the files
    tensors: Callable[[ModelConfig], dict[str, Tensor]]
    prefix: str  # prefix of all names except the head's; some files omit it
    head: str = "lm_head.weight"  # the unembedding
    ignored: tuple[str, ...] = ()  # regular expressions of names that hold no weight

    def settings(self, config: dict) -> dict:
        """The fields of ModelConfig that `config` means to this family's class in transformers.

        Raises KeyError for a missing key that is required, and ValueError, naming key, value and
        requirement, for a value that either transformers or this library does not support.
        """
        return self.read(complete(self.model_type, COMMON | self.keys, config))


def linear(ours: str, name: str, bias: bool) -> dict[str, Tensor]:
    """A projection stored as [out, in], with its bias if it has one."""
    tensors = {f"{ours}/kernel": Tensor(f"{name}.weight", linear=True)}
    return tensors | ({f"{ours}/bias": Tensor(f"{name}.bias")} if bias else {})


def scale(ours: str, name: str, bias: bool = False) -> dict[str, Tensor]:
    """The scale, and the bias if there is one, of a norm."""
    tensors = {f"{ours}/scale": Tensor(f"{name}.weight")}
    return tensors | ({f"{ours}/bias": Tensor(f"{name}.bias")} if bias else {})
