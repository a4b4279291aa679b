"""Arrays of a data set that are made once, and read from disk a batch at a time by every host."""

import pathlib
import shutil
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from rlhf_jax import hosts

Records = TypeVar("Records")


def mapped(folder: pathlib.Path, make: Callable[[], Records], like: Records) -> Records:
    """The tree of arrays that `make()` gives, as files of `folder` that are mapped into memory, read-only.

    The first process alone calls `make`, where `folder` does not stand; it appears whole or not at all.
    `like` is any tree of that structure.
    """

    def write():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for n, x in enumerate(jax.tree.leaves(make())):
            np.save(partial / f"{n}.npy", x)
        partial.replace(folder)

    hosts.once(folder.exists, write)
    leaves, structure = jax.tree.flatten(like)
    arrays = [np.load(folder / f"{n}.npy", mmap_mode="r") for n in range(len(leaves))]
    return jax.tree.unflatten(structure, [np.asarray(x) for x in arrays])
