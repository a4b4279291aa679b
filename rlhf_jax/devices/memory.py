"""The device memory that a compiled program needs, announced before its first call."""

import math
import os
import sys
from collections.abc import Callable

import jax

from rlhf_jax.devices import hosts

FULL = 0.95  # fraction of a device's memory above which a warning is printed


def held() -> int:
    """Bytes of all arrays on the first device of this process."""
    device = jax.local_devices()[0]
    live = [x for x in jax.live_arrays() if not x.is_deleted()]
    spread = (x for x in live if len(x.sharding.device_set) > 1)
    views = {id(shard.data) for x in spread for shard in x.addressable_shards}  # which hold nothing
    here = (x for x in live if device in x.sharding.device_set and id(x) not in views)
    return sum(share(x, x.sharding) for x in here)


def room() -> int:
    """Memory of the first device in bytes, or its share of this machine's memory."""
    device = jax.local_devices()[0]
    found = (device.memory_stats() or {}).get("bytes_limit", 0)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found or machine // jax.local_device_count()


def more(fn: Callable, *args) -> int:
    """Bytes on a device that `fn(*args)`, compiled here, takes beside its arguments; 0 if unknown."""
    return taken(fn.lower(*args))  # the call that follows finds it compiled


def taken(lowered) -> int:
    """Bytes on a device that a lowered function takes beside its arguments; 0 if unknown."""
    stats = lowered.compile().memory_analysis()
    if stats is None:
        return 0
    return stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes


def share(x, sharding: jax.sharding.Sharding | None) -> int:
    """Bytes on one device of an array, or of a shape, in a sharding; all bytes where that is None."""
    shape = x.shape if sharding is None else sharding.shard_shape(tuple(x.shape))
    return math.prod(shape) * x.dtype.itemsize


def announce_memory(name: str, fn: Callable, remedy: str) -> Callable:
    """Wraps the compiled `fn` to print its memory estimate before the first call.

    An estimate above the memory of the device prints a warning with the `remedy`; the call is tried anyway.
    """
    if hasattr(fn, "named"):  # of a dry run, which keeps the estimate
        return fn.named(name)
    calls = []

    def call(*args):
        if not calls:
            calls.append(name)
            print_estimate(name, held(), more(fn, *args), room(), remedy)
        return fn(*args)

    return call


def print_estimate(name: str, held: int, more: int, room: int, remedy: str):
    """Prints the memory of a stage, and a warning if it exceeds the device; only in the first process."""
    if not hosts.is_first():
        return
    text = f"{size(held)} held and {size(more)} more in a step, of {size(room)} per device"
    print(f"{name}: memory {text}", flush=True)
    if held + more > FULL * room:
        print(f"warning: {name} may not fit ({text}): try {remedy}", file=sys.stderr, flush=True)


def size(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
