"""Parameters and moments lie where the rules say, and the compiled update moves no more than it must."""

import itertools
import math
import re
from dataclasses import replace
from functools import partial

import jax
import layouts
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import ppo
from rlhf_jax.batches import PPORollout, Prompts, Samples
from rlhf_jax.devices import parallel, sharding
from rlhf_jax.models import decoding, lora, networks, transformer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops import layout
from rlhf_jax.ops.layout import DATA
from rlhf_jax.runs import checkpoint

B, PROMPT, T, V, LAYERS, D, MLP = 32, 7, 9, 80, 3, 48, 112
TX = optimizer.make(optimizer.OptimizerConfig(), 10)
SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
KINDS = {
    "gpt2": {},
    "llama": dict(
        positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, tied=False, kv_heads=2,
        qkv_bias=True,
    ),
}  # fmt: skip


def model(kind="gpt2"):
    shape = ModelConfig(
        vocab_size=V, context=PROMPT + T, layers=LAYERS, d_model=D, heads=4, d_mlp=MLP
    )
    return networks.language_model(ModelConfig(**vars(shape) | KINDS[kind]))


def cuts(tree):
    """{path: the axes that cut it}, on 2 x 2 x 2 devices."""
    mesh = parallel.on_mesh(2, 2, 2).put({"x": np.zeros(1)})["x"].sharding.mesh
    found = jax.tree.leaves_with_path(sharding.shardings(tree, mesh))
    return {jax.tree_util.keystr(path): {x for x in where.spec if x} for path, where in found}


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_and_its_moments_are_cut_by_both_axes_and_a_layer_by_none(kind):
    ac = networks.actor_critic(model(kind))
    params = jax.eval_shape(lambda key: ac.init(model(kind).init(key)), jax.random.key(0))
    state = jax.eval_shape(partial(train_step.init_state, tx=TX), params)
    for path, axes in cuts(state).items():
        if "kernel" in path or "embedding']['embedding" in path:
            assert axes == ({"fsdp"} if "position" in path else {"fsdp", "tensor"}), path
        elif re.search(r"blocks'\]\['(query|key|value|up|gate)'\]\['bias", path):
            assert axes == {"tensor"}, path
        else:
            assert axes == set(), path
    assert sum("kernel" in path for path in cuts(state)) == 3 * sum(
        "kernel" in x for x in cuts(params)
    )


def test_adapters_are_cut_as_the_matrix_is():
    params = jax.eval_shape(model().init, jax.random.key(0))
    cfg = lora.LoraConfig(2, matrices=("query", "down"))
    _, trained = jax.eval_shape(lambda p: lora.split(jax.random.key(0), p, cfg), params)
    got = {path.split("'")[3] + path[-3]: axes for path, axes in cuts(trained).items()}
    assert got == {"querya": {"fsdp"}, "queryb": {"tensor"}, "downa": {"tensor"}, "downb": {"fsdp"}}


def test_an_axis_that_does_not_divide_is_left_out():
    assert sharding.spec_of("embedding/embedding", (50257, 48), SIZES) == P(None, "fsdp")
    assert sharding.spec_of("blocks/up/kernel", (3, 48, 112), SIZES) == P(None, "fsdp", "tensor")
    assert sharding.spec_of("final_norm/scale", (48,), SIZES) == P()
    # heads over a vocabulary, whoever's they are; scalar heads, and members' scalar heads, stay whole
    assert sharding.spec_of("q/head", (2, 48, 112), SIZES) == P(None, "fsdp", "tensor")
    assert sharding.spec_of("anyone/head", (2, 48, 112), SIZES) == P(None, "fsdp", "tensor")
    assert sharding.spec_of("value/head", (48,), SIZES) == P()
    assert sharding.spec_of("head", (4, 48), SIZES) == P()


def test_a_checkpoint_goes_from_every_layout_to_every_other(tmp_path):
    """With its bits: one device to eight, cut in two ways and whole, and back."""
    params = jax.jit(model().init)(jax.random.key(0))
    start = jax.device_get(train_step.init_state(params, TX))
    empty = jax.tree.map(np.zeros_like, start)
    every = [parallel.on_device(), *(make() for make in layouts.EVERY.values())]
    state = every[-1].put(start)
    for i, devices in enumerate([*every, *every[::-1]]):
        checkpoint.save(tmp_path, i, state)
        _, state = checkpoint.restore_latest(tmp_path, devices.put(empty))
        same = lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert all(jax.tree.leaves(jax.tree.map(same, state, devices.put(empty))))
        jax.tree.map(np.testing.assert_array_equal, devices.host(state), start)


def update_on(*sizes):
    """(the state after one update on a mesh, the text of the compiled update)."""
    devices, ac = parallel.on_mesh(*sizes), networks.actor_critic(model())
    params = jax.device_get(jax.jit(lambda key: ac.init(model().init(key)))(jax.random.key(0)))
    full = np.ones((B, PROMPT + T), bool)
    zeros = np.zeros((B, T), np.float32)
    samples = Samples(full.astype(np.int32), full, full[:, PROMPT:], zeros, full[:, 0])
    rollout = PPORollout(samples, *[np.ones((B, T), np.float32)] * 4)
    update = devices.compile(
        ppo.make_update(ac.fn, TX, ppo.PPOConfig(epochs=1, minibatches=2)),
        (P(), P(), P(), P(DATA), P()),
        (P(), P()),
        donate=(0,),
    )
    args = {}, np.float32(0.1), devices.put_batch(rollout), jax.random.key(0)
    state = devices.put(jax.device_get(train_step.init_state(params, TX)))
    text = update.lower(state, *args).compile().as_text()
    return state, update(state, *args)[0], text


def collectives(text, kind):
    """The shapes of the floats that collectives of one kind give, in a compiled program."""
    found = re.findall(rf"= (\(?[^=\n]*?\)?) {kind}(?:-start)?\(", text)
    dims = {shape for said in found for shape in re.findall(r"f32\[([\d,]*)\]", said)}
    return {tuple(int(n) for n in x.split(",") if n) for x in dims}


@pytest.mark.parametrize("sizes", [pytest.param((1, 8, 1), marks=pytest.mark.more), (2, 2, 2)])
def test_the_update_gathers_parameters_a_layer_at_a_time_and_no_activations(sizes):
    before, after, text = update_on(*sizes)
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), before, after)
    assert all(jax.tree.leaves(same))  # so the next update is the same program

    _, fsdp, tensor = sizes
    matrices = [(D, D), (D, MLP), (MLP, D), (V, D), (D, V), (PROMPT + T, D)]
    parts = itertools.product(matrices, (1, fsdp, tensor), (1, fsdp, tensor))
    of_parameters = {(n // a, m // b) for (n, m), a, b in parts}
    large = lambda kind: {x for x in collectives(text, kind) if math.prod(x) > B * (PROMPT + T)}
    gathered = large("all-gather")
    assert (
        gathered <= of_parameters
    )  # one layer, never [layers, ...], nor a stream [B L, D] or logits
    assert {(D, MLP // tensor), (MLP // tensor, D), (V // tensor, D)} <= gathered
    assert large("all-to-all") == large("collective-permute") == set()
    stream = {x for x in large("all-reduce") - of_parameters if x[-1] == D}  # of tensor's sums
    assert large("all-reduce") <= of_parameters | stream and bool(stream) == (tensor > 1)


def test_without_the_constraints_activations_would_be_moved(monkeypatch):
    """So the test above can fail."""
    for module in (transformer, layout):
        monkeypatch.setattr(module, "spread", lambda tree, axis=0: tree)
    gathered = collectives(update_on(1, 8, 1)[2], "all-gather")
    assert any(len(x) == 2 and x[0] == B // 2 * (PROMPT + T) for x in gathered)


def sampler_on(sizes, slots=0, buckets=1, kind="llama", layers=6):
    """(the text of a compiled sampler on a mesh, a device's temporary bytes, the bytes of all parameters)."""
    cfg = ModelConfig(vocab_size=1024, context=32, layers=layers, d_model=64, heads=8, d_mlp=256)
    lm, devices = networks.language_model(replace(cfg, **KINDS[kind])), parallel.on_mesh(*sizes)
    shapes = jax.eval_shape(lm.init, jax.random.key(0))
    lies = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    params = jax.tree.map(lies, shapes, devices.places(shapes))
    rows, width = (jax.ShapeDtypeStruct(x, np.int32) for x in ((B,), (B, 8)))
    prompts = Prompts(width, jax.ShapeDtypeStruct((B, 8), bool), rows, rows)
    cfg = sampling.SampleConfig(length=8, stop=(1,), slots=slots, buckets=buckets)
    sample = devices.compile(sampling.make_sample(lm, cfg), (P(), P(DATA), P()), P(DATA))
    program = sample.lower(params, prompts, jax.eval_shape(lambda: jax.random.key(0))).compile()
    whole = sum(math.prod(x.shape) * 4 for x in jax.tree.leaves(shapes))
    return program.as_text(), program.memory_analysis().temp_size_in_bytes, whole


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((1, 8, 1), {}),
        ((1, 8, 1), dict(slots=16, buckets=2, layers=2)),
        pytest.param((2, 2, 2), {}, marks=pytest.mark.more),
        pytest.param((1, 8, 1), dict(kind="gpt2"), marks=pytest.mark.more),
    ],
)
def test_the_sampler_holds_one_gathered_layer_at_most(sizes, settings):
    """The prompt's layers are gathered in their scan; tokens move to weights that stay where they are."""
    text, temporary, whole = sampler_on(sizes, **settings)
    assert temporary < whole / 2
    # no table [1024, 64], nor [layers, ...]
    assert max(map(math.prod, collectives(text, "all-gather"))) <= 64 * 256


def test_weights_that_the_sampler_does_not_hold_in_place_would_all_be_gathered(monkeypatch):
    """So the test above can fail."""
    for module in (transformer, decoding):
        monkeypatch.setattr(module, "gathered", layout.spread)
    monkeypatch.setattr(decoding, "divided", lambda matrix, axis: matrix)
    text, temporary, whole = sampler_on((1, 8, 1))
    assert temporary > whole
    assert (64, 1024) in collectives(text, "all-gather")  # the unembedding
