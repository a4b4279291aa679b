"""Placement of pure functions on devices: one vocabulary for jit, pmap and a mesh.

A spec is P() for arrays replicated on every device (parameters, keys, metrics) and P(DATA) for arrays
sharded by rows. `compile(fn, in_specs, out_specs)` takes one spec per argument, at least one of them
P(DATA). `each` does the same for many runs at once; their leading axis replaces the rows.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.devices import sharding
from rlhf_jax.ops.layout import DATA


class Devices(NamedTuple):
    """A device layout: `axis_name` goes to train steps, and the other fields move functions and arrays."""

    name: str
    count: int
    axis_name: str | None
    compile: Callable  # compile(fn, in_specs, out_specs, donate=()) -> the compiled function
    each: Callable  # each(fn, in_specs, donate=()) -> fn mapped over runs [S, ...] of P(DATA) arguments
    put_batch: Callable  # rows [B, ...] -> the rows, sharded over the devices
    take: Callable  # (records [N, ...], row numbers [B, ...]) -> these rows, sharded
    places: Callable  # a tree of parameters, or of their shapes -> its shardings
    fetch: Callable  # rows on the devices -> NumPy arrays [B, ...]
    host: Callable  # outputs of `put` or `compile` -> whole NumPy arrays
    sizes: dict[str, int]  # sizes of the mesh axes; empty without a mesh

    def put(self, tree):
        """Parameters in the shardings of `places`, in buffers of their own."""
        return jax.tree.map(_own, tree, self.places(tree))

    def share(self, tree):
        """Like `put` without copies, for arrays that are never donated; aliases stay aliases."""
        placed = {}

        def place(x, where):
            if (id(x), where) not in placed:
                own = x.sharding if isinstance(x, jax.Array) and x.committed else None
                lies = own is not None and own.is_equivalent_to(where, x.ndim)
                placed[id(x), where] = x if lies else _own(x, where)
            return placed[id(x), where]

        return jax.tree.map(place, tree, self.places(tree))

    def make(self, fn: Callable, *args):
        """Parameters returned by a pure function, sharded as they are computed, so none is ever whole."""
        return jax.jit(fn, out_shardings=self.places(jax.eval_shape(fn, *args)))(*args)


def _own(x, where):
    # device_put may alias its input, and a donated alias would delete the caller's array
    if isinstance(x, jax.Array) and x.sharding.device_set == where.device_set:
        return jax.device_put(x, where, may_alias=False)  # from device to device
    x = np.array(x)
    if jax.process_count() == 1:
        return jax.device_put(x, where)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index].copy())


def _gathered(tree):
    """Whole NumPy arrays from arrays that may be spread over several hosts."""
    here = lambda x: not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    gather = lambda x: x if here(x) else multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(jax.tree.map(gather, tree))


def _take(records, index):
    return jax.tree.map(lambda x: x[index], records)


def _take_own(records, index, rows: NamedSharding):
    """The rows of `records` in the sharding `rows`, of which each host reads those of its own devices."""
    if jax.process_count() == 1:
        return jax.device_put(_take(records, index), rows)
    slices: Any = rows.addressable_devices_indices_map(index.shape).values()
    mine = np.unique(np.concatenate([np.arange(len(index))[cut[0]] for cut in slices]))
    place = lambda x: jax.make_array_from_process_local_data(
        rows, x[index[mine]], (*index.shape, *x.shape[1:])
    )
    return jax.tree.map(place, records)


def _under(mesh, fn: Callable) -> Callable:
    """`fn`, called with the mesh set, to which `layout.spread` then constrains."""

    def call(*args):
        with jax.set_mesh(mesh):
            return fn(*args)

    return call


def _axes(specs):
    """The `in_axes` of vmap and pmap for specs."""
    return jax.tree.map(
        lambda s: None if s == P() else 0, specs, is_leaf=lambda s: isinstance(s, P)
    )


def _each(compile: Callable, alone: Callable = lambda fn, in_specs: fn) -> Callable:
    """`Devices.each` from a layout's `compile`; `alone` keeps the runs of a device on that device."""
    return lambda fn, in_specs, donate=(): compile(
        alone(jax.vmap(fn, _axes(in_specs)), in_specs), in_specs, P(DATA), donate
    )


def on_device() -> Devices:
    """Layout with everything on the first device, under `jax.jit`."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    compile = lambda fn, in_specs, out_specs, donate=(): jax.jit(fn, donate_argnums=donate)
    return Devices(
        name="device",
        count=1,
        axis_name=None,
        compile=compile,
        each=_each(compile),
        put_batch=lambda batch: jax.device_put(batch, device),
        take=lambda records, index: jax.device_put(_take(records, index), device),
        places=lambda tree: jax.tree.map(lambda _: device, tree),
        fetch=jax.device_get,
        host=jax.device_get,
        sizes={},
    )


def on_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Devices:
    """Mesh of `data` x `fsdp` x `tensor` devices (-1: all remaining ones), under `jax.jit`.

    Rows are sharded along data and fsdp, parameters as `sharding.RULES` say; XLA adds the collectives.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    rest = jax.device_count() // math.prod(n for n in sizes.values() if n != -1)
    sizes = {axis: rest if n == -1 else n for axis, n in sizes.items()}
    total = math.prod(sizes.values())
    mesh = jax.make_mesh(
        tuple(sizes.values()), sharding.AXES,
        axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:total],
    )  # fmt: skip
    rows = sharding.rows(mesh)
    of = lambda spec, tree: (
        sharding.shardings(tree, mesh) if spec == P() else jax.tree.map(lambda x: rows, tree)
    )

    def compile(fn, in_specs, out_specs, donate=()):
        def placed(*args):
            place = lambda spec, x: jax.lax.with_sharding_constraint(x, of(spec, x))
            return jax.tree.map(place, out_specs, fn(*args), is_leaf=lambda x: isinstance(x, P))

        # arrays with the spec P() keep the sharding that `put` gave them
        jitted = jax.jit(
            placed,
            in_shardings=tuple(None if spec == P() else rows for spec in in_specs),
            donate_argnums=donate,
        )

        call: Any = _under(mesh, jitted)
        call.lower = _under(mesh, jitted.lower)
        return call

    def alone(fn, in_specs):  # no device waits for another, nor constrains what it computes
        cut = tuple(P() if spec == P() else rows.spec for spec in in_specs)
        return jax.shard_map(fn, mesh=mesh, in_specs=cut, out_specs=rows.spec, check_vma=False)

    def put_batch(batch):
        if jax.process_count() == 1:
            return jax.device_put(batch, rows)
        return jax.tree.map(lambda x: _take_own(x, np.arange(len(x)), rows), batch)

    return Devices(
        name="mesh",
        count=sizes["data"] * sizes["fsdp"],
        axis_name=None,
        compile=compile,
        each=_each(compile, alone),
        put_batch=put_batch,
        take=partial(_take_own, rows=rows),
        places=lambda tree: sharding.shardings(tree, mesh),
        fetch=_gathered,
        host=_gathered,
        sizes=sizes,
    )


def on_pmap() -> Devices:
    """Layout with one program per device, under `jax.pmap`; steps sum over `axis_name` themselves."""
    count = jax.local_device_count()
    whole = NamedSharding(jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,)), P())

    def compile(fn, in_specs, out_specs, donate=()):
        return jax.pmap(
            fn, DATA, in_axes=_axes(in_specs), out_axes=_axes(out_specs), donate_argnums=donate
        )

    put_batch = lambda batch: jax.tree.map(
        lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch
    )
    return Devices(
        name="pmap",
        count=count,
        axis_name=DATA,
        compile=compile,
        each=_each(compile),
        put_batch=put_batch,
        take=lambda records, index: put_batch(_take(records, index)),
        places=lambda tree: jax.tree.map(lambda _: whole, tree),
        fetch=lambda tree: jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree)
        ),
        host=jax.device_get,
        sizes={},
    )


def check_name(name: str, setting: str = "devices") -> dict[str, int]:
    """Mesh axis sizes in the name of a layout, for any number of devices.

    Raises ValueError, naming the setting, for an unknown layout.
    """
    if name in ("auto", "device", "pmap"):
        return {}
    if name != "mesh" and not name.startswith("mesh:"):
        raise ValueError(
            f'{setting} = "{name}" is no device layout: use auto, device, pmap or mesh'
        )
    given = [x.partition("=") for x in name[5:].split(",") if x]
    axes = {axis: int(n) for axis, _, n in given if n == "-1" or n.isdecimal()}
    known = all(axis in sharding.AXES and (n > 0 or n == -1) for axis, n in axes.items())
    if len(axes) < len(given) or not known or list(axes.values()).count(-1) > 1:
        raise ValueError(
            f'{setting} = "{name}" is no mesh: write it as mesh:data=-1,fsdp=2,tensor=2'
        )
    return axes


def parse(name: str) -> dict[str, int]:
    """Axis sizes of a layout "mesh" or "mesh:data=2,fsdp=2,tensor=2", where -1 takes the remaining devices.

    Axes without a size are 1, except that data takes the remaining devices where no other axis does. Raises
    ValueError, suggesting the nearest layout, for any other text and for sizes that do not use all devices.
    """
    total, named = jax.device_count(), check_name(name)
    sizes = {"data": 1 if -1 in named.values() else -1, "fsdp": 1, "tensor": 1} | named
    counts = range(1, total + 1)
    layouts = [x for x in itertools.product(counts, counts, counts) if math.prod(x) == total]
    wrong = lambda n, axis: (
        0.0 if sizes[axis] == -1 else abs(math.log(n / sizes[axis])) * (1 if axis in named else 2)
    )
    nearest = min(layouts, key=lambda x: sum(map(wrong, x, sharding.AXES)))
    if any(map(wrong, nearest, sharding.AXES)):
        text = ",".join(f"{axis}={n}" for axis, n in zip(sharding.AXES, nearest, strict=True))
        raise ValueError(f'devices = "{name}" does not divide {total} devices: use mesh:{text}')
    return dict(zip(sharding.AXES, nearest, strict=True))


def choose(
    name: str, batch_sizes: dict[str, int], dimensions: dict[str, tuple[int, str]] | None = None
) -> Devices:
    """The layout called `name` ("auto": a mesh with several devices, otherwise one device).

    Raises ValueError for an unknown name, for a batch size (by the name of its setting) that does not
    divide over the devices, and for one of the model's `dimensions` (as in `sharding.check`) that a mesh
    axis does not divide.
    """
    if name == "auto":
        name = "mesh" if jax.device_count() > 1 else "device"
    if jax.process_count() > 1 and not name.startswith("mesh"):
        raise ValueError(
            f'devices = "{name}" is of one process, and there are {jax.process_count()}: use mesh'
        )
    check_name(name)
    if name.startswith("mesh"):
        devices = on_mesh(**parse(name))
        sharding.check(devices.sizes, dimensions or {})
    else:
        devices = {"device": on_device, "pmap": on_pmap}[name]()
    for setting, size in batch_sizes.items():
        if size % devices.count:
            nearest = max(1, round(size / devices.count)) * devices.count
            raise ValueError(
                f"{setting} = {size} does not divide over {devices.count} devices: use {nearest}"
            )
    return devices
