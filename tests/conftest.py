"""Eight virtual CPU devices, strict shapes, and a compilation cache that a second run finds warm.

LLVM hardly optimises, which halves the time to compile; what XLA itself does to programs is unchanged.
"""

import gc
import itertools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# read as jax is imported, by this process and by those that tests start
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # but in `compiling.optimised`
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parent.parent / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(20_000, 20, 50)  # traced programs are many objects that live for long


FILES = itertools.count()


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Takes what earlier files left from the collector, which looked at all of it for a third of the time.

    Every fourth file it looks at all, so that programs which nobody needs any more are freed.
    """
    if next(FILES) % 4 == 0:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
