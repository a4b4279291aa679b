"""One function on every layout of the eight devices, compared with one of them."""

from functools import partial

import jax
import numpy as np
import pytest

from rlhf_jax.devices import parallel

EVERY = {
    "pmap": parallel.on_pmap,
    "data=2,fsdp=2,tensor=2": partial(parallel.on_mesh, 2, 2, 2),
    "data=8": parallel.on_mesh,
    "fsdp=8": partial(parallel.on_mesh, 1, 8),
    "fsdp=4,tensor=2": partial(parallel.on_mesh, 1, 4, 2),
}
FEW = tuple(EVERY)[:2]
REST = pytest.param(tuple(EVERY)[2:], marks=pytest.mark.layouts, id="rest")
some = pytest.mark.parametrize("names", [pytest.param(FEW, id="few"), REST])
"""Of a test of several layouts: `names` are two in CI, and the rest under `pytest -m layouts`."""
marked = pytest.mark.parametrize(
    "names", [pytest.param(FEW, marks=pytest.mark.layouts, id="few"), REST]
)
"""All of them under `pytest -m layouts`."""


def compare(run, names, atol, rtol=1e-5):
    """`run(devices)` on the layouts `names`, compared with one device, which it returns."""
    want = run(parallel.on_device())
    for name in names:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=rtol, atol=atol, err_msg=name),
            run(EVERY[name]()),
            want,
        )
    return want
