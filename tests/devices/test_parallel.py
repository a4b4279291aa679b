"""The same numbers on one device, under pmap and on a mesh of eight, and each device does its share."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax import epochs, optimizer, sampling, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, reward_model, rollout, sft
from rlhf_jax.batches import Comparisons, PPORollout, Prompts, Rollout, Samples, Sequences
from rlhf_jax.devices import parallel
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.layout import DATA
from rlhf_jax.ops.reduce import share

B, WIDTH, T, V = 16, 4, 6, 20  # rows, prompt columns, response columns, vocabulary
KEY = jax.random.key(0)
ROWS = P(DATA)
LAYOUTS = {
    "device": parallel.on_device,
    "pmap": parallel.on_pmap,
    "mesh": parallel.on_mesh,
}
MODEL = ModelConfig(vocab_size=V, context=WIDTH + T, layers=1, d_model=16, heads=2)
LM = networks.language_model(MODEL)
AC = networks.actor_critic(LM)
REWARD = networks.reward_model(LM)
TX = optimizer.make(optimizer.OptimizerConfig(lr=1e-2), steps=10)
STOP = tuple(range(1, 7))
CFG = ppo.PPOConfig(epochs=2, minibatches=2)
KL_COEF = np.float32(0.2)


def sequences(seed):
    """Uneven: the first rows say nothing, the last say most, so devices hold unlike numbers of tokens."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < (np.arange(B) * (T + 1) // B)[:, None]
    prompt = np.arange(WIDTH) >= rng.integers(0, WIDTH, (B, 1))
    return Sequences(
        tokens=rng.integers(0, V, (B, WIDTH + T), np.int32),
        attention_mask=np.concatenate([prompt, mask], axis=1),
        mask=mask,
    )


def prompts():
    """Two draws of each prompt, which is read once."""
    s, rows = sequences(0), np.arange(B, dtype=np.int32)
    tokens, mask = (x[::2, :WIDTH] for x in (s.tokens, s.attention_mask))
    return Prompts(tokens, mask, index=rows // 2, draw=rows % 2)


def rollout_of(seed):
    s, rng = sequences(seed), np.random.default_rng(seed)
    noise = lambda: np.where(s.mask, rng.normal(size=(B, T)), 0).astype(np.float32)
    logprobs = 0.3 * noise() - 3 * s.mask
    samples = Samples(s.tokens, s.attention_mask, s.mask, logprobs, ended=np.arange(B) % 5 > 0)
    rewards, ref_logprobs = noise(), 0.3 * noise() - 3 * s.mask
    return PPORollout(samples, rewards, samples.logprobs, ref_logprobs, values=noise())


@pytest.fixture(scope="module")
def params():
    """All networks' first parameters, as NumPy arrays."""

    @jax.jit
    def init(key):
        policy = LM.init(key)
        return {"policy": policy, "reward": REWARD.init(key, policy), "ac": AC.init(policy)}

    return jax.device_get(init(KEY))


def start(devices, params):
    return devices.put(jax.device_get(train_step.init_state(params, TX)))


@layouts.marked  # the step is the one of every algorithm, and two of them are below
def test_a_reward_step_does_not_depend_on_the_layout(params, names):
    """And on microbatches no more: several devices take two, one device takes one."""
    weight = np.linspace(0, 2, B, dtype=np.float32)
    batch = Comparisons(sequences(1), sequences(2), weight, 0.5 + weight / 4)

    def run(devices):
        step = reward_model.make_train_step(
            REWARD.fn,
            TX,
            microbatches=1 if devices.count == 1 else 2,
            axis_name=devices.axis_name,
        )
        step = devices.compile(step, (P(), P(), ROWS), (P(), P()), donate=(0,))
        state = start(devices, params["reward"])
        for _ in range(2):
            state, metrics = step(state, {}, devices.put_batch(batch))
        return jax.device_get((state, metrics))

    (state, _) = layouts.compare(run, names, atol=3e-5)
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), state.params, params["reward"])
    assert max(jax.tree.leaves(moved)) > 1e-3


@layouts.marked
@pytest.mark.parametrize("rank", [0, 2])
def test_an_sft_step_does_not_depend_on_the_layout(params, names, rank):
    """Of all parameters, and of adapters over a base that lies as it would without them."""
    adapters = lora.LoraConfig(rank, matrices=("query", "value", "attention_out", "up", "down"))
    batch, real = sequences(1), np.arange(B) < B - 3
    base, trained = jax.device_get(lora.split(KEY, params["policy"], adapters))

    def run(devices):
        make = lambda fn: sft.make_train_step(
            fn, TX, microbatches=1 if devices.count == 1 else 2, axis_name=devices.axis_name
        )
        step = devices.compile(
            lora.over_base(make, LM.policy_fn, adapters),
            (P(), P(), ROWS),
            (P(), P()),
            donate=(0,),
        )
        loss_of = devices.compile(
            sft.make_held_out_loss(LM.policy_fn, axis_name=devices.axis_name),
            (P(), ROWS, ROWS),
            P(),
        )
        state, frozen, rows = start(devices, trained), {"base": devices.put(base)}, batch
        for _ in range(3):
            state, metrics = step(state, frozen, devices.put_batch(rows))
        whole = lora.join(frozen["base"], state.params, adapters)
        nats = loss_of(whole, *devices.put_batch((batch, real)))
        return jax.device_get((state, metrics, nats))

    (state, _, (total, tokens)) = layouts.compare(run, names, atol=3e-5)
    assert tokens == np.sum(batch.mask[real]) and total > 0
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), state.params, trained)
    assert min(jax.tree.leaves(moved["blocks"])) > (1e-3 if rank else 0)


def ppo_update(devices, cfg=CFG):
    return devices.compile(
        ppo.make_update(AC.fn, TX, cfg, axis_name=devices.axis_name),
        (P(), P(), P(), ROWS, P()),
        (P(), P()),
        donate=(0,),
    )


@layouts.marked  # a whole iteration, below, has the update in it
def test_a_ppo_update_does_not_depend_on_the_layout(params, names):
    def run(devices):
        state = start(devices, params["ac"])
        batch = devices.put_batch(rollout_of(3))
        return jax.device_get(ppo_update(devices)(state, {}, KL_COEF, batch, KEY))

    state, metrics = layouts.compare(run, names, atol=3e-5)
    assert state.step == metrics["ppo/steps"] == 4
    assert metrics["ppo/policy_clipfrac"] > 0


@layouts.some
def test_a_policy_gradient_update_does_not_depend_on_the_layout(params, names):
    """Eight devices hold two rows each of groups of four, and some groups are flat."""
    cfg = policy_gradient.PolicyGradientConfig(
        epochs=2,
        minibatches=2,
        group=4,
        scale="group_std",
        importance_cap=1.5,
        mask_flat_groups=True,
        mask_truncated=True,
        overlong=0.5,
    )
    full = rollout_of(3)
    own = full.samples.logprobs + 0.3 * np.where(full.samples.mask, full.values, 0)
    rewards = np.where(np.arange(B)[:, None] < 8, full.rewards, 0)
    batch = Rollout(full.samples, rewards, own, full.ref_logprobs)

    def run(devices):
        update = devices.compile(
            policy_gradient.make_update(LM.policy_fn, TX, cfg, axis_name=devices.axis_name),
            (P(), P(), P(), ROWS, P()),
            (P(), P()),
            donate=(0,),
        )
        state = start(devices, params["policy"])
        return jax.device_get(update(state, {}, KL_COEF, devices.put_batch(batch), KEY))

    state, metrics = layouts.compare(run, names, atol=3e-5)
    assert state.step == metrics["pg/steps"] == 4
    assert metrics["pg/flat_groups"] == 0.5 and metrics["pg/importance_capped"] > 0


@layouts.marked
@pytest.mark.parametrize("scan", [False, True])
def test_rows_that_make_room_for_others_do_not_depend_on_the_layout(params, names, scan):
    lm = networks.language_model(dataclasses.replace(MODEL, scan_decode=scan))

    def run(devices):
        cfg = sampling.SampleConfig(
            length=T, stop=STOP, buckets=2, slots=1 if devices.name == "pmap" else 4
        )
        sample = devices.compile(sampling.make_sample(lm, cfg), (P(), ROWS, P()), ROWS)
        policy, rows = devices.put(params["policy"]), devices.put_batch(prompts())
        return devices.fetch(sample(policy, rows, KEY))

    layouts.compare(run, names, atol=1e-5)


@layouts.some
def test_a_ppo_iteration_with_sampling_does_not_depend_on_the_layout(params, names):
    """Sampled, scored in Python, annotated, updated, and sampled again from what was learned."""
    cfg = rollout.RolloutConfig()

    def run(devices):
        sample = devices.compile(
            sampling.make_sample(LM, sampling.SampleConfig(length=T, stop=STOP)),
            (P(), ROWS, P()),
            ROWS,
        )
        annotate = devices.compile(
            rollout.make_annotate_with_values(LM.policy_fn, AC.fn, cfg), (P(), P(), ROWS), ROWS
        )
        with_rewards = devices.compile(partial(rollout.with_rewards, cfg=cfg), (ROWS, ROWS), ROWS)
        state, reference = start(devices, params["ac"]), devices.put(params["policy"])
        rows = devices.put_batch(prompts())
        samples = sample(state.params["policy"], rows, KEY)
        seen = devices.fetch(samples)
        scores = np.array(
            [np.sum(row[m] % 3) for row, m in zip(seen.tokens[:, -T:], seen.mask, strict=True)]
        )
        scores = scores.astype(np.float32)
        seen_by = annotate(state.params, reference, samples)
        batch = with_rewards(seen_by, devices.put_batch(scores))
        state, metrics = ppo_update(devices)(state, {}, KL_COEF, batch, KEY)
        later = devices.fetch(sample(state.params["policy"], rows, jax.random.fold_in(KEY, 1)))
        exact = [seen.tokens, seen.mask, scores, later.tokens, later.mask]
        return exact, (seen, devices.fetch(batch), jax.device_get((state, metrics)))

    (want, close) = run(parallel.on_device())
    assert len(set(want[1].sum(axis=1))) > 2  # ragged
    assert np.any(want[0] != want[3])
    for name in names:
        got, got_close = run(layouts.EVERY[name]())
        jax.tree.map(partial(np.testing.assert_array_equal, err_msg=name), got, want)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4, err_msg=name),
            got_close,
            close,
        )


# --- each device's share


def flops(mesh):
    """Floating-point operations of one device in a PPO update, as XLA counts what it compiled."""
    hidden = lambda params, tokens, mask: jnp.tanh(params["w"][tokens])  # [B, L, D]
    policy_fn = networks.from_logits(
        lambda params, *x: hidden(params, *x) @ params["w"].T
    ).policy_fn
    fn = networks.with_values(policy_fn, lambda params, *x: hidden(params, *x)[..., 0])
    w = jax.ShapeDtypeStruct((V, 64), jnp.float32)
    state = jax.eval_shape(
        partial(train_step.init_state, tx=TX), {"policy": {"w": w}, "value": {"w": w}}
    )
    place = lambda spec: NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        update = jax.jit(
            ppo.make_update(fn, TX, ppo.PPOConfig(epochs=1, minibatches=2)),
            in_shardings=jax.tree.map(place, (P(), P(), P(), ROWS, P())),
            out_shardings=place(P()),
        )
        compiled = update.lower(state, {}, KL_COEF, rollout_of(3), KEY).compile()
    return compiled.cost_analysis()["flops"]


def mesh_of(count):
    return jax.make_mesh(
        (count,), (DATA,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def test_each_device_of_a_mesh_computes_its_share_of_a_minibatch(monkeypatch):
    """A third at most, with what is not shared (the optimizer); all of it without `layout.spread`."""
    alone, spread = flops(mesh_of(1)), flops(mesh_of(8))
    monkeypatch.setattr(epochs, "spread", lambda tree: tree)
    careless = flops(mesh_of(8))
    assert spread < alone / 3
    assert careless > 0.9 * alone  # so this test can fail


def test_a_minibatch_that_does_not_divide_over_the_devices_is_refused():
    """Else its last rows would be left out under pmap, and not on one device."""
    devices = parallel.on_pmap()
    pick = devices.compile(lambda x, order: share(order, DATA), (ROWS, P()), ROWS)
    with pytest.raises(ValueError, match=r"12 rows .* 8 devices"):
        pick(devices.put_batch(np.zeros(8)), np.arange(12))


# --- layouts


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", ["numpy", "jax"])
def test_put_makes_buffers_of_its_own(name, kind):
    """What is donated later is not the caller's, even an array that a device could use in place."""
    devices = LAYOUTS[name]()
    mine = {"jax": jnp.arange(4096.0), "numpy": np.arange(4096, dtype=np.float32)}[kind]
    tree = {"x": mine}
    put = devices.put(tree)
    double = devices.compile(lambda tree, rows: {"x": 2 * tree["x"]}, (P(), ROWS), P(), donate=(0,))
    for _ in range(3):
        old, put = put, double(put, devices.put_batch(np.zeros(8)))
        assert old["x"].is_deleted()  # the donation did take place
    np.testing.assert_array_equal(put["x"], 8 * np.arange(4096.0))
    np.testing.assert_array_equal(mine, np.arange(4096.0))
    assert kind == "numpy" or not mine.is_deleted()


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_go_out_and_come_back_in_order(name):
    devices = LAYOUTS[name]()
    batch = sequences(0)
    shift = devices.compile(
        lambda batch, n: jax.tree.map(lambda x: x + n, batch), (ROWS, P()), ROWS
    )
    rows = batch._replace(attention_mask=1 * batch.attention_mask, mask=1 * batch.mask)
    back = devices.fetch(shift(devices.put_batch(rows), 0))
    jax.tree.map(np.testing.assert_array_equal, back, rows)
    assert isinstance(back.tokens, np.ndarray)
    assert devices.name == name and devices.count == (1 if name == "device" else 8)


def test_rows_lie_on_all_devices():
    for devices in (parallel.on_mesh(), parallel.on_pmap()):
        shift = devices.compile(lambda x: x + 1, (ROWS,), ROWS)
        x = shift(devices.put_batch(np.zeros((B, 3), np.float32)))
        assert {s.device for s in x.addressable_shards} == set(jax.devices())
        assert all(s.data.size == B * 3 // 8 for s in x.addressable_shards)


def test_a_mesh_may_be_a_part_of_the_devices():
    devices = parallel.on_mesh(data=2)
    x = devices.put_batch(np.zeros((B, 3), np.float32))
    assert devices.count == 2 and {s.device for s in x.addressable_shards} == set(jax.devices()[:2])


def test_choose():
    assert parallel.choose("auto", {}).name == "mesh"  # there are eight devices
    assert parallel.choose("device", {"ppo.batch": 3}).name == "device"
    assert parallel.choose("pmap", {"ppo.batch": 16}).name == "pmap"
    assert parallel.choose("mesh", {"a": 8, "b": 64}).name == "mesh"


def test_choose_refuses_with_the_setting_and_the_remedy():
    with pytest.raises(
        ValueError, match='devices = "gpu" is no device layout: use auto, device, pmap or'
    ):
        parallel.choose("gpu", {})
    for name in ("mesh", "pmap", "auto"):
        with pytest.raises(ValueError, match=r"b = 20 does not divide over 8 devices: use 16"):
            parallel.choose(name, {"a": 8, "b": 20})
    with pytest.raises(ValueError, match=r"b = 3 does not divide over 8 devices: use 8"):
        parallel.choose("mesh", {"b": 3})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mesh", (8, 1, 1)),
        ("mesh:data=-1", (8, 1, 1)),
        ("mesh:fsdp=8", (1, 8, 1)),
        ("mesh:fsdp=-1,tensor=2", (1, 4, 2)),
        ("mesh:tensor=2,data=2,fsdp=2", (2, 2, 2)),
        ("mesh:tensor=4", (2, 1, 4)),
    ],
)
def test_a_mesh_is_written_by_its_axes(name, sizes):
    assert tuple(parallel.choose(name, {}).sizes.values()) == sizes
    assert parallel.choose(name, {}).count == sizes[0] * sizes[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mesh:data=3", "does not divide 8 devices: use mesh:data=8,fsdp=1,tensor=1"),
        ("mesh:data=2,fsdp=2,tensor=3", "use mesh:data=2,fsdp=2,tensor=2"),
        ("mesh:fsdp=16", "use mesh:data=1,fsdp=8,tensor=1"),
        ("mesh:model=2", "is no mesh: write it as"),
        ("mesh:data", "is no mesh"),
        ("mesh:data=0", "is no mesh"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does(name, words):
    with pytest.raises(ValueError, match=words):
        parallel.choose(name, {})


def test_a_dimension_that_an_axis_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match=r"tensor = 4 does not divide model.heads = 6: use tensor=3"
    ):
        parallel.choose("mesh:tensor=4", {}, {"model.heads": (6, "tensor")})
