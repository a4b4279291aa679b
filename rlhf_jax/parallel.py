"""How a pure function meets the devices: one vocabulary for jit, pmap and a mesh.

A spec is P() for what every device holds whole (parameters, keys, metrics) and P(DATA) for what is cut
along its rows. `compile(fn, in_specs, out_specs)` takes one spec an argument, at least one of them P(DATA).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.reduce import DATA


class Devices(NamedTuple):
    """`axis_name` is what steps are made with; the rest moves functions and arrays."""

    name: str
    count: int
    axis_name: str | None
    compile: Callable  # compile(fn, in_specs, out_specs, donate=()) -> the compiled function
    put_batch: Callable  # rows [B, ...] -> cut over the devices
    put: Callable  # whole on every device, in buffers of its own
    share: (
        Callable  # the same, but what is one array in the tree stays one: for what no step donates
    )
    fetch: Callable  # rows on the devices -> NumPy arrays [B, ...]


def _own(tree, sharding):
    # device_put may alias its input, and a donated alias would delete the caller's array
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding), tree)


def _shared(tree, sharding):
    placed = {id(x): x for x in jax.tree.leaves(tree)}
    placed = {name: _own(x, sharding) for name, x in placed.items()}
    return jax.tree.map(lambda x: placed[id(x)], tree)


def on_device() -> Devices:
    """Everything on the first device, under `jax.jit`."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return Devices(
        name="device",
        count=1,
        axis_name=None,
        compile=lambda fn, in_specs, out_specs, donate=(): jax.jit(fn, donate_argnums=donate),
        put_batch=lambda batch: jax.device_put(batch, device),
        put=lambda tree: _own(tree, device),
        share=lambda tree: _shared(tree, device),
        fetch=jax.device_get,
    )


def on_mesh(data: int = -1) -> Devices:
    """Rows over a mesh axis of `data` devices (-1: all), under `jax.jit`; XLA adds the collectives."""
    count = jax.device_count() if data == -1 else data
    mesh = jax.make_mesh(
        (count,), (DATA,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    place = lambda specs: jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda s: isinstance(s, P)
    )

    def compile(fn, in_specs, out_specs, donate=()):
        jitted = jax.jit(
            fn, in_shardings=place(in_specs), out_shardings=place(out_specs), donate_argnums=donate
        )

        def call(*args):
            with jax.set_mesh(mesh):  # reduce.spread constrains to the mesh that is set
                return jitted(*args)

        return call

    return Devices(
        name="mesh",
        count=count,
        axis_name=None,
        compile=compile,
        put_batch=lambda batch: jax.device_put(batch, place(P(DATA))),
        put=lambda tree: _own(tree, place(P())),
        share=lambda tree: _shared(tree, place(P())),
        fetch=jax.device_get,
    )


def on_pmap() -> Devices:
    """One program a device, under `jax.pmap`; steps sum over `axis_name` themselves."""
    count = jax.local_device_count()
    mesh = jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,))
    axes = lambda specs: jax.tree.map(
        lambda s: None if s == P() else 0, specs, is_leaf=lambda s: isinstance(s, P)
    )

    def compile(fn, in_specs, out_specs, donate=()):
        return jax.pmap(
            fn, DATA, in_axes=axes(in_specs), out_axes=axes(out_specs), donate_argnums=donate
        )

    return Devices(
        name="pmap",
        count=count,
        axis_name=DATA,
        compile=compile,
        put_batch=lambda batch: jax.tree.map(
            lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), batch
        ),
        put=lambda tree: _own(tree, NamedSharding(mesh, P())),
        share=lambda tree: _shared(tree, NamedSharding(mesh, P())),
        fetch=lambda tree: jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), jax.device_get(tree)
        ),
    )


def choose(name: str, batch_sizes: dict[str, int]) -> Devices:
    """The layout called `name` ("auto": a mesh where there are several devices, else one device).

    Raises ValueError for an unknown name, and for a batch size (by the name of its setting) that does
    not divide over the devices.
    """
    kinds = {"device": on_device, "mesh": on_mesh, "pmap": on_pmap}
    if name == "auto":
        name = "mesh" if jax.device_count() > 1 else "device"
    if name not in kinds:
        raise ValueError(f'devices = "{name}" is no layout: use auto, device, pmap or mesh')
    devices = kinds[name]()
    for setting, size in batch_sizes.items():
        if size % devices.count:
            nearest = max(1, round(size / devices.count)) * devices.count
            raise ValueError(
                f"{setting} = {size} does not divide over {devices.count} devices: use {nearest}"
            )
    return devices
