"""Packed rows against the rows that they were, and first fit against a loop."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from rlhf_jax import train_step
from rlhf_jax.algorithms import sft
from rlhf_jax.batches import Sequences
from rlhf_jax.data.packing import first_fit, pack
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import settings, stages

V, P, T = 11, 5, 7
TINY = ModelConfig(vocab_size=V, context=16, d_model=16, heads=2, positions="rotary")


def ragged(seed: int, n: int, wide: bool = False) -> Sequences:
    """Left-padded prompts and right-padded responses; `wide` also learns some tokens of prompts."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, V, (n, P + T)).astype(np.int32)
    asked = np.arange(P) >= P - rng.integers(1, P + 1, (n, 1))
    said = np.arange(T) < rng.integers(0, T + 1, (n, 1))
    real = np.concatenate([asked, said], axis=1)
    first = np.arange(P + T) == real.argmax(1)[:, None]
    whole = real & ~first & (rng.random((n, P + T)) < 0.7)
    return Sequences(np.where(real, tokens, 0), real, whole[:, 1:] if wide else said)


def one_by_one(sizes, length):
    """First fit decreasing, a sequence at a time: (row of each, sequences of each row in order)."""
    room, rows = [], {}
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        row = next((row for row, left in enumerate(room) if left >= sizes[n]), len(room))
        room += [length] * (row == len(room))
        room[row] -= sizes[n]
        rows.setdefault(row, []).append(n)
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_first_fit_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 40))
    sizes = rng.integers(1, length + 1, int(rng.integers(1, 80)))
    rows, want = first_fit(sizes, length), one_by_one(sizes, length)
    assert rows.tolist() == [next(r for r in want if n in want[r]) for n in range(len(sizes))]
    filled = np.bincount(rows, sizes)
    assert filled.max() <= length
    assert len(filled) == 1 or np.sort(filled)[:2].sum() > length  # no two rows could be one


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_each_sequence_stands_once_and_whole_in_a_packed_row(seed, wide):
    rows = ragged(seed, 1 + 3 * seed, wide)
    length = P + T + seed % 9
    found = pack(rows, length)
    assert found.mask.shape == (len(found.tokens), length - 1)
    learned = np.pad(rows.mask, ((0, 0), (P + T - rows.mask.shape[1], 0)))
    places = one_by_one(rows.attention_mask.sum(1), length)
    assert len(found.tokens) == len(places)
    for row, inside in places.items():
        tokens, numbers, mask = [], [], []
        for number, n in enumerate(inside, 1):
            real = rows.attention_mask[n]
            tokens += rows.tokens[n][real].tolist()
            numbers += [number] * real.sum()
            mask += learned[n][real].tolist()
        end = len(tokens)
        assert found.tokens[row, :end].tolist() == tokens
        assert found.attention_mask[row].tolist() == numbers + [0] * (length - end)
        assert found.mask[row].tolist() == mask[1:] + [False] * (length - end)
    again = pack(rows, length)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_the_first_token_of_a_segment_is_never_learned():
    rows = ragged(0, 9)
    real = rows.attention_mask
    found = pack(rows._replace(mask=real), P + T)  # which would learn it
    starts = np.diff(found.attention_mask, prepend=0, axis=1) != 0
    assert not np.any(found.mask & starts[:, 1:])
    assert found.mask.sum() == real.sum() - len(real)


def test_sequences_that_do_not_fit_and_empty_ones_are_refused():
    rows = ragged(0, 30)
    longest = int(rows.attention_mask.sum(1).max())
    with pytest.raises(ValueError, match=rf"of \d+ to {longest} tokens .* rows of {longest - 1}:"):
        pack(rows, longest - 1)
    empty = rows.attention_mask & (np.arange(30) > 0)[:, None]
    with pytest.raises(ValueError, match="of 0 to"):
        pack(rows._replace(attention_mask=empty), P + T)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_loss_and_gradient_are_those_of_the_rows_that_were_packed(positions):
    cfg = replace(TINY, positions=positions)
    lm, rows = networks.language_model(cfg), ragged(1, 24)
    packed = pack(rows, 16)
    assert len(packed.tokens) <= 16
    params = jax.jit(lm.init)(jax.random.key(0))

    @jax.jit
    def loss_and_gradient(params, batch):
        weights = sft.weights_of(batch) / sft.weights_of(batch).sum()
        loss = lambda params: sft.loss(params, {}, batch, weights, policy_fn=lm.policy_fn)[0]
        return jax.value_and_grad(loss)(params)

    want, expected = loss_and_gradient(params, rows)
    got, found = loss_and_gradient(params, packed)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    jax.tree.map(close, found, expected)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-2

    tx = optax.sgd(1.0)  # and the shipped step weighs them so
    step = jax.jit(sft.make_train_step(lm.policy_fn, tx))
    losses = [
        step(train_step.init_state(params, tx), {}, batch)[1]["sft/loss"]
        for batch in (rows, packed)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)


def test_the_stage_learns_the_same_of_packed_texts(tmp_path, capsys):
    """With all texts in each step, whose order then does not matter."""
    lm, rows, held_out = networks.language_model(TINY), ragged(1, 24), ragged(2, 8)
    columns = P + T
    packed = len(pack(rows, columns).tokens)
    losses = []
    for name, whole in (("packed", packed), ("padded", 24)):
        cfg = stages.SFTConfig(steps=3, eval_every=3, batch_size=whole, pack=name == "packed")
        place = stages.Place(tmp_path / name, parallel.on_device(), 0)
        losses.append(stages.sft(place, cfg, lm, rows, held_out)[1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    said = capsys.readouterr().out
    assert said.count("packed: ") == 1 and f"packed: 24 texts in {packed} rows of {columns}" in said
    assert [x.name for x in tmp_path.glob("*/data/*") if x.is_dir()] == ["packed"]


def test_packing_with_attention_of_cudnn_is_refused_before_a_run_begins():
    sft_cfg = stages.SFTConfig(pack=True)
    cudnn = ModelConfig(attention="cudnn", dtype="bfloat16")
    with pytest.raises(ValueError, match=r'sft.pack does not work with .*"cudnn"'):
        settings.RunConfig(sft=sft_cfg, model=cudnn)
    settings.RunConfig(sft=sft_cfg)
    settings.RunConfig(model=cudnn)
