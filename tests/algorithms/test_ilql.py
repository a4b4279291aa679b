"""ILQL reaches the expectile fixed point of a world of 121 responses, and its decoder the soft optimum."""

from functools import cache, partial
from typing import Any

import enumerable
import jax
import jax.numpy as jnp
import layouts
import numpy as np
import optax
import pytest
from compiling import optimised
from enumerable import BETA, CONTENT, EOS, LENGTH, PAD, PREFIXES, RESPONSES, VOCABULARY
from jax.sharding import PartitionSpec as P
from test_purity import large_constants

from rlhf_jax import bounds, optimizer, sampling
from rlhf_jax.algorithms import ilql
from rlhf_jax.algorithms.ilql import ILQLConfig
from rlhf_jax.batches import LoggedBatch, Prompts, Sequences
from rlhf_jax.models import networks, q_networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ops.advantages import gae, on_last_token
from rlhf_jax.ops.layout import DATA
from rlhf_jax.ops.reduce import normalise

KEY = jax.random.key(0)

# --- the fixed point, by slow dynamic programming in NumPy


def expectile(x, p, tau):
    """Where sum_i p_i |tau - 1(x_i < v)| (x_i - v) is zero, by bisection."""
    low, high = x.min(), x.max()
    for _ in range(100):
        v = (low + high) / 2
        pull = sum(q * (tau if y > v else 1 - tau) * (y - v) for y, q in zip(x, p, strict=True))
        low, high = (v, high) if pull > 0 else (low, v)
    return (low + high) / 2


def child_of(n, a):
    """The prefix that token `a` leads to from prefix n, or None where it ends the response."""
    child = CONTENT * n + 1 + a
    return child if a != EOS and child < PREFIXES else None


def fixed_point(mu, rewards, cfg):
    """Q [40, 4] and V [40]: Q(s, a) = r + gamma V(s'), V(s) the tau-expectile of Q(s, a), a ~ mu(. | s)."""
    q, v = np.zeros((PREFIXES, VOCABULARY)), np.zeros(PREFIXES)
    for n in reversed(range(PREFIXES)):
        for a in range(VOCABULARY):
            child = child_of(n, a)
            q[n, a] = rewards[n, a] + (0 if child is None else cfg.gamma * v[child])
        v[n] = expectile(q[n], mu[n], cfg.tau)
    return q, v


def rewards_of(scores):
    """Rewards after each prefix and token [40, 4]: the score, for the token that ends a response."""
    rewards = np.zeros((PREFIXES, VOCABULARY))
    rewards[:, EOS] = scores[:PREFIXES]
    for n in range(PREFIXES, RESPONSES):
        rewards[divmod(n - 1, CONTENT)] = scores[n]
    return rewards


@cache
def world():
    """(the behaviour policy's logits [40, 4], its probabilities, scores [121]), in float64."""
    logits, scores = (np.asarray(x, np.float64) for x in enumerable.make(0))
    mu = np.exp(logits)
    return logits, mu / mu.sum(axis=1, keepdims=True), scores


def log_of(responses, rewards):
    """`responses` with the rewards [40, 4] of their tokens."""
    nodes = np.asarray(enumerable.nodes(*map(jnp.asarray, responses[:2])))[:, :-1]
    taken = rewards[np.minimum(nodes, PREFIXES - 1), responses.tokens[:, 1:]]
    return LoggedBatch(responses, np.where(responses.mask, taken, 0.0))


def table_q_fn(params, target, tokens, attention_mask, *, last):
    """Tables for networks: params {"q": [2, 40, 4], "value": [40]}."""
    at = lambda table: enumerable.apply(table, tokens, attention_mask)[:, -last - 1 : -1]
    said = tokens[:, -last:]
    take = lambda table: jnp.take_along_axis(at(table), said[..., None], axis=-1)[..., 0]
    logprobs = jnp.stack([jax.nn.log_softmax(at(table)) for table in params["q"]])
    logprobs = jnp.take_along_axis(logprobs, said[None, :, :, None], axis=-1)[..., 0]
    return jax.vmap(take)(params["q"]), jax.vmap(take)(target), logprobs, at(params["value"])


def tables(dtype):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return {"q": draw(2, PREFIXES, VOCABULARY), "value": draw(PREFIXES)}


@optimised()
def learn(cfg, rewards, *, dtype=jnp.float64, steps=12_000):
    """(params, target) after the shipped loss and target update, on all responses as likely as under mu."""
    logits, _, _ = world()
    batch = log_of(enumerable.responses(), rewards)
    weights = enumerable.distribution(logits)[:, None] * batch.responses.mask
    weights = jnp.asarray(weights / weights.sum(), dtype)
    batch = jax.tree.map(jnp.asarray, batch._replace(rewards=batch.rewards.astype(dtype)))
    # exact gradients, of sizes that the rarest prefix sets: hence epsilon, and the long way down
    lr = optax.exponential_decay(0.1, steps, 1e-10 if dtype == jnp.float64 else 1e-7)
    tx = optax.adam(lr, b2=0.99, eps=1e-20)

    @jax.jit
    def run(params, batch, weights):
        slope = jax.grad(partial(ilql.loss, q_fn=table_q_fn, cfg=cfg), has_aux=True)

        def step(carry, _):
            (params, opt_state), target = carry
            grads, _ = slope(params, {"target": target}, batch, weights)
            updates, opt_state = tx.update(grads, opt_state, params)
            params: Any = optax.apply_updates(params, updates)
            return ((params, opt_state), ilql.move_target(target, params["q"], cfg)), None

        start = (params, tx.init(params)), jax.tree.map(jnp.zeros_like, params["q"])
        ((params, _), target), _ = jax.lax.scan(step, start, None, length=steps)
        return params, target

    return run(tables(dtype), batch, weights)


def distance(learned, wanted):
    """The largest error of Q_1, Q_2, their targets and V."""
    params, target = jax.tree.map(np.asarray, learned)
    q, v = wanted
    errors = [params["q"] - q[None], target - q[None], params["value"] - v]
    return max(np.abs(x).max() for x in errors)


def dense():
    """A reward for every token."""
    return np.random.default_rng(2).normal(size=(PREFIXES, VOCABULARY))


def at(tau, **changes):
    """Without the conservative term and, unless told otherwise, with the published target update."""
    return ILQLConfig(**({"gamma": 1.0, "cql_coef": 0.0, "tau": tau} | changes))


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
def test_ilql_reaches_the_expectile_fixed_point(tau):
    _, mu, scores = world()
    rewards, cfg = rewards_of(scores), at(tau)
    with jax.enable_x64(True):
        learned = learn(cfg, rewards)
    assert distance(learned, fixed_point(mu, rewards, cfg)) < 1e-9


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
def test_ilql_reaches_it_in_float32(tau):
    """With a target that moves half way: at 0.005 it stops some 100 units in the last place short."""
    _, mu, scores = world()
    rewards, cfg = rewards_of(scores), at(tau, polyak=0.5)
    learned = learn(cfg, rewards, dtype=jnp.float32, steps=6000)
    assert distance(learned, fixed_point(mu, rewards, cfg)) < 1e-6


def test_ilql_reaches_it_with_a_reward_for_each_token_and_a_discount():
    _, mu, _ = world()
    cfg = at(0.7, gamma=0.9)
    with jax.enable_x64(True):
        learned = learn(cfg, dense())
    assert distance(learned, fixed_point(mu, dense(), cfg)) < 1e-9


def test_at_one_half_v_is_the_mean_score_of_what_the_behaviour_policy_says_next():
    logits, mu, scores = world()
    pi = enumerable.distribution(logits)
    want = enumerable.through(pi * scores) / enumerable.through(pi)
    _, v = fixed_point(mu, rewards_of(scores), at(0.5))
    np.testing.assert_allclose(v, want, atol=1e-12)
    # and as tau goes to 1 it is the best score that can still be reached
    best = np.append(np.full(PREFIXES, -np.inf), scores[PREFIXES:])
    for n in reversed(range(PREFIXES)):
        best[n] = max(scores[n], *best[CONTENT * n + 1 : CONTENT * n + 4])
    with bounds.unchecked():  # nearer to 1 than a float32 can be
        cfg = at(1 - 1e-9)
    _, v = fixed_point(mu, rewards_of(scores), cfg)
    np.testing.assert_allclose(v, best[:PREFIXES], atol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_with_lambda_one_q_is_the_mean_return_of_the_log_whatever_the_expectile(tau):
    _, mu, _ = world()
    cfg = at(tau, gamma=0.9, lam=1.0)
    q, v = fixed_point(mu, dense(), at(0.5, gamma=0.9))
    v = np.array([expectile(q[n], mu[n], tau) for n in range(PREFIXES)])
    with jax.enable_x64(True):
        learned = learn(cfg, dense())
    assert distance(learned, (q, v)) < 1e-9


def bootstrapped(rewards, values, mask, *, gamma, lam):
    """y_t whose last token looks at V once more, as if there were a state behind the end."""
    assert lam == 0
    after = jnp.concatenate([values[:, 1:], values[:, -1:]], axis=1)
    after = jnp.where(jnp.roll(mask, -1, axis=1).at[:, -1].set(False), after, values)
    return None, rewards + gamma * after


WRONG_LINES = {
    "V after the last token": dict(gae=bootstrapped),
    "reward one token early": dict(
        gae=lambda rewards, *x, **kw: gae(jnp.roll(rewards, -1, axis=1), *x, **kw)
    ),
    "reward one token late": dict(
        gae=lambda rewards, *x, **kw: gae(jnp.roll(rewards, 1, axis=1), *x, **kw)
    ),
    "V of the same state": dict(
        gae=lambda rewards, values, mask, *, gamma, lam: (None, rewards + gamma * 0.5 * values)
    ),
    "expectile on the other side": dict(
        expectile_loss=lambda target, values, *, tau, right=ilql.expectile_loss: right(
            values, target, tau=tau
        )
    ),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_one_wrong_line_misses_the_fixed_point(monkeypatch, name):
    _, mu, scores = world()
    rewards, cfg = rewards_of(scores), at(0.9)
    for function, wrong in WRONG_LINES[name].items():
        monkeypatch.setattr(ilql, function, wrong)
    with jax.enable_x64(True):
        learned = learn(cfg, rewards)
    assert distance(learned, fixed_point(mu, rewards, cfg)) > 0.1


@cache
def uniform_log():
    """256 rows in which each token is as likely as any: a response of n tokens stands in 4^(4 - n) rows.

    Their weights are those of `weights_of`, so this log serves the whole of the shipped step.
    """
    responses = enumerable.responses()
    times = VOCABULARY ** (LENGTH - responses.mask.sum(axis=1))
    rows = np.repeat(np.arange(RESPONSES), times)
    assert len(rows) == VOCABULARY**LENGTH
    rewards = rewards_of(world()[2]).astype(np.float32)
    return log_of(Sequences(*(x[rows] for x in responses)), rewards)


@optimised()
def test_the_shipped_step_reaches_the_fixed_point():
    cfg, steps = at(0.9, polyak=0.5), 6000
    tx = optax.adam(optax.exponential_decay(0.1, steps, 1e-7), b2=0.99, eps=1e-20)
    step = ilql.make_train_step(table_q_fn, tx, cfg)

    @jax.jit
    def run(state, batch):
        return jax.lax.scan(lambda state, _: step(state, {}, batch), state, length=steps)

    state, metrics = run(ilql.init_state(tables(jnp.float32), tx), uniform_log())
    q, v = fixed_point(np.full((PREFIXES, VOCABULARY), 0.25), rewards_of(world()[2]), cfg)
    assert distance((state.train.params, state.target), (q, v)) < 1e-6
    assert state.train.step == steps
    last = {name: float(x[-1]) for name, x in metrics.items()}
    assert last["ilql/q_loss"] < 1e-12 and last["train/skipped"] == 0
    parts = last["ilql/q_loss"] + last["ilql/value_loss"]
    np.testing.assert_allclose(last["ilql/loss"], parts, rtol=1e-5)
    assert last["ilql/conservative_loss"] > 1  # measured, though it weighs nothing here


# --- the loss in numbers


def column_q_fn(params, target, tokens, attention_mask, *, last):
    """The numbers themselves for networks: q and logprobs [2, B, T], values [B, T]."""
    assert last == params["value"].shape[1] and tokens.shape == attention_mask.shape
    return params["q"], target, params["logprobs"], params["value"]


def test_the_loss_by_hand():
    """A prompt, two tokens of 3 and its padding; weights 1/2 each; tau 0.8, gamma 0.5, cql_coef 0.1."""
    params = {
        "q": jnp.array([[[1.0, 3.0, 7.0]], [[2.5, 4.0, 7.0]]]),
        "value": jnp.array([[1.0, 2.0, 9.0]]),
        "logprobs": -jnp.array([[[0.5, 1.0, 9.0]], [[1.5, 2.0, 9.0]]]),
    }
    mask = jnp.array([[True, True, False]])
    batch = LoggedBatch(
        Sequences(jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), mask),
        rewards=jnp.array([[0.5, 1.0, 9.0]]),
    )
    target = jnp.array([[[1.5, 3.0, 0.0]], [[3.0, 1.0, 0.0]]])
    cfg = ILQLConfig(gamma=0.5, tau=0.8, cql_coef=0.1)
    loss = jax.value_and_grad(
        partial(ilql.loss, q_fn=column_q_fn, cfg=cfg), argnums=(0, 1), has_aux=True
    )
    (total, metrics), (slope, through) = loss(
        params, {"target": target}, batch, jnp.array([[0.5, 0.5, 0.0]])
    )
    # y = .5 + .5 * 2 = 1.5, and 1: q - y = -.5 and 1, 2 and 3
    q = 0.5 * (0.5 * (0.25 + 1) + 0.5 * (4 + 9))
    # min Q' = 1.5 and 1: u = .5 weighs .8, u = -1 weighs .2
    value = 0.5 * (0.5 * 0.8 * 0.25 + 0.5 * 0.2 * 1)
    conservative = 0.5 * (0.5 + 1.5) + 0.5 * (1 + 2)
    want = dict(q_loss=q, value_loss=value, conservative_loss=conservative, q=1.25, value=1.5)
    want |= dict(loss=q + value + 0.1 * conservative)
    assert metrics.keys() == {f"ilql/{name}" for name in want}
    for name, x in want.items():
        np.testing.assert_allclose(metrics[f"ilql/{name}"], x, rtol=1e-6, err_msg=name)
    assert total == metrics["ilql/loss"]
    # no gradient through y, nor through the target
    np.testing.assert_allclose(slope["q"], 0.5 * np.array([[[-0.5, 2, 0]], [[1, 3, 0]]]), rtol=1e-6)
    np.testing.assert_allclose(slope["value"], [[-0.5 * 0.8 * 0.5, 0.5 * 0.2, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        slope["logprobs"], np.broadcast_to([-0.05, -0.05, 0], (2, 1, 3)), rtol=1e-6
    )
    np.testing.assert_array_equal(through["target"], np.zeros((2, 1, 3)))


def test_the_conservative_term_by_hand():
    """Q of (0, log 2, log 5) says 1/8, 2/8, 5/8; of the second token it is -log 1/4, and of equals log 3."""
    lm = bare(lambda tokens, attention_mask: jnp.ones((*tokens.shape, 1)))
    heads = {
        "head": jnp.log(jnp.array([[[1.0, 2.0, 5.0]], [[1.0, 1.0, 1.0]]])),
        "bias": jnp.array([3.0, -7.0]),  # the level of Q is nothing to it
    }
    params = {"trunk": {}, "q": heads, "value": {"head": jnp.zeros(1), "bias": jnp.zeros(())}}
    tokens = jnp.array([[0, 1]])
    q_fn = q_networks.q_network(lm).q_fn
    batch = LoggedBatch(
        Sequences(tokens, jnp.ones((1, 2), bool), jnp.ones((1, 1), bool)), rewards=jnp.zeros((1, 1))
    )
    cfg = ILQLConfig(cql_coef=0.25)
    loss = jax.value_and_grad(partial(ilql.loss, q_fn=q_fn, cfg=cfg), has_aux=True)
    weights = jnp.ones((1, 1))
    (total, metrics), slope = loss(params, {"target": heads}, batch, weights)
    np.testing.assert_allclose(metrics["ilql/conservative_loss"], np.log(4) + np.log(3), rtol=1e-6)
    np.testing.assert_allclose(
        total,
        metrics["ilql/q_loss"] + metrics["ilql/value_loss"] + 0.25 * np.log(12),
        rtol=1e-6,
    )
    without = partial(ilql.loss, q_fn=q_fn, cfg=ILQLConfig(cql_coef=0.0))
    plain = jax.grad(without, has_aux=True)(params, {"target": heads}, batch, weights)[0]
    np.testing.assert_allclose(
        (slope["q"]["head"] - plain["q"]["head"])[:, 0],
        0.25 * np.array([[1 / 8, 2 / 8 - 1, 5 / 8], [1 / 3, 1 / 3 - 1, 1 / 3]]),
        atol=1e-6,
    )


def test_what_the_environment_says_between_is_no_step():
    """Its columns hold a reward and values that would show; time runs from token to token of the mask."""
    rng = np.random.default_rng(0)
    B, T = 3, 4
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"q": draw(2, B, T), "value": draw(B, T), "logprobs": -np.abs(draw(2, B, T))}
    target, rewards = draw(2, B, T), draw(B, T)
    mask = np.arange(T) < np.array([[4], [2], [0]])
    holes = np.array([1, 3])  # before the second token, and before the fourth

    def insert(x, value=50.0):
        return np.insert(x, holes, value, axis=-1)

    @jax.jit
    def value_and_slope(params, target, rewards, mask):
        shape = (B, 1 + mask.shape[1])
        sequences = Sequences(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), mask)
        batch = LoggedBatch(sequences, rewards)
        loss = partial(ilql.loss, q_fn=column_q_fn, cfg=ILQLConfig(gamma=0.9, lam=0.5, tau=0.8))
        weights = normalise(ilql.weights_of(batch))
        both = jax.value_and_grad(loss, has_aux=True)
        return both(params, {"target": target}, batch, weights)

    want, slope = value_and_slope(params, target, rewards, mask)
    got, slope_with = value_and_slope(
        jax.tree.map(insert, params), insert(target), insert(rewards), insert(mask, False)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, want)
    jax.tree.map(close, slope_with, jax.tree.map(partial(insert, value=0.0), slope))


def test_the_target_moves_by_its_rate_towards_what_was_just_learned():
    cfg = at(0.7, polyak=0.25)
    moved = ilql.move_target({"a": jnp.array([1.0])}, {"a": jnp.array([5.0])}, cfg)
    np.testing.assert_array_equal(moved["a"], [2.0])

    tx = optax.sgd(1.0)
    state = ilql.init_state(tables(jnp.float32), tx)
    np.testing.assert_array_equal(state.target, state.train.params["q"])
    step = jax.jit(ilql.make_train_step(table_q_fn, tx, cfg))
    after, _ = step(state, {}, uniform_log())
    learned = after.train.params["q"]
    assert np.abs(learned - state.target).max() > 1e-2
    np.testing.assert_allclose(after.target, 0.75 * state.target + 0.25 * learned, atol=1e-6)
    # and it is the target, not Q, that V is drawn to
    other, _ = step(state._replace(target=state.target + 1.0), {}, uniform_log())
    np.testing.assert_array_equal(other.train.params["q"], learned)
    assert np.abs(other.train.params["value"] - after.train.params["value"]).max() > 1e-3


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(tau=1.0), "tau = 1.0: it must be above 0 and below 1"),
        (dict(gamma=1.1), "gamma = 1.1: it must be between 0 and 1"),
        (dict(lam=-0.1), "lam = -0.1: it must be between 0 and 1"),
        (dict(polyak=0.0), "polyak = 0.0: it must be above 0 and at most 1"),
        (dict(cql_coef=float("nan")), "cql_coef = nan: it must be a finite number, 0 or more"),
        (dict(beta=-1.0), "beta = -1.0: it must be 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=f"ILQLConfig.{words}"):
        ILQLConfig(**settings)


# --- the decoder


def bare(hidden):
    """A LanguageModel of `hidden(tokens, attention_mask) -> [B, L, D]`, uncached: what q_network reads."""

    def uncached(read):
        return networks.from_logits(lambda _, *x: read(hidden(*x)))

    nothing = networks.from_logits(hidden)
    return networks.LanguageModel(
        init=lambda key: {},
        policy_fn=nothing.policy_fn,
        prefill_fn=lambda *x, read: uncached(read).prefill_fn(*x),
        decode_fn=lambda *x, read: uncached(read).decode_fn(*x),
        hidden_fn=lambda params, *x: hidden(*x),
        read_fn=lambda: None,
        d_model=0,
        logits_fn=nothing.logits_fn,
    )


TABLE = networks.from_logits(enumerable.apply)
# One hidden unit a prefix: heads on it are tables
TABLE_Q = q_networks.q_network(bare(lambda *x: enumerable.apply(jnp.eye(PREFIXES), *x)))


def soft_heads(seed):
    """Q and V by soft dynamic programming, as the q network's parameters; the second Q lies above."""
    w = enumerable.make(seed)
    v = enumerable.soft_values(w)
    q = rewards_of(np.asarray(w.scores, np.float64))
    for n in range(PREFIXES):
        for a in range(VOCABULARY):
            child = child_of(n, a)
            q[n, a] += 0 if child is None else v[child]
    above = q + np.random.default_rng(seed).exponential(size=q.shape)
    heads = {"head": jnp.float32(np.stack([q, above])), "bias": jnp.zeros(2)}
    return w, {
        "trunk": {},
        "q": heads,
        "value": {"head": jnp.float32(v), "bias": jnp.float32(0.0)},
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_guided_by_the_soft_optimal_q_the_reference_is_the_optimum(seed):
    """Their 1 / beta is the decoder's beta. It is normalised as it stands, for V is right too."""
    w, q_params = soft_heads(seed)
    pi_star, _ = enumerable.optimum(w)
    policy = q_networks.guided(TABLE, TABLE_Q)
    responses = jax.tree.map(jnp.asarray, enumerable.responses())

    def probabilities(beta):
        params = {"policy": w.ref_logits, "q": q_params, "beta": jnp.float32(beta)}
        logprobs, _ = policy.policy_fn(params, *responses[:2], last=LENGTH)
        return params, jnp.exp(jnp.sum(jnp.where(responses.mask, logprobs, 0.0), axis=1))

    params, pi = probabilities(1 / BETA)
    np.testing.assert_allclose(pi, pi_star, atol=1e-5)
    logits = policy.logits_fn(params, *responses[:2], last=LENGTH)
    np.testing.assert_allclose(jax.nn.logsumexp(logits, axis=-1)[responses.mask], 0.0, atol=1e-5)
    assert enumerable.total_variation(probabilities(BETA)[1], pi_star) > 0.1
    np.testing.assert_allclose(
        probabilities(0.0)[1], enumerable.distribution(w.ref_logits), atol=1e-6
    )


def test_what_the_sampler_draws_from_it_has_the_probabilities_of_the_optimum():
    w, q_params = soft_heads(0)
    policy = q_networks.guided(TABLE, TABLE_Q)
    cfg = sampling.SampleConfig(length=LENGTH, stop=(EOS,), pad=PAD)
    params = {"policy": w.ref_logits, "q": q_params, "beta": jnp.float32(1 / BETA)}
    samples = jax.jit(sampling.make_sample(policy, cfg))(params, enumerable.prompts(256), KEY)
    said = np.asarray(enumerable.response_of(samples))
    assert len(set(said)) > 10
    pi_star, _ = enumerable.optimum(w)
    np.testing.assert_allclose(jnp.sum(samples.logprobs, axis=1), np.log(pi_star[said]), atol=1e-4)


# --- on a transformer

B, WIDTH, T, V = 16, 4, 6, 20  # rows, prompt columns, response columns, vocabulary
MODEL = ModelConfig(vocab_size=V, context=WIDTH + T + 6, layers=1, d_model=16, heads=2, tied=False)
LM = networks.language_model(MODEL)
Q = q_networks.q_network(LM)
TX = optimizer.make(optimizer.OptimizerConfig(lr=1e-2), steps=10)
CFG = ILQLConfig(cql_coef=0.1, polyak=0.1)


@pytest.fixture(scope="module")
def params():
    """The behaviour policy and a Q network of another trunk, all of it large enough to show."""

    @jax.jit
    def init(key):
        policy = LM.init(key)
        q = Q.init(key, LM.init(jax.random.key(1)))
        noise = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape)
        return {"policy": policy, "q": jax.tree.map(noise, q), "beta": jnp.float32(1.5)}

    return jax.device_get(init(KEY))


def logged(seed):
    """Uneven: the first rows say nothing, the last say most, so devices hold unlike numbers of tokens."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < (np.arange(B) * (T + 1) // B)[:, None]
    prompt = np.arange(WIDTH) >= rng.integers(0, WIDTH, (B, 1))
    responses = Sequences(
        tokens=rng.integers(0, V, (B, WIDTH + T), np.int32),
        attention_mask=np.concatenate([prompt, mask], axis=1),
        mask=mask,
    )
    scores = jnp.asarray(rng.normal(size=B), jnp.float32)
    return LoggedBatch(responses, np.asarray(on_last_token(scores, jnp.asarray(mask))))


def test_q_and_v_are_read_where_the_last_tokens_are_predicted(params):
    q_params, batch = params["q"], logged(0)
    tokens, attention_mask, _ = batch.responses
    target = jax.tree.map(lambda x: -2.0 * x, q_params["q"])
    got = jax.jit(partial(Q.q_fn, last=T))(q_params, target, tokens, attention_mask)
    hidden = jax.jit(LM.hidden_fn)(q_params["trunk"], tokens, attention_mask)
    hidden = np.asarray(hidden, np.float64)
    hidden, said = hidden[:, WIDTH - 1 : -1], tokens[:, WIDTH:]
    both = np.einsum("btd,kdv->kbtv", hidden, q_params["q"]["head"])
    both += q_params["q"]["bias"][:, None, None, None]
    take = lambda x: np.take_along_axis(x, said[None, ..., None], -1)[..., 0]
    values = hidden @ q_params["value"]["head"] + q_params["value"]["bias"]
    softmax = np.exp(both) / np.exp(both).sum(axis=-1, keepdims=True)
    want = take(both), -2 * take(both), np.log(take(softmax)), values
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), got, want)
    advantages = jax.jit(partial(Q.logits_fn, last=T))(q_params, tokens, attention_mask)
    np.testing.assert_allclose(advantages, both.min(axis=0) - values[..., None], atol=1e-4)


def test_v_starts_at_zero_and_the_heads_near_it_unlike_each_other():
    trunk = jax.jit(LM.init)(KEY)
    start = Q.init(jax.random.key(3), trunk)
    assert start["trunk"].keys() == trunk.keys() - {"unembedding"}
    assert start["trunk"]["embedding"]["embedding"] is trunk["embedding"]["embedding"]
    run = jax.jit(partial(Q.q_fn, last=T))
    q, *_, values = run(start, start["q"], *logged(0).responses[:2])
    np.testing.assert_array_equal(values, np.zeros((B, T)))
    assert 0.05 < jnp.std(q) < 0.2
    assert jnp.std(q[0] - q[1]) > jnp.std(q[0])
    assert q_networks.q_network(LM, heads=3).init(KEY, trunk)["q"]["head"].shape == (3, 16, V)


GUIDED = q_networks.guided(LM, Q)


def prompts():
    s, rows = logged(0).responses, np.arange(B, dtype=np.int32)
    return Prompts(s.tokens[:, :WIDTH], s.attention_mask[:, :WIDTH], index=rows, draw=0 * rows)


def test_cached_guided_decoding_equals_the_uncached_forward_pass(params):
    tokens, attention_mask, _ = logged(0).responses
    attention_mask = attention_mask.copy()
    attention_mask[:, WIDTH:] = True
    whole = lambda fn, params: jax.jit(partial(fn, last=T))(params, tokens, attention_mask)
    want = whole(GUIDED.logits_fn, params)
    prefill = jax.jit(GUIDED.prefill_fn, static_argnums=3)
    logits, cache = prefill(params, tokens[:, :WIDTH], attention_mask[:, :WIDTH], T)
    decode = jax.jit(GUIDED.decode_fn)
    for t in range(T):
        np.testing.assert_allclose(logits, want[:, t], atol=3e-5)
        logits, cache = decode(params, cache, tokens[:, WIDTH + t])
    behaviour = jax.nn.log_softmax(whole(LM.logits_fn, params["policy"]))
    advantages = whole(Q.logits_fn, params["q"])
    np.testing.assert_allclose(want, behaviour + 1.5 * advantages, atol=1e-5)
    assert jnp.std(advantages) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampler_takes_the_guided_policy_as_any_other(params, temperature):
    cfg = sampling.SampleConfig(length=T, stop=(1, 2, 3), temperature=temperature)
    compiled = jax.jit(sampling.make_sample(GUIDED, cfg))
    sample = lambda params: compiled(params, prompts(), KEY)
    got = sample(params)
    uncached = jax.jit(partial(GUIDED.policy_fn, last=T, temperature=temperature))
    logprobs, entropy = uncached(params, got.tokens, got.attention_mask)
    np.testing.assert_allclose(got.logprobs, jnp.where(got.mask, logprobs, 0.0), atol=3e-5)
    assert entropy.shape == (B, T)
    # with beta 0 it is the behaviour policy
    plain = jax.jit(sampling.make_sample(LM, cfg))(params["policy"], prompts(), KEY)
    np.testing.assert_array_equal(sample(params | {"beta": jnp.float32(0.0)}).tokens, plain.tokens)
    assert (np.asarray(plain.tokens) != got.tokens).any()


def test_the_decoder_reads_the_target_and_the_frozen_behaviour_policy(params):
    state = ilql.init_state(params["q"], TX)
    state = state._replace(target=jax.tree.map(lambda x: x + 1.0, state.target))
    got = ilql.guided_params(params["policy"], state, ILQLConfig(beta=3.0))
    assert got["beta"] == 3.0 and got["policy"] is params["policy"]
    assert got["q"]["q"] is state.target
    assert got["q"]["value"] is state.train.params["value"]


def mean_loss(params, batch, cfg=CFG):
    weights = normalise(ilql.weights_of(batch))
    target = {"target": jax.tree.map(lambda x: 0.5 * x, params["q"])}
    return ilql.loss(params, target, batch, weights, q_fn=Q.q_fn, cfg=cfg)


def test_padding_changes_neither_loss_nor_gradient(params):
    batch = logged(0)

    def wider(x, value):
        left = 2 if x.shape[1] > T else 0  # prompts grow to the left, responses to the right
        return np.pad(x, ((0, 0), (left, 3)), constant_values=value)

    tokens, attention_mask, mask = batch.responses
    other = LoggedBatch(
        Sequences(wider(tokens, 7), wider(attention_mask, False), wider(mask, False)),
        rewards=wider(batch.rewards, 5.0),
    )
    both = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5),
        both(params["q"], other),
        both(params["q"], batch),
    )


@optimised()
def test_a_transformer_taught_and_decoded_by_the_shipped_stages_says_what_the_fixed_point_says():
    """Behaviour uniform over tokens; the decoder of the exact Q and V is .49 away from that."""
    lm = networks.language_model(
        ModelConfig(vocab_size=VOCABULARY, context=1 + LENGTH, layers=1, d_model=32, tied=False)
    )
    q_net, steps = q_networks.q_network(lm), 400
    cfg = at(0.7, polyak=0.05, beta=2.0)
    tx = optimizer.make(optimizer.OptimizerConfig(lr=1e-2), steps=steps)
    step = ilql.make_train_step(q_net.q_fn, tx, cfg)
    policy = q_networks.guided(TABLE, q_net)
    uniform = jnp.zeros((PREFIXES, VOCABULARY))

    @jax.jit
    def run(batch, responses):
        state = ilql.init_state(q_net.init(KEY, lm.init(KEY)), tx)
        state, _ = jax.lax.scan(lambda state, _: step(state, {}, batch), state, length=steps)
        params = ilql.guided_params(uniform, state, cfg)
        logprobs, _ = policy.policy_fn(params, *responses[:2], last=LENGTH)
        return jnp.exp(jnp.sum(jnp.where(responses.mask, logprobs, 0.0), axis=1))

    pi = np.asarray(run(uniform_log(), enumerable.responses()))
    scores = world()[2]
    q, v = fixed_point(np.full((PREFIXES, VOCABULARY), 0.25), rewards_of(scores), cfg)
    want = enumerable.distribution(cfg.beta * (q - v[:, None]))
    assert enumerable.total_variation(pi, want) < 0.03
    assert pi @ scores > 1.2 > 0.2 > enumerable.distribution(uniform) @ scores


# --- one device and several


@layouts.marked
def test_a_step_does_not_depend_on_the_layout(params, names):
    """And on microbatches no more: several devices take two, one device takes one."""
    rows = P(DATA)

    def run(devices):
        step = ilql.make_train_step(
            Q.q_fn,
            TX,
            CFG,
            microbatches=1 if devices.count == 1 else 2,
            axis_name=devices.axis_name,
        )
        step = devices.compile(step, (P(), P(), rows), (P(), P()), donate=(0,))
        state = devices.put(jax.device_get(ilql.init_state(params["q"], TX)))
        for seed in range(2):
            state, metrics = step(state, {}, devices.put_batch(logged(seed)))
        return jax.device_get((state, metrics))

    state, metrics = layouts.compare(run, names, atol=3e-5)
    assert metrics["train/skipped"] == 0 and state.train.step == 2
    change = partial(jax.tree.map, lambda a, b: float(np.abs(a - b).max()))
    moved = change(state.train.params, params["q"])
    for part in ("q", "value", "trunk"):
        assert max(jax.tree.leaves(moved[part])) > 1e-3
    assert min(jax.tree.leaves(change(state.target, params["q"]["q"]))) > 1e-4


@pytest.mark.parametrize("microbatches", [pytest.param(2, marks=pytest.mark.more), 4])
def test_microbatches_change_nothing(params, microbatches):
    def run(n):
        step = jax.jit(ilql.make_train_step(Q.q_fn, TX, CFG, microbatches=n))
        return step(ilql.init_state(params["q"], TX), {}, logged(0))

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=3e-5), run(microbatches), run(1)
    )


def test_step_and_decoder_close_over_no_array(params):
    step = ilql.make_train_step(Q.q_fn, TX, CFG, microbatches=2)
    state = ilql.init_state(params["q"], TX)
    sample = sampling.make_sample(GUIDED, sampling.SampleConfig(length=T, stop=(1,)))
    for fn, args in [
        (step, (state, {}, logged(0))),
        (sample, (params, prompts(), KEY)),
        (partial(ilql.guided_params, cfg=CFG), (params["policy"], state)),
    ]:
        assert large_constants(fn, *args) == []
        assert large_constants(jax.jit(fn), *args) == []
