import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlhf_jax.models import blockwise, decoding, networks, sight, transformer
from rlhf_jax.models.attention import rotary_speeds, rotate
from rlhf_jax.models.config import ModelConfig, RopeScaling

TINY = ModelConfig(vocab_size=23, context=32, layers=2, d_model=16, heads=4)
KINDS = {
    "gpt2": TINY,
    "llama": dataclasses.replace(
        TINY,
        positions="rotary",
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=False,
        kv_heads=2,
        d_mlp=24,
        rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 8),
    ),
    "neox": dataclasses.replace(
        TINY,
        positions="rotary",
        parallel_residual=True,
        tied=False,
        rope_theta=50.0,  # the second pair is stretched to a part
        rope_scaling=RopeScaling("yarn", 4.0, 0.1, 1.2, 8, attention_factor=0.8, truncate=False),
    ),
    "wide heads": dataclasses.replace(TINY, heads=3, head_dim=6, kv_heads=1, d_model=16),
    "gemma": dataclasses.replace(
        TINY,
        positions="rotary",
        norm="rmsnorm",
        activation="geglu",
        bias=False,
        kv_heads=2,
        norm_offset=1.0,
        norm_place="both",
        qk_norm="head",
        attention_scale=0.6,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embedding_scale=4.0,
        window=3,
        local_layers=(1,),
        rope_theta_local=50.0,
        rope_theta=40.0,
        rope_scaling=RopeScaling("yarn", 4.0, 0.1, 1.2, 8),
    ),
    "olmo": dataclasses.replace(
        TINY,
        positions="rotary",
        rotary_share=0.5,
        norm="rmsnorm",
        activation="gelu_exact",
        bias=False,
        qkv_bias=True,
        kv_heads=2,
        norm_place="after",
        qk_norm="all",
        window=4,  # of all layers
        rope_theta_local=50.0,
        rope_scaling=RopeScaling("linear", 3.0),  # of none
    ),
}


LM = networks.language_model(TINY)
PARAMS = jax.jit(LM.init)(jax.random.key(0))


def inputs(B=4, L=9):
    tokens = jax.random.randint(jax.random.key(1), (B, L), 0, 23)
    mask = jnp.arange(L)[None] >= jnp.arange(B)[:, None]  # row b has b columns of left padding
    return tokens, mask


@partial(jax.jit, static_argnums=0)
def logits_of(cfg, params, tokens, mask):
    return transformer.Transformer(cfg).apply({"params": params}, tokens, mask)


def slow_twin(cfg, params, tokens):
    """One row, no padding, no scan, every sum written out in NumPy float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    H, K = cfg.heads, cfg.kv_heads or cfg.heads
    h = cfg.head_dim or cfg.d_model // H
    L = len(tokens)

    def norm(x, w):
        if cfg.norm == "rmsnorm":
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps)
            return x * (w["scale"] + cfg.norm_offset)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + cfg.norm_eps)
        return x * w["scale"] + w.get("bias", 0)

    lin = lambda x, w: x @ w["kernel"] + w.get("bias", 0)
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def speed_of(j, n, local):  # of pair j of n coordinates
        if local and cfg.rope_theta_local:
            return cfg.rope_theta_local ** (-2 * j / n)
        speed, s = cfg.rope_theta ** (-2 * j / n), cfg.rope_scaling
        if s.kind == "linear":
            return speed / s.factor
        if s.kind == "llama3":
            wavelength = 2 * np.pi / speed
            if wavelength < s.original_context / s.high:
                return speed
            if wavelength > s.original_context / s.low:
                return speed / s.factor
            ramp = (s.original_context / wavelength - s.low) / (s.high - s.low)
            return (1 - ramp) * speed / s.factor + ramp * speed
        if s.kind == "yarn":
            turns = lambda t: np.log(s.original_context / (2 * np.pi * t)) / np.log(cfg.rope_theta)
            first, last = (n / 2 * turns(t) for t in (s.high, s.low))
            if s.truncate:
                first, last = np.floor(first), np.ceil(last)
            first, last = max(first, 0), min(last, n - 1)
            ramp = np.clip((j - first) / (last - first), 0, 1)
            return (1 - ramp) * speed + ramp * speed / s.factor
        return speed

    def turn(x, local):  # [L, n, h], each pair as a complex number
        if cfg.positions != "rotary":
            return x
        n = int(h * cfg.rotary_share)
        z = x[..., : n // 2] + 1j * x[..., n // 2 : n]
        speed = np.array([speed_of(j, n, local) for j in range(n // 2)])
        z = z * np.exp(1j * np.arange(L)[:, None, None] * speed)
        s = cfg.rope_scaling
        if s.kind == "yarn" and not (local and cfg.rope_theta_local):
            z = z * (s.attention_factor or 0.1 * np.log(s.factor) + 1)
        return np.concatenate([z.real, z.imag, x[..., n:]], -1)

    cap = lambda x, c: c * np.tanh(x / c) if c else x
    before = lambda x, w, name: x if cfg.norm_place == "after" else norm(x, w[name])
    after = lambda x, w, name: x if cfg.norm_place == "before" else norm(x, w[name])
    x = p["embedding"]["embedding"][tokens] * cfg.embedding_scale
    if cfg.positions == "learned":
        x = x + p["position_embedding"]["embedding"][:L]
    for i in range(cfg.layers):
        w = jax.tree.map(lambda a: a[i], p["blocks"])  # noqa: B023
        y = before(x, w, "attention_norm")
        q, k, v = (lin(y, w[n]) for n in ("query", "key", "value"))
        if cfg.qk_norm == "all":
            q, k = norm(q, w["query_norm"]), norm(k, w["key_norm"])
        q, k, v = (z.reshape(L, -1, h) for z in (q, k, v))
        if cfg.qk_norm == "head":
            q, k = norm(q, w["query_norm"]), norm(k, w["key_norm"])
        local = bool(cfg.window) and (not cfg.local_layers or i in cfg.local_layers)
        q, k = turn(q, local), turn(k, local)
        out = np.zeros((L, H, h))
        for a in range(H):
            for t in range(L):
                first = max(0, t + 1 - cfg.window) if local else 0
                s = np.array([q[t, a] @ k[u, a // (H // K)] for u in range(first, t + 1)])
                s = cap(s * (cfg.attention_scale or 1 / np.sqrt(h)), cfg.attention_softcap)
                s = np.exp(s - s.max())
                out[t, a] = (s / s.sum()) @ v[first : t + 1, a // (H // K)]
        attended = after(lin(out.reshape(L, -1), w["attention_out"]), w, "attention_after_norm")
        if not cfg.parallel_residual:
            x = x + attended
        y = before(x, w, "mlp_norm")
        up = lin(y, w["up"])
        if cfg.activation == "swiglu":
            gate = lin(y, w["gate"])
            up = gate / (1 + np.exp(-gate)) * up
        elif cfg.activation == "geglu":
            up = gelu(lin(y, w["gate"])) * up
        elif cfg.activation == "gelu_exact":
            up = up * scipy.stats.norm.cdf(up)
        else:
            up = gelu(up)
        y = after(lin(up, w["down"]), w, "mlp_after_norm")
        x = x + y + (attended if cfg.parallel_residual else 0)
    x = norm(x, p["final_norm"])
    x = x @ (p["embedding"]["embedding"].T if cfg.tied else p["unembedding"]["kernel"])
    return cap(x, cfg.logit_softcap)


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def kind(request):
    cfg = KINDS[request.param]
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(0))
    # initial values make a model that hardly attends: larger ones make every part count
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    return cfg, params


def test_logits_equal_a_slow_twin(kind):
    cfg, params = kind
    tokens, _ = inputs()
    got = logits_of(cfg, params, tokens, jnp.ones_like(tokens, bool))
    for b in range(2):
        want = slow_twin(cfg, params, np.asarray(tokens[b]))
        np.testing.assert_allclose(got[b], want, atol=2e-4)


def test_left_padding_and_what_stands_on_it_change_nothing(kind):
    cfg, params = kind
    tokens, mask = inputs()
    got = logits_of(cfg, params, tokens, mask)
    noise = jnp.where(mask, tokens, 22 - tokens)
    np.testing.assert_array_equal(logits_of(cfg, params, noise, mask), got)
    alone = logits_of(cfg, params, tokens[3:, 3:], jnp.ones((1, 6), bool))
    np.testing.assert_allclose(got[3, 3:], alone[0], atol=1e-5)


# Padding before, between, inside and after segments, in numbers of any order, and two that alternate
SEGMENTS = np.array(
    [
        [0, 1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 3, 3, 0],
        [9, 9, 9, 2, 2, 0, 2, 2, 2, 2, 7, 0, 0, 0],
        [0, 0, 4, 4, 1, 4, 1, 1, 0, 4, 4, 1, 1, 1],
    ]
)


# (row, its columns from the first token to the last, which of them are the segment's)
EACH = [
    (row, slice(columns[0], columns[-1] + 1), numbers[columns[0] : columns[-1] + 1] == number)
    for row, numbers in enumerate(SEGMENTS)
    for number in sorted(set(numbers.tolist()) - {0})
    for columns in [np.flatnonzero(numbers == number)]
]


def alone(tokens):
    """(tokens, mask) with a row for each segment, at the left end of as many columns as `tokens` has."""
    rows, mask = np.zeros((len(EACH), tokens.shape[1]), np.int32), np.zeros((len(EACH), 14), bool)
    for n, (row, columns, own) in enumerate(EACH):
        rows[n, : len(own)], mask[n, : len(own)] = tokens[row, columns], own
    return jnp.array(rows), jnp.array(mask)


def test_packed_segments_have_the_logits_of_each_alone(kind):
    cfg, params = kind
    tokens, _ = inputs(*SEGMENTS.shape)
    got = logits_of(cfg, params, tokens, jnp.array(SEGMENTS))
    leaking = logits_of(cfg, params, tokens, jnp.array(SEGMENTS > 0))
    noise = jnp.where(jnp.array(SEGMENTS > 0), tokens, 22 - tokens)
    np.testing.assert_array_equal(logits_of(cfg, params, noise, jnp.array(SEGMENTS)), got)
    for want, (row, columns, own) in zip(logits_of(cfg, params, *alone(tokens)), EACH, strict=True):
        want = want[: len(own)][own]
        np.testing.assert_allclose(got[row, columns][own], want, atol=1e-5)
        if SEGMENTS[row, : columns.start].any() and not cfg.window:
            assert not np.allclose(leaking[row, columns][own], want, atol=1e-2)


def test_one_segment_has_the_digits_of_a_mask_of_true_and_false(kind):
    cfg, params = kind
    tokens, mask = inputs()
    mask = mask.at[:, 5].set(False)
    want = logits_of(cfg, params, tokens, mask)
    got = logits_of(cfg, params, tokens, 3 * mask.astype(jnp.int32))
    np.testing.assert_array_equal(got[mask], want[mask])


def test_packed_segments_have_the_log_probabilities_of_each_alone():
    """Column t is read for token t + 1: the first token of a segment is predicted by no other."""
    tokens, _ = inputs(*SEGMENTS.shape)
    read = jax.jit(partial(LM.policy_fn, last=SEGMENTS.shape[1] - 1))
    packed, leaking = (read(PARAMS, tokens, jnp.array(x)) for x in (SEGMENTS, SEGMENTS > 0))
    each = read(PARAMS, *alone(tokens))
    for n, (row, columns, own) in enumerate(EACH):
        if own.all() and len(own) > 1:
            later = slice(columns.start, columns.stop - 1)
            for got, want, wrong in zip(packed, each, leaking, strict=True):
                want = want[n, : len(own) - 1]
                np.testing.assert_allclose(got[row, later], want, atol=1e-5)
                if SEGMENTS[row, : columns.start].any():
                    assert not np.allclose(wrong[row, later], want, atol=1e-4)


def test_segments_are_refused_where_they_cannot_be_kept_apart():
    moved = dataclasses.replace(TINY)
    object.__setattr__(moved, "attention", "cudnn")  # which is refused in float32
    tokens, mask = inputs()
    numbers = mask.astype(jnp.int32)
    with pytest.raises(ValueError, match=r"segment numbers \(int32\).*cudnn.*True and False"):
        logits_of(moved, PARAMS, tokens, numbers)
    plain = networks.from_logits(lambda p, t, m: logits_of(TINY, p, t, m))
    for lm in (LM, plain):
        with pytest.raises(ValueError, match=r"segment numbers.*one prompt in each row"):
            lm.prefill_fn(PARAMS, tokens, numbers, 1)


def test_a_later_token_changes_no_earlier_logits(kind):
    cfg, params = kind
    tokens, mask = inputs()
    changed = tokens.at[:, 6].set((tokens[:, 6] + 1) % 23)
    a, b = logits_of(cfg, params, tokens, mask), logits_of(cfg, params, changed, mask)
    real = mask[:, :6, None]
    np.testing.assert_array_equal(jnp.where(real, a[:, :6], 0), jnp.where(real, b[:, :6], 0))
    assert not np.allclose(a[:, 6:], b[:, 6:])


def test_cached_decoding_equals_the_uncached_forward_pass(kind):
    cfg, params = kind
    tokens, mask = inputs()
    want = jax.nn.log_softmax(logits_of(cfg, params, tokens, mask))
    decode = jax.jit(partial(decoding.decode, cfg))
    logits, cache = jax.jit(partial(decoding.prefill, cfg, room=4))(
        params, tokens[:, :5], mask[:, :5]
    )
    for t in range(5, 10):
        np.testing.assert_allclose(jax.nn.log_softmax(logits), want[:, t - 1], atol=1e-5)
        if t < 9:
            logits, cache = decode(params, cache, tokens[:, t])


def by_blocks(monkeypatch):
    """From here on, what is compiled attends by blocks of a few columns, whatever the length."""
    monkeypatch.setattr(sight, "LONG", 1)
    monkeypatch.setattr(blockwise, "QUERIES", 4)
    monkeypatch.setattr(blockwise, "KEYS", 5)


def test_logits_by_blocks_are_those_of_a_whole_mask(kind, monkeypatch):
    cfg, params = kind
    tokens, _ = inputs(*SEGMENTS.shape)

    def logits():  # compiled anew
        apply = jax.jit(lambda p, t, m: transformer.Transformer(cfg).apply({"params": p}, t, m))
        return [apply(params, tokens, jnp.array(mask)) for mask in (SEGMENTS, SEGMENTS > 0)]

    want = logits()
    by_blocks(monkeypatch)
    for a, b in zip(logits(), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert not np.array_equal(a, b)  # it is another program


@pytest.mark.parametrize("chunk", [3, 5])  # three chunks, or two that overlap
def test_a_prompt_in_chunks_fills_the_cache_as_at_once(kind, monkeypatch, chunk):
    cfg, params = kind
    tokens, mask = inputs()
    fill = lambda p: jax.jit(partial(decoding.prefill, cfg, room=4))(p, tokens, mask)
    want = fill(params)
    by_blocks(monkeypatch)
    monkeypatch.setattr(decoding, "CHUNK", chunk)
    weights = decoding.ready(cfg, params) if chunk == 3 else params
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), fill(weights), want)


@pytest.mark.parametrize(
    "kind",
    [
        name if name in ("gpt2", "gemma") else pytest.param(name, marks=pytest.mark.more)
        for name in KINDS
    ],
    indirect=True,
)
def test_remat_changes_no_gradient(kind):
    cfg, params = kind
    tokens, mask = inputs()
    loss = lambda p, c: jnp.sum(jnp.sin(logits_of(c, p, tokens, mask)))
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    want = grad(params, cfg)
    got = grad(params, dataclasses.replace(cfg, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.fixture
def by_xla(monkeypatch):
    """XLA computes what cuDNN is asked for, in float32; a list of what it was asked."""
    asked, attention = [], jax.nn.dot_product_attention

    def instead(*args, implementation=None, **settings):
        asked.append(implementation)
        return attention(*args, **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    return asked


@pytest.mark.parametrize(
    "name",
    ["gpt2", *(pytest.param(x, marks=pytest.mark.more) for x in ("llama", "wide heads")), "olmo"],
)
def test_cudnn_is_asked_for_what_the_mask_says(by_xla, name):
    """Rows with padding on either side, moved to the left end and back, in windows too."""
    cfg = KINDS[name]
    moved = dataclasses.replace(cfg)
    object.__setattr__(moved, "attention", "cudnn")  # which is refused in float32
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(0))
    tokens, mask = inputs()
    mask = mask.at[1:, -2:].set(False)

    def both(cfg):
        def loss(p):
            logits = transformer.Transformer(cfg).apply({"params": p}, tokens, mask)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(logits), 0)), logits

        grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
        return logits, grads

    want, got = both(cfg), both(moved)
    assert set(by_xla) == {None, "cudnn"}
    np.testing.assert_allclose(got[0][mask], want[0][mask], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got[1], want[1]
    )


@pytest.mark.parametrize(
    "name", ["gpt2", pytest.param("gemma", marks=pytest.mark.more), "cudnn, olmo"]
)
def test_after_an_empty_prompt_the_learner_sees_what_the_sampler_saw(by_xla, name):
    """Rows of 0, 2 and 4 tokens in 4 columns, then 3 of a response, one of them in the first row only."""
    cfg = KINDS[name.removeprefix("cudnn, ")]
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(0))
    learner = dataclasses.replace(cfg)
    if name.startswith("cudnn"):
        object.__setattr__(learner, "attention", "cudnn")  # which is refused in float32
    tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 23)
    starts, ends = jnp.array([4, 2, 0]), jnp.array([5, 7, 7])
    columns = jnp.arange(7)[None]
    mask = (columns >= starts[:, None]) & (columns < ends[:, None])

    @jax.jit
    def learned(params, tokens):
        read = lambda p: transformer.Transformer(learner).apply({"params": p}, tokens, mask)
        logprobs = lambda p: jnp.where(mask[:, 4:], jnp.max(read(p)[:, 3:-1], axis=-1), 0)
        return logprobs(params), jax.grad(lambda p: jnp.sum(logprobs(p)))(params)

    @jax.jit
    def sampled(params):
        logits, cache = decoding.prefill(cfg, params, tokens[:, :4], mask[:, :4], 3)
        found = [logits]
        for t in (4, 5):
            logits, cache = decoding.decode(cfg, params, cache, tokens[:, t])
            found.append(logits)
        return jnp.where(mask[:, 4:], jnp.max(jnp.stack(found, axis=1), axis=-1), 0)

    got, grads = learned(params, tokens)
    np.testing.assert_allclose(got, sampled(params), atol=1e-5)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))
    other, _ = learned(params, (tokens + 1).at[1:].set(tokens[1:]))  # the empty prompt's row
    np.testing.assert_allclose(other[:, 0], got[:, 0], atol=1e-6)
    np.testing.assert_allclose(other[1:], got[1:], atol=1e-6)


@pytest.mark.more  # for it stands on private functions of JAX
def test_jax_takes_what_cudnn_is_asked_for(monkeypatch):
    """The gradient's program, lowered for a GPU that is not here: flash attention, forward and back."""
    from jax._src.cudnn import fused_attention_stablehlo as flash

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(flash, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(flash, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(flash, "is_cuda_compute_capability_equal", lambda _: False)
    for window in (0, 128):
        cfg = dataclasses.replace(
            KINDS["llama"], d_model=256, dtype="bfloat16", attention="cudnn", window=window,
            context=256,
        )  # fmt: skip
        lm = networks.language_model(cfg)
        params = jax.eval_shape(lm.init, jax.random.key(0))
        grad = jax.jit(jax.grad(lambda p, t, m, lm=lm: jnp.sum(lm.policy_fn(p, t, m, last=3)[0])))
        text = grad.trace(params, *inputs(4, 256)).lower(lowering_platforms=("cuda",)).as_text()
        assert "__cudnn$fmhaSoftmax" in text
        assert "__cudnn$fmhaSoftmaxBackward" in text


def test_the_program_does_not_grow_with_depth():
    def equations(layers):
        cfg = dataclasses.replace(TINY, layers=layers)
        lm = networks.language_model(cfg)
        params = jax.eval_shape(lm.init, jax.random.key(0))
        f = jax.grad(lambda p, t, m: jnp.sum(lm.policy_fn(p, t, m, last=3)[0]))
        return str(jax.make_jaxpr(f)(params, *inputs())).count(" = ")

    assert equations(12) == equations(2)


def test_bfloat16_compute_keeps_float32_parameters_and_log_probabilities():
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    lm = networks.language_model(cfg)
    params = jax.jit(lm.init)(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logprobs, entropy = jax.jit(partial(lm.policy_fn, last=4))(params, *inputs())
    assert logprobs.dtype == entropy.dtype == jnp.float32
    low = networks.language_model(dataclasses.replace(TINY, param_dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(low.init, jax.random.key(0)))} == {
        jnp.dtype("bfloat16")
    }


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_bfloat16_factors_are_not_rounded_to_it(tied):
    cfg = dataclasses.replace(TINY, dtype="bfloat16", tied=tied)
    params = jax.jit(networks.language_model(cfg).init)(jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (5, cfg.d_model), jnp.bfloat16)
    logits = transformer.unembedding(cfg, params)(hidden)
    table = params["embedding"]["embedding"].T if tied else params["unembedding"]["kernel"]
    exact = np.asarray(hidden, np.float64) @ np.asarray(table.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(logits, exact, atol=1e-5)
    assert np.max(np.abs(logits.astype(jnp.bfloat16) - exact)) > 1e-3


def test_rotary_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = lambda x, p: rotate(x, jnp.array([[p]]), rotary_speeds(8, 100.0))
    score = lambda a, b: float(jnp.vdot(at(q, a), at(k, b)))
    np.testing.assert_allclose(score(3, 1), score(13, 11), rtol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_policy_and_values_are_read_where_the_last_tokens_are_predicted():
    lm, params = LM, PARAMS
    tokens, mask = inputs()
    logits = logits_of(TINY, params, tokens, mask) / 0.7
    want = jnp.take_along_axis(jax.nn.log_softmax(logits[:, 4:8]), tokens[:, 5:, None], 2)[..., 0]
    for value in ("separate", "shared"):
        ac = networks.actor_critic(lm.at(0.7), value=value)
        both = ac.init(params)
        both["value"]["head"] += 1.0
        both["value"]["bias"] += 0.5
        logprobs, _, values = jax.jit(partial(ac.fn, last=4))(both, tokens, mask)
        np.testing.assert_allclose(logprobs, want, atol=1e-5)
        bound = networks.at_temperature(networks.actor_critic(lm, value=value).fn, 0.7)
        again, *_ = jax.jit(partial(bound, last=4))(both, tokens, mask)
        np.testing.assert_array_equal(again, logprobs)
        hidden = jax.jit(lm.hidden_fn)(params, tokens, mask)[:, 4:8]
        np.testing.assert_allclose(values, hidden.sum(-1) + 0.5, rtol=1e-4, atol=1e-4)


def test_a_shared_trunk_costs_one_pass_and_two_trees_two():
    def flops(fn, params):
        run = jax.jit(partial(fn, last=4)).lower(params, *inputs()).compile()
        return run.cost_analysis()["flops"]

    policy = flops(LM.policy_fn, PARAMS)
    for value, passes in (("shared", 1), ("separate", 2)):
        ac = networks.actor_critic(LM, value=value)
        both = ac.init(PARAMS)
        np.testing.assert_allclose(flops(ac.fn, both) / policy, passes, atol=0.25)


def test_a_critic_starts_at_zero_or_from_the_reward_model_with_its_head():
    lm, params = LM, PARAMS
    tokens, mask = inputs()
    ac = networks.actor_critic(lm)
    fn = jax.jit(partial(ac.fn, last=4))
    *_, values = fn(ac.init(params), tokens, mask)
    np.testing.assert_array_equal(values, np.zeros((4, 4)))
    rm = networks.reward_model(lm)
    reward_params = rm.init(jax.random.key(3), params) | {"bias": jnp.float32(0.25)}
    *_, values = fn(ac.init(params, reward_params), tokens, mask)
    scores = jax.jit(rm.fn)(reward_params, tokens[:, :-1], mask[:, :-1])
    np.testing.assert_allclose(values[:, -1], scores, rtol=1e-5)  # it reads where the reward would
    with pytest.raises(ValueError, match="shared"):
        networks.actor_critic(lm, value="shared").init(params, reward_params)


def test_the_reward_is_read_at_the_last_real_token_wherever_padding_is():
    lm = networks.language_model(TINY)
    rm = networks.reward_model(lm)
    params = rm.init(jax.random.key(3), jax.jit(lm.init)(jax.random.key(0)))
    tokens, mask = inputs()
    fn = jax.jit(rm.fn)
    want = fn(params, tokens, mask)
    more = lambda x, value: jnp.pad(x, ((0, 0), (2, 5)), constant_values=value)
    np.testing.assert_allclose(fn(params, more(tokens, 7), more(mask, False)), want, atol=1e-5)
    head = jax.random.normal(jax.random.key(3), (4096,)) * 4097**-0.5
    wide = networks.reward_model(lm._replace(d_model=4096)).init(jax.random.key(3), {})["head"]
    np.testing.assert_array_equal(wide, head)


def test_a_model_of_logits_alone_serves_the_same_protocol():
    lm, params = LM, PARAMS
    plain = networks.from_logits(lambda p, t, m: logits_of(TINY, p, t, m))
    tokens, mask = inputs()
    for a, b in zip(
        *(
            jax.jit(partial(m.policy_fn, last=4, temperature=0.9))(params, tokens, mask)
            for m in (plain, lm)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    prefill = lambda m: jax.jit(partial(m.prefill_fn, params, room=3))(tokens[:, :6], mask[:, :6])
    fast, slow = prefill(lm), prefill(plain)
    decode_fast, decode_slow = jax.jit(lm.decode_fn), jax.jit(plain.decode_fn)
    for t in range(6, 9):
        np.testing.assert_allclose(fast[0], slow[0], atol=1e-5)
        fast = decode_fast(params, fast[1], tokens[:, t])
        slow = decode_slow(params, slow[1], tokens[:, t])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(heads=4, kv_heads=3), "kv_heads = 3"),
        (dict(d_model=18, heads=4), "heads = 4 does not divide ModelConfig.d_model = 18"),
        (dict(positions="rotary", head_dim=5), "head_dim = 5 is odd"),
        (dict(positions="rotary", head_dim=8, rotary_share=0.4), "rotary_share = 0.4 .* odd"),
        (
            dict(positions="rotary", head_dim=8, rotary_share=0.1),
            "0.1 rotates no pair .*at least 0.25",
        ),
        (dict(local_layers=(1,)), r"local_layers = \(1,\) .* ModelConfig.window = 0"),
        (dict(window=3, local_layers=(0, 2)), r"local_layers = \(0, 2\) .* layers from 0 to 1"),
        (dict(attention="cudnn"), "dtype = 'float32' .* needs \"bfloat16\""),
        (
            dict(attention="cudnn", dtype="bfloat16", attention_softcap=5.0),
            "attention_softcap = 5.0 .* needs 0",
        ),
        (
            dict(attention="cudnn", dtype="bfloat16", window=3, local_layers=(1,)),
            r"local_layers = \(1,\) .* needs \(\)",
        ),
        (dict(norm_offset=1.0), 'norm_offset = 1.0 .* ModelConfig.norm = "layernorm"'),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**settings)


def test_cudnn_is_refused_where_there_is_no_gpu():
    cfg = dataclasses.replace(TINY, dtype="bfloat16", attention="cudnn")
    with pytest.raises(ValueError, match=r'model.attention = "cudnn".* this is a cpu: use "xla"'):
        networks.language_model(cfg)


def test_a_sequence_beyond_the_context_is_refused():
    lm = networks.language_model(dataclasses.replace(TINY, context=8))
    params = jax.jit(lm.init)(jax.random.key(0))
    with pytest.raises(ValueError, match=r"9 tokens.*model.context = 8"):
        lm.hidden_fn(params, *inputs())
    with pytest.raises(ValueError, match=r"11 tokens.*model.context = 8"):
        lm.prefill_fn(params, *(x[:, :5] for x in inputs()), 6)
