"""Arrays without values, on devices that hold nothing: a run's own code is called with them.

Parameters are `Absent`: shapes that lie on the devices or on the host for as long as the program keeps
them. Rows of a batch and scalars are zeros. A compiled function is lowered and compiled for what it is called
with, never run, and returns the shapes of its results.
"""

import copy
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey

from rlhf_jax.devices import memory
from rlhf_jax.devices.dry_run import (
    CRITIC,
    FROZEN,
    HOST,
    OPTIMIZER,
    REWARDS,
    TRAINED,
    Call,
    DryRun,
    path_of,
)
from rlhf_jax.devices.parallel import DATA, Devices


class Absent:
    """An array without values, on the devices, or on the host where it has no sharding."""

    def __init__(self, dry: DryRun, like, sharding=None, kind: str = HOST):
        self.dry, self.sharding, self.kind = dry, sharding, kind if sharding else HOST
        self.shape, self.dtype = tuple(like.shape), like.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        self.held = memory.share(self, sharding)
        dry.add(self.kind, self.held)

    def delete(self):
        """Frees the array, as donating it does."""
        self.dry.add(self.kind, -self.held)
        self.held = 0

    __del__ = delete

    def become(self, kind: str):
        """Counts the array as one of another kind."""
        self.dry.add(self.kind, -self.held)
        self.kind = kind
        self.dry.add(kind, self.held)

    def __len__(self):
        return self.shape[0]

    def __add__(self, other):
        return self._result(lambda x, y: x + y, other)

    def __sub__(self, other):
        return self._result(lambda x, y: x - y, other)

    def __mul__(self, other):
        return self._result(lambda x, y: x * y, other)

    def __matmul__(self, other):
        return self._result(lambda x, y: x @ y, other)

    def astype(self, dtype):
        """The array in another dtype."""
        return self._result(lambda x: x.astype(dtype))

    def copy(self):
        """Another array of this shape."""
        return Absent(self.dry, self, self.sharding, FROZEN)

    def mean(self, axis: int):
        """The mean along an axis."""
        return self._result(lambda x: x.mean(axis=axis))

    def _result(self, fn: Callable, *others) -> "Absent":
        found = jax.eval_shape(fn, *map(_plain, (self, *others)))
        return Absent(
            self.dry, found, self.sharding if found.shape == self.shape else None, self.kind
        )


def on_paper(devices: Devices, dry: DryRun) -> Devices:
    """The layout, on which no array has values and no function runs."""
    over = devices.count
    cut = (over,) if devices.axis_name else ()

    def rows(shape, dtype):
        return dry.rows((*cut, shape[0] // over, *shape[1:]) if cut else shape, dtype, over)

    def compile(fn, in_specs, out_specs, donate=()):
        real = devices.compile(fn, in_specs, out_specs, donate)
        return Program(paper, real, _name(fn), in_specs, out_specs, donate)

    def back(get: Callable) -> Callable:
        def one(x):
            if isinstance(x, Absent):
                return Absent(dry, x) if x.sharding else x
            return np.array(get(jax.device_get(x)))

        return lambda tree: jax.tree.map(one, tree)

    paper = OnPaper(
        name=devices.name,
        count=over,
        axis_name=devices.axis_name,
        compile=compile,
        each=devices.each,
        put_batch=lambda batch: jax.tree.map(lambda x: rows(x.shape, x.dtype), batch),
        take=lambda records, index: jax.tree.map(
            lambda x: rows((*index.shape, *x.shape[1:]), x.dtype), records
        ),
        places=lambda tree: devices.places(jax.tree.map(_plain, tree)),
        fetch=back(devices.fetch),
        host=back(lambda x: x),
        sizes=devices.sizes,
    )
    paper.dry = dry
    dry.layout = paper
    return paper


class OnPaper(Devices):
    """A layout of a `DryRun`, which moves `Absent` arrays."""

    dry: DryRun

    def put(self, tree):
        """`Absent` arrays in the shardings of `places`."""
        return jax.tree.map_with_path(self.placed, tree, self.places(tree))

    def share(self, tree):
        """Like `put`, for arrays that lie elsewhere; aliases stay aliases."""
        placed = {}

        def place(path, x, where):
            if isinstance(x, Absent) and x.sharding and x.sharding.is_equivalent_to(where, x.ndim):
                return x
            if (id(x), where) not in placed:
                placed[id(x), where] = self.placed(path, x, where)
            return placed[id(x), where]

        return jax.tree.map_with_path(place, tree, self.places(tree))

    def make(self, fn: Callable, *args):
        """The shapes that a pure function returns, as `Absent` arrays."""
        shapes = jax.eval_shape(fn, *jax.tree.map(_plain, args))
        return jax.tree.map_with_path(self.placed, shapes, self.places(shapes))

    def ended(self, carry):
        """The carry of a stage that has ended, whose parameters are trained no more."""
        for path, x in jax.tree.leaves_with_path(carry):
            if isinstance(x, Absent) and x.kind in (TRAINED, CRITIC):
                x.become(kind_of([key for key in path if isinstance(key, DictKey)]))
        return carry

    def placed(self, path, x, where):
        """One array, in its sharding; a scalar has its value."""
        if not x.shape:
            known = not isinstance(x, (jax.ShapeDtypeStruct, Absent))
            return np.asarray(x) if known else np.zeros((), x.dtype)
        if isinstance(x, Absent) and not x.sharding:
            self.dry.touch(x.nbytes)  # moving it copies it
        return Absent(self.dry, x, where, kind_of(path))


class Program:
    """A function compiled for its arguments, and never run."""

    def __init__(self, devices: OnPaper, real, name: str, in_specs, out_specs, donate):
        self.dry, self.devices, self.real, self.name = devices.dry, devices, real, name
        self.in_specs, self.out_specs = in_specs, out_specs
        self.donate = (donate,) if isinstance(donate, int) else donate
        self.known: dict = {}

    def named(self, name: str) -> "Program":
        """The function under another name."""
        found = copy.copy(self)
        found.name = name
        return found

    def __call__(self, *args):
        """The shapes of the results, on the devices."""
        given = tuple(map(self._spec, self.in_specs, args))
        batch = [x for s, x in zip(self.in_specs, args, strict=True) if s == P(DATA)]
        rows = jax.tree.leaves(batch)
        tokens = sum(
            x.size for path, x in jax.tree.leaves_with_path(batch) if "tokens" in path_of(path)
        )
        trains = any("opt_state" in path_of(x) for x, _ in jax.tree.leaves_with_path(args[0]))
        key = jax.tree.structure(given), str([(x.shape, x.dtype) for x in jax.tree.leaves(given)])
        if key not in self.known:
            self.dry.tell(f"{self.dry.stage}: compiling {self.name}")
            lowered = self.real.lower(*given)
            out = jax.tree.map(_plain, lowered.out_info)
            weights = sum(x.size for x in jax.tree.leaves(args) if isinstance(x, Absent))
            about = 2.0 * weights * tokens, self.donate == (0,)
            self.known[key] = out, *self.dry.taken(lowered, given, *about)
        out, more, seconds = self.known[key]
        self.dry.called(
            Call(
                stage=self.dry.stage,
                name=self.name,
                held=self.dry.held,
                more=more,
                trains=trains,
                samples=hasattr(out, "ended"),
                rows=math.prod(rows[0].shape[: 2 if self.devices.axis_name else 1]) if rows else 0,
                tokens=tokens,
                seconds=seconds,
            )
        )
        for x in jax.tree.leaves([args[i] for i in self.donate]):
            if isinstance(x, Absent):
                x.delete()
        whose = jax.tree.broadcast(self.out_specs, out, is_leaf=_is_spec)
        return jax.tree.map_with_path(
            self._result, whose, out, self.devices.places(out), is_leaf=_is_spec
        )

    def _spec(self, of, tree):
        """The shapes of an argument, with the shardings in which it lies or would lie."""
        if of == P(DATA) or self.devices.axis_name:
            return jax.tree.map(_plain, tree)

        def place(x, where):
            if isinstance(x, jax.Array):  # a key
                return _plain(x)
            where = x.sharding if isinstance(x, Absent) else where
            return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where)

        return jax.tree.map(place, tree, self.devices.places(tree))

    def _result(self, path, of, x, where):
        if of == P(DATA):
            return self.dry.rows(x.shape, x.dtype, self.devices.count)
        return self.devices.placed(path, x, where)


def kind_of(path) -> str:
    """The kind of an array on a device, by its path in a tree of parameters or in a state."""
    first = next((key.key for key in path if isinstance(key, DictKey)), "")
    if "opt_state" in path_of(path):
        return OPTIMIZER
    if first == "value":
        return CRITIC
    if "params" in path_of(path):
        return TRAINED
    return REWARDS if first in ("trunk", "head", "bias") else FROZEN


def _plain(x):
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype) if hasattr(x, "dtype") else x


def _is_spec(x) -> bool:
    return isinstance(x, P)


def _name(fn) -> str:
    while hasattr(fn, "func"):
        fn = fn.func
    return getattr(fn, "__name__", type(fn).__name__)
