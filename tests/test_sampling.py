import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from rlhf_jax import sampling
from rlhf_jax.batches import Prompts
from rlhf_jax.models import decoding, networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.transformer import Transformer
from rlhf_jax.sampling import SampleConfig

MODEL = ModelConfig(vocab_size=11, context=32, layers=2, d_model=16, heads=2)
LM = networks.language_model(MODEL)
PARAMS = jax.jit(LM.init)(jax.random.key(0))
CFG = SampleConfig(length=7, stop=(1,), pad=0)
KEY = jax.random.key(5)


def prompts(rows=8, width=5, draws=1):
    """Row b has b columns of padding, modulo 6: row 5 is empty."""
    tokens = jax.random.randint(jax.random.key(1), (rows, width), 2, 11)
    mask = jnp.arange(width)[None] >= jnp.arange(rows)[:, None] % 6
    repeat = lambda x: jnp.repeat(x, draws, axis=0)
    return Prompts(
        tokens=repeat(jnp.where(mask, tokens, 0)),
        attention_mask=repeat(mask),
        index=repeat(jnp.arange(rows)),
        draw=jnp.tile(jnp.arange(draws), rows),
    )


@cache
def compiled(lm, cfg):
    return jax.jit(sampling.make_sample(lm, cfg))


def sample(cfg=CFG, batch=None, key=KEY, lm=LM, params=PARAMS):
    return compiled(lm, cfg)(params, batch or prompts(), key)


def responses(samples):
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    return [list(tokens[b, -mask.shape[1] :][mask[b]]) for b in range(len(mask))]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_the_learners_at_the_temperature_sampled_with(temperature):
    got = sample(dataclasses.replace(CFG, temperature=temperature))
    read = jax.jit(partial(LM.policy_fn, last=7), static_argnames="temperature")
    want, _ = read(PARAMS, got.tokens, got.attention_mask, temperature=temperature)
    np.testing.assert_allclose(got.logprobs, jnp.where(got.mask, want, 0), atol=1e-5)
    other, _ = read(PARAMS, got.tokens, got.attention_mask, temperature=0.8)
    assert np.abs(np.where(got.mask, other - want, 0)).max() > 1e-2


def test_responses_end_with_their_first_stop_token_and_pad_follows():
    cfg = dataclasses.replace(CFG, stop=(1, 4))
    got = sample(cfg, prompts(rows=64))
    tokens, mask = np.asarray(got.tokens[:, -7:]), np.asarray(got.mask)
    lengths, ended = set(), []
    for row, real in zip(tokens, mask, strict=True):
        ends = np.flatnonzero(np.isin(row, (1, 4)) & real)
        n = int(ends[0]) + 1 if len(ends) else 7
        np.testing.assert_array_equal(real, np.arange(7) < n)
        assert (row[n:] == 0).all()
        lengths.add(n)
        ended.append(len(ends) > 0)
    assert len(lengths) > 3
    assert 0 < sum(ended) < 64
    np.testing.assert_array_equal(got.ended, ended)
    np.testing.assert_array_equal(np.asarray(got.attention_mask[:, -7:]), mask)
    assert (np.asarray(got.logprobs)[~mask] == 0).all()


def test_a_sample_does_not_depend_on_neighbours_batch_size_or_padding():
    batch = prompts()
    whole = responses(sample(batch=batch))
    few = jax.tree.map(lambda x: x[jnp.array([6, 3])], batch)
    assert responses(sample(batch=few)) == [whole[6], whole[3]]
    wider = batch._replace(
        tokens=jnp.pad(batch.tokens, ((0, 0), (3, 0))),
        attention_mask=jnp.pad(batch.attention_mask, ((0, 0), (3, 0))),
    )
    assert responses(sample(batch=wider)) == whole
    longer = responses(sample(dataclasses.replace(CFG, length=10)))
    assert [r[:7] for r in longer] == whole


def test_two_draws_of_one_prompt_differ_and_one_draw_repeats():
    got = responses(sample(batch=prompts(rows=4, draws=2)))
    assert all(a != b for a, b in zip(got[::2], got[1::2], strict=True))
    assert got[::2] == responses(sample(batch=prompts(rows=4)))
    assert got != responses(sample(batch=prompts(rows=4, draws=2), key=jax.random.key(6)))


@pytest.mark.parametrize("slots", [0, 3])
def test_a_prompt_of_several_rows_is_read_once_and_samples_the_same(slots):
    read = []

    def prefill(params, tokens, *rest):
        read.append(len(tokens))
        return LM.prefill_fn(params, tokens, *rest)

    cfg, each = dataclasses.replace(CFG, slots=slots), prompts(rows=6, draws=4)
    once = each._replace(tokens=each.tokens[::4], attention_mask=each.attention_mask[::4])
    found = sample(cfg, once, lm=LM._replace(prefill_fn=prefill))
    whole = sample(cfg, each)
    for name in ("tokens", "attention_mask", "mask", "ended"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), name)
    np.testing.assert_allclose(found.logprobs, whole.logprobs, atol=1e-5)
    assert set(read) == ({6} if slots == 0 else {3, 1})  # one enters at once, and the form of three


def test_equal_keys_give_equal_bits():
    jax.tree.map(np.testing.assert_array_equal, sample(), sample())


def test_an_uncached_model_samples_the_same_tokens():
    plain = networks.from_logits(lambda p, t, m: Transformer(MODEL).apply({"params": p}, t, m))
    a, b = sample(lm=plain), sample()
    assert responses(a) == responses(b)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


LOCAL = dataclasses.replace(MODEL, window=3, positions="rotary", layers=3, local_layers=(0, 2))


@pytest.mark.parametrize(
    ("model", "slots"),
    [
        (MODEL, 1),
        pytest.param(MODEL, 5, marks=pytest.mark.more),
        (LOCAL, 3),
        pytest.param(LOCAL, 8, marks=pytest.mark.more),
    ],
    ids=["learned positions, 1", "and 5", "rotary, local layers, 3", "and 8"],
)
def test_rows_that_make_room_for_others_sample_what_they_sample_together(slots, model):
    lm, cfg = networks.language_model(model), dataclasses.replace(CFG, stop=(1, 4))
    params, batch = jax.jit(lm.init)(jax.random.key(0)), prompts(rows=13, draws=2)
    together = jax.jit(sampling.make_sample(lm, cfg))(params, batch, KEY)
    cfg = dataclasses.replace(cfg, slots=slots)
    refilled = jax.jit(sampling.make_sample(lm, cfg))(params, batch, KEY)
    assert len({*map(len, responses(together))}) > 3
    for name in ("tokens", "attention_mask", "mask", "ended"):
        np.testing.assert_array_equal(getattr(refilled, name), getattr(together, name), name)
    np.testing.assert_allclose(refilled.logprobs, together.logprobs, atol=1e-5)


@pytest.mark.parametrize(("slots", "chunk"), [(0, 1024), (3, 2)])
def test_a_scan_over_layers_samples_the_same_in_one_cache_of_all(monkeypatch, slots, chunk):
    cfg = dataclasses.replace(CFG, slots=slots)
    lm = networks.language_model(LOCAL)
    params = jax.jit(lm.init)(KEY)
    want = sample(cfg, lm=lm, params=params)
    monkeypatch.setattr(decoding, "CHUNK", chunk)
    lm, caches = networks.language_model(dataclasses.replace(LOCAL, scan_decode=True)), []

    def decode(params, cache, tokens):
        caches.append([x.keys.shape[1] for x in cache.layers])
        return lm.decode_fn(params, cache, tokens)

    got = sample(cfg, lm=lm._replace(decode_fn=decode), params=params)
    for name in ("tokens", "attention_mask", "mask", "ended"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
    assert caches and all(x == [3] for x in caches)


def test_rows_that_make_room_for_others_take_fewer_steps():
    said = []

    def decode_fn(params, cache, tokens):
        jax.debug.callback(lambda: said.append(len(tokens)))
        return LM.decode_fn(params, cache, tokens)

    cfg, batch = dataclasses.replace(CFG, length=20, stop=(1, 2, 3, 4)), prompts(rows=32)
    shouting = LM._replace(decode_fn=decode_fn)
    lengths = np.asarray(sample(cfg, batch).mask).sum(1)
    sample(dataclasses.replace(cfg, slots=8), batch, lm=shouting)
    jax.effects_barrier()
    together = lengths.reshape(4, 8).max(1).sum()
    assert said == sorted(said, reverse=True) and set(said) == {8, 2}  # a quarter goes on alone
    assert lengths.sum() <= sum(said) < 0.7 * 8 * together


@pytest.mark.parametrize("slots", [0, 3])
def test_short_prompts_are_cut_and_sample_the_same_in_one_compiled_program(slots):
    widths = []

    def prefill_fn(params, tokens, mask, room):
        widths.append(tokens.shape[1])
        return LM.prefill_fn(params, tokens, mask, room)

    cut = jax.jit(
        sampling.make_sample(
            LM._replace(prefill_fn=prefill_fn), dataclasses.replace(CFG, buckets=3, slots=slots)
        )
    )
    batch, columns = prompts(width=9), jnp.arange(9)[None]
    for longest in range(1, 10):
        mask = batch.attention_mask & (columns >= 9 - longest)
        short = batch._replace(attention_mask=mask)
        got, want = cut(PARAMS, short, KEY), sample(batch=short)
        for name in ("tokens", "attention_mask", "mask", "ended"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
    assert cut._cache_size() == 1 and set(widths) == {3, 5, 9}


@pytest.mark.parametrize("slots", [0, 3])
def test_long_prompts_in_chunks_sample_the_same(monkeypatch, slots):
    cfg = dataclasses.replace(CFG, slots=slots)
    want = sample(cfg)
    monkeypatch.setattr(
        decoding, "CHUNK", 2
    )  # the last chunk of a prompt of 5 overlaps the one before
    got = jax.jit(sampling.make_sample(LM, cfg))(PARAMS, prompts(), KEY)
    for name in ("tokens", "attention_mask", "mask", "ended"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)


def test_a_short_prompt_takes_the_least_width_that_holds_it():
    ran = []

    def prefill_fn(params, tokens, mask, room):
        jax.debug.callback(lambda: ran.append(tokens.shape[1]))
        return LM.prefill_fn(params, tokens, mask, room)

    lm, batch = LM._replace(prefill_fn=prefill_fn), prompts(rows=1, width=9)
    for longest in (1, 3, 4, 5, 6, 9):
        mask = jnp.arange(9)[None] >= 9 - longest
        sample(dataclasses.replace(CFG, buckets=3), batch._replace(attention_mask=mask), lm=lm)
    jax.effects_barrier()
    assert ran == [3, 3, 5, 5, 9, 9]


def test_a_token_is_that_of_argmax_and_of_categorical():
    x = jax.random.randint(jax.random.key(3), (50, 9), 0, 4).astype(jnp.float32)  # full of ties
    x = x.at[0].set(-jnp.inf).at[1, :8].set(-jnp.inf)
    np.testing.assert_array_equal(jax.jit(sampling.likeliest)(x), jnp.argmax(x, axis=-1))
    keys, t = jax.random.split(KEY, 50), jnp.arange(50)
    drawn, _ = sampling.choose(CFG, keys, x.at[0].set(0), t)
    logprobs = jax.nn.log_softmax(x.at[0].set(0))
    want = jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, t), logprobs)
    np.testing.assert_array_equal(drawn, want)


@pytest.mark.parametrize(
    "cfg",
    [CFG, dataclasses.replace(CFG, temperature=0.5), dataclasses.replace(CFG, top_k=3),
     dataclasses.replace(CFG, top_p=0.6), dataclasses.replace(CFG, min_length=1)],
    ids=["plain", "temperature", "top_k", "top_p", "min_length"],
)  # fmt: skip
def test_frequencies_of_the_first_token_are_those_it_claims(cfg):
    draws = 4000
    one = jax.tree.map(lambda x: jnp.repeat(x[:1], draws, axis=0), prompts())
    got = sample(dataclasses.replace(cfg, length=1), one._replace(draw=jnp.arange(draws)))
    prefill = jax.jit(partial(LM.prefill_fn, room=1))
    logits = np.asarray(prefill(PARAMS, one.tokens[:1], one.attention_mask[:1])[0][0], float)
    p = np.exp(logits / cfg.temperature)
    if cfg.min_length:
        p[1] = 0
    if cfg.top_k:
        p[np.argsort(p)[: -cfg.top_k]] = 0
    if cfg.top_p < 1:
        order = np.argsort(-p)
        before = np.cumsum(p[order] / p.sum()) - p[order] / p.sum()
        p[order[before >= cfg.top_p]] = 0
    p /= p.sum()
    token = np.asarray(got.tokens[:, -1])
    np.testing.assert_allclose(got.logprobs[:, 0], np.log(p[token]), atol=1e-4)
    counts = np.bincount(token, minlength=11)
    assert (counts[p == 0] == 0).all()
    assert chisquare(counts[p > 0], draws * p[p > 0]).pvalue > 1e-3


def test_temperature_zero_takes_the_likeliest():
    got = sample(dataclasses.replace(CFG, temperature=0.0))
    apply = jax.jit(lambda *args: Transformer(MODEL).apply({"params": PARAMS}, *args))
    want = jnp.argmax(apply(got.tokens, got.attention_mask)[:, 4:-1], axis=-1)
    np.testing.assert_array_equal(
        np.where(got.mask, got.tokens[:, -7:], 0), np.where(got.mask, want, 0)
    )


def test_the_loop_stops_when_every_row_has_ended():
    said = []

    def decode_fn(params, cache, tokens):
        jax.debug.callback(lambda: said.append(1))
        return LM.decode_fn(params, cache, tokens)

    shouting = LM._replace(decode_fn=decode_fn)
    got = sample(dataclasses.replace(CFG, length=20, stop=tuple(range(2, 11))), lm=shouting)
    jax.effects_barrier()
    assert len(said) == int(got.mask.sum(1).max()) < 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [(dict(top_k=5), "top_k = 5"), (dict(top_p=0.9), "top_p = 0.9"), (dict(min_length=2), "min_length"),
     (dict(temperature=0.0), "temperature = 0")],
)  # fmt: skip
def test_sampling_that_is_not_the_policys_is_refused_for_training(settings, words):
    with pytest.raises(ValueError, match=words):
        sampling.check_on_policy(dataclasses.replace(CFG, **settings))
    sampling.check_on_policy(CFG)


def test_settings_out_of_range_are_refused_by_name():
    for settings, words in [
        (dict(length=-1), "length = -1"),
        (dict(top_p=0.0), "top_p = 0.0"),
        (dict(length=3, min_length=4), "min_length = 4 is more than SampleConfig.length = 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            SampleConfig(**settings)
    with pytest.raises(ValueError, match=r"sample.length = 0: it must be 1 or more"):
        sampling.make_sample(None, SampleConfig(length=0))  # pyright: ignore[reportArgumentType]
