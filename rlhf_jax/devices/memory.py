"""The device memory that a compiled program needs, announced before its first call."""

import os
import sys
from collections.abc import Callable

import jax

from rlhf_jax.devices import hosts

FULL = 0.95  # fraction of a device's memory above which a warning is printed


def held() -> int:
    """Bytes of all arrays on the first device of this process."""
    device, seen = jax.local_devices()[0], 0
    for x in jax.live_arrays():
        seen += sum(s.data.nbytes for s in x.addressable_shards if s.device == device)
    return seen


def room() -> int:
    """Memory of the first device in bytes, or its share of this machine's memory."""
    device = jax.local_devices()[0]
    found = (device.memory_stats() or {}).get("bytes_limit", 0)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found or machine // jax.local_device_count()


def more(fn: Callable, *args) -> int:
    """Bytes on a device that `fn(*args)`, compiled here, takes beside its arguments; 0 if unknown."""
    stats = fn.lower(*args).compile().memory_analysis()  # the call that follows finds it compiled
    if stats is None:
        return 0
    return stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes


def announce_memory(name: str, fn: Callable, remedy: str) -> Callable:
    """Wraps the compiled `fn` to print its memory estimate before the first call.

    An estimate above the memory of the device prints a warning with the `remedy`; the call is tried anyway.
    """
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
    text = f"{_size(held)} held and {_size(more)} more in a step, of {_size(room)} per device"
    print(f"{name}: memory {text}", flush=True)
    if held + more > FULL * room:
        print(f"warning: {name} may not fit ({text}): try {remedy}", file=sys.stderr, flush=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
