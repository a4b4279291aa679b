"""Device memory of a compiled program, printed before its first run."""

import os
import sys
from collections.abc import Callable

import jax

from rlhf_jax.devices import hosts

FULL = 0.95  # share of a device's memory beyond which a warning is printed


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
    """Bytes that the compiled `fn(*args)` needs on a device beyond its arguments; 0 if unknown."""
    stats = (
        fn.lower(*args).compile().memory_analysis()
    )  # the following call reuses this compilation
    if stats is None:
        return 0
    return stats.output_size_in_bytes - stats.alias_size_in_bytes + stats.temp_size_in_bytes


def told(name: str, fn: Callable, remedy: str) -> Callable:
    """Wraps `fn` to print its memory estimate before the first call.

    Where the estimate exceeds the device, the message includes the `remedy`; the call runs all the same.
    """
    calls = []

    def call(*args):
        if not calls:
            calls.append(name)
            tell(name, held(), more(fn, *args), room(), remedy)
        return fn(*args)

    return call


def tell(name: str, held: int, more: int, room: int, remedy: str):
    """Prints the memory estimate of a stage on the first process, with a warning where it exceeds the
    device."""
    if not hosts.is_first():
        return
    text = f"{_size(held)} held and {_size(more)} more in a step, of {_size(room)} per device"
    print(f"{name}: memory {text}", flush=True)
    if held + more > FULL * room:
        print(f"warning: {name} may not fit ({text}): try {remedy}", file=sys.stderr, flush=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
