"""Products of few rows: their numbers, and the order of their factors in the compiled program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import few_rows


@pytest.mark.parametrize("rows", [1, 3, few_rows.FEW, few_rows.FEW + 1])
def test_a_product_is_that_with_the_kernel(rows):
    x, w = (jax.random.normal(jax.random.key(n), (n, 5)) for n in (rows, 7))
    want = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(few_rows.product(x, w), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [4, few_rows.FEW + 1])
def test_the_matrix_is_the_left_factor_of_few_rows_after_compilation_too(rows):
    x, w = jnp.ones((rows, 64)), jnp.ones((512, 64))
    program = jax.jit(lambda x, w: 2 * few_rows.product(x, w)).lower(x, w).compile().as_text()
    assert program is not None
    (shape,) = set(re.findall(r"f32\[(\d+,\d+)\]\S* dot\(", program))
    assert shape == (f"512,{rows}" if rows <= few_rows.FEW else f"{rows},512")


def test_only_kernels_are_transposed_in_layers_that_lie_apart_or_stacked():
    kernel, bias = np.zeros((2, 3, 4)), np.zeros((2, 4))
    layers = {"query": {"kernel": kernel, "bias": bias, "lora_a": np.zeros((2, 3, 1))}}
    for blocks in (layers, (layers, layers)):
        found = few_rows.transposed(
            {"blocks": blocks, "embedding": {"embedding": np.zeros((5, 3))}}
        )
        one = found["blocks"] if blocks is layers else found["blocks"][1]
        shapes = {name: x.shape for name, x in one["query"].items()}
        assert shapes == {"transposed": (2, 4, 3), "bias": (2, 4), "lora_a": (2, 3, 1)}
        assert found["embedding"]["embedding"].shape == (5, 3)
