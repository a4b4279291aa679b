"""PPO: what it prepares, what it differentiates, and which rows each of its steps sees."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.batches import PPOBatch, PPORollout, Prompts, Samples
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

B, T, V = 8, 6, 12
KEY = jax.random.key(0)
KL_COEF = np.float32(0.3)


def noise(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def ragged_rollout(seed=0):
    """Holes in the mask, one row that said nothing, and garbage wherever nothing was said."""
    rng = np.random.default_rng(seed)
    mask = rng.random((B, T)) < 0.6
    mask[1], mask[2] = False, True
    samples = Samples(
        tokens=rng.integers(0, V, (B, 2 + T), np.int32),
        attention_mask=np.ones((B, 2 + T), bool),
        mask=mask,
        logprobs=noise(rng, B, T) - 2,
        ended=np.ones(B, bool),
    )
    own = samples.logprobs + 0.3 * noise(np.random.default_rng(seed + 1), B, T)
    return PPORollout(
        samples,
        rewards=np.where(mask, noise(rng, B, T), 0),
        logprobs=own,
        ref_logprobs=noise(rng, B, T) - 2,
        values=noise(rng, B, T),
    )


def prepared(rollout, cfg):
    return jax.jit(partial(ppo.prepare, cfg=cfg))(rollout, KL_COEF)


def table_fn(params, *inputs, last):
    """An actor-critic whose log-probabilities and values are its parameters, [B, T] each."""
    return params["logprobs"], jnp.zeros_like(params["logprobs"]), params["values"]


def loss_of(params, batch, cfg, frozen=None):
    weights = batch.samples.mask / jnp.maximum(jnp.sum(batch.samples.mask), 1)
    return ppo.loss(
        params,
        frozen or {},
        batch,
        jnp.asarray(weights, jnp.float32),
        actor_critic_fn=table_fn,
        cfg=cfg,
    )


# --- prepare


def slow_prepare(rollout, cfg):
    """(advantages, returns, metrics) by loops in float64 that visit the said tokens alone."""
    s, mask = rollout.samples, rollout.samples.mask
    said = [tuple(where) for where in np.argwhere(mask)]
    d = {w: float(rollout.logprobs[w]) - float(rollout.ref_logprobs[w]) for w in said}
    k3 = {w: np.exp(-d[w]) - 1 + d[w] for w in said}
    kinds = {"k1": d, "k2": {w: x * x / 2 for w, x in d.items()}, "k3": k3}
    kinds["none"] = dict.fromkeys(said, 0.0)
    reward = {w: rollout.rewards[w] - KL_COEF * kinds[cfg.kl_in_reward][w] for w in said}
    unwhitened = dict(reward)

    def whiten(x, keep_mean):
        mean = sum(x.values()) / len(x)
        variance = sum((v - mean) ** 2 for v in x.values()) / len(x)  # biased
        return {w: (v - mean) / np.sqrt(variance + 1e-8) + keep_mean * mean for w, v in x.items()}

    if cfg.whiten_rewards:
        reward = whiten(reward, True)
    advantage, returns = {}, {}
    for b in range(B):
        next_value = next_advantage = 0.0
        for t in reversed(np.flatnonzero(mask[b])):
            w, value = (b, t), float(rollout.values[b, t])
            delta = reward[w] + cfg.gamma * next_value - value
            next_advantage = delta + cfg.gamma * cfg.lam * next_advantage
            advantage[w], returns[w], next_value = next_advantage, next_advantage + value, value
    every = lambda x: np.array([x[w] for w in said])
    error = every(returns) - np.array([float(rollout.values[w]) for w in said])
    metrics = {
        "objective/score": sum(float(rollout.rewards[w]) for w in said) / B,
        "objective/reward": sum(unwhitened.values()) / B,
        "objective/kl": sum(d.values()) / B,
        "objective/k3": sum(k3.values()) / B,
        "objective/surprisal": sum(-float(s.logprobs[w]) for w in said) / B,
        "objective/length": len(said) / B,
        "objective/kl_coef": KL_COEF,
        "ppo/advantage_std": every(advantage).std(),
        "ppo/explained_variance": 1 - error.var() / every(returns).var(),
    }
    if cfg.whiten_advantages:
        advantage = whiten(advantage, False)
    dense = lambda x: np.array([[x.get((b, t), 0.0) for t in range(T)] for b in range(B)])
    return dense(advantage), dense(returns), metrics


@pytest.mark.parametrize(
    "cfg",
    [
        PPOConfig(),
        PPOConfig(kl_in_reward="k2", gamma=0.9, lam=0.5, whiten_rewards=True),
        PPOConfig(kl_in_reward="k3", whiten_advantages=False),
        PPOConfig(kl_in_reward="none", kl_in_loss="k3", lam=0.0),
    ],
    ids=["defaults", "k2, discount, whitened rewards", "k3, advantages as they are", "no penalty"],
)
def test_prepare_equals_a_slow_twin_on_ragged_masks_with_holes(cfg):
    rollout = ragged_rollout()
    batch, metrics = prepared(rollout, cfg)
    advantages, returns, want = slow_prepare(rollout, cfg)
    np.testing.assert_allclose(batch.advantages, advantages, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.returns, returns, rtol=1e-4, atol=1e-5)
    assert metrics.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(metrics[name], want[name], rtol=1e-4, err_msg=name)
    for name in ("samples", "ref_logprobs", "values"):
        jax.tree.map(np.testing.assert_array_equal, getattr(batch, name), getattr(rollout, name))


def test_whitened_advantages_have_mean_zero_and_biased_variance_one():
    batch, _ = prepared(ragged_rollout(), PPOConfig())
    said = np.array(batch.advantages)[batch.samples.mask]
    np.testing.assert_allclose((said.mean(), said.std()), (0, 1), atol=1e-5)


def test_a_penalty_counted_twice_is_refused():
    with pytest.raises(ValueError, match=r'kl_in_loss = "k3" beside PPOConfig.kl_in_reward = "k1"'):
        PPOConfig(kl_in_loss="k3")


# --- loss


def batch_at(logprobs, advantages, *, values=None, returns=None, mask=None):
    """A PPOBatch [1, n] of given numbers."""
    row = lambda x: jnp.array([x], jnp.float32)
    zeros = [0.0] * len(logprobs)
    mask = jnp.array([mask or [True] * len(logprobs)])
    samples = Samples(
        tokens=jnp.zeros((1, len(logprobs) + 1), jnp.int32),
        attention_mask=jnp.ones((1, len(logprobs) + 1), bool),
        mask=mask,
        logprobs=row(logprobs),
        ended=jnp.ones(1, bool),
    )
    return PPOBatch(
        samples=samples,
        logprobs=samples.logprobs,
        ref_logprobs=row(zeros),
        values=row(values or zeros),
        advantages=row(advantages),
        returns=row(returns or zeros),
    )


def test_at_ratio_one_the_gradient_is_that_of_the_plain_policy_gradient():
    rollout = ragged_rollout(3)
    batch, _ = prepared(rollout, PPOConfig())
    logits = noise(np.random.default_rng(1), V, V)
    table = networks.from_logits(lambda params, tokens, mask: params[tokens]).policy_fn
    fn = networks.with_values(table, lambda params, tokens, mask: params[tokens])
    params = {"policy": jnp.array(logits), "value": jnp.zeros(V)}
    inputs = rollout.samples.tokens, rollout.samples.attention_mask
    weights = rollout.samples.mask / np.float32(rollout.samples.mask.sum())

    @jax.jit
    def both(params, batch, inputs):
        logprobs, *_ = fn(params, *inputs, last=T)
        batch = batch._replace(logprobs=logprobs)
        cfg = PPOConfig(value_coef=0.0)
        clipped = lambda p: ppo.loss(p, {}, batch, weights, actor_critic_fn=fn, cfg=cfg)[0]
        plain = lambda p: -jnp.sum(weights * batch.advantages * fn(p, *inputs, last=T)[0])
        return jax.grad(clipped)(params)["policy"], jax.grad(plain)(params)["policy"]

    got, want = both(params, batch, inputs)
    assert np.max(np.abs(want)) > 1e-2
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


def test_only_the_optimistic_side_of_the_ratio_is_clipped():
    """A token that has moved too far the good way has no gradient; one that moved the bad way has."""
    ratios = np.array([1.5, 0.5, 1.5, 0.5, 1.1, 0.9])
    advantages = np.array([2.0, -2.0, -2.0, 2.0, 2.0, -2.0])
    clipped = np.array([True, True, False, False, False, False])
    batch = batch_at([-1.0] * 6, list(advantages))
    params = {
        "logprobs": jnp.array([np.log(ratios) - 1.0], jnp.float32),
        "values": jnp.zeros((1, 6)),
    }
    cfg = PPOConfig(policy_clip=0.2)
    grads, metrics = jax.grad(loss_of, has_aux=True)(params, batch, cfg)
    want = np.where(clipped, 0.0, -advantages * ratios / 6)
    np.testing.assert_allclose(grads["logprobs"][0], want, rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/policy_clipfrac"], 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/ratio"], ratios.mean(), rtol=1e-6)
    d = np.log(ratios)
    np.testing.assert_allclose(metrics["ppo/approx_kl"], (d**2 / 2).mean(), rtol=1e-5)


def test_only_values_that_moved_towards_the_return_are_clipped():
    new, old = np.array([1.0, -1.0, 1.0, -1.0, 0.1]), np.zeros(5)
    returns = np.array([3.0, -3.0, -3.0, 3.0, 3.0])
    clipped = np.array([True, True, False, False, False])
    batch = batch_at([0.0] * 5, [0.0] * 5, values=list(old), returns=list(returns))
    params = {"logprobs": jnp.zeros((1, 5)), "values": jnp.array([new], jnp.float32)}
    cfg = PPOConfig(value_clip=0.2, value_coef=0.5)
    grads, metrics = jax.grad(loss_of, has_aux=True)(params, batch, cfg)
    want = np.where(clipped, 0.0, 0.5 * (new - returns) / 5)
    np.testing.assert_allclose(grads["values"][0], want, rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/value_clipfrac"], 2 / 5, rtol=1e-6)
    bounded = np.clip(new, -0.2, 0.2)
    value_loss = 0.5 * np.maximum((new - returns) ** 2, (bounded - returns) ** 2).mean()
    np.testing.assert_allclose(metrics["ppo/value_loss"], value_loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["ppo/loss"], 0.5 * value_loss, rtol=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_penalty_in_the_loss_adds_its_mean_and_its_gradient(kind):
    """d/dlogp of k1, k2, k3 at d = log p - log p_ref is 1, d, 1 - exp(-d)."""
    d = np.array([0.5, -0.3, 0.2])
    batch = batch_at([-1.0] * 3, [1.0] * 3)._replace(
        ref_logprobs=jnp.array([-1.0 - d], jnp.float32)
    )
    params = {"logprobs": jnp.full((1, 3), -1.0), "values": jnp.zeros((1, 3))}
    grad_fn = jax.value_and_grad(loss_of, has_aux=True)
    (base, _), plain = grad_fn(params, batch, PPOConfig())
    cfg = PPOConfig(kl_in_reward="none", kl_in_loss=kind)
    (total, _), grads = grad_fn(params, batch, cfg, {"kl_coef": KL_COEF})
    value, slope = {
        "k1": (d, np.ones(3)),
        "k2": (d**2 / 2, d),
        "k3": (np.exp(-d) - 1 + d, 1 - np.exp(-d)),
    }[kind]
    np.testing.assert_allclose(total - base, KL_COEF * value.mean(), rtol=1e-4)
    difference = grads["logprobs"][0] - plain["logprobs"][0]
    np.testing.assert_allclose(difference, KL_COEF * slope / 3, rtol=1e-4)


def test_log_ratios_of_any_size_leave_batch_loss_gradient_and_metrics_finite():
    rollout, cfg = jax.tree.map(jnp.array, ragged_rollout()), PPOConfig(kl_in_reward="k3")
    in_loss = replace(cfg, kl_in_reward="none", kl_in_loss="k3")
    slope = jax.value_and_grad(partial(loss_of, cfg=in_loss), has_aux=True)

    def everything(moved):
        far = rollout._replace(ref_logprobs=rollout.logprobs - moved)
        batch, seen = ppo.prepare(far, KL_COEF, cfg)
        params = {"logprobs": rollout.logprobs + moved, "values": rollout.values}
        return batch, seen, slope(params, batch, frozen={"kl_coef": KL_COEF})

    moves = np.array([20, -20, 89, -89, 1000, -1000], np.float32)
    for found in jax.tree.leaves(jax.jit(jax.vmap(everything))(moves)):
        assert np.all(np.isfinite(found))


def test_what_was_not_said_has_no_gradient_and_no_part_in_the_metrics():
    """Even where the garbage there is large enough to overflow a ratio."""
    mask = [True, False, True]
    wild = batch_at([-1.0, -400.0, -2.0], [1.0, 9.0, -1.0], returns=[1.0, 9.0, 2.0], mask=mask)
    tame = batch_at([-1.0, 0.0, -2.0], [1.0, 0.0, -1.0], returns=[1.0, 0.0, 2.0], mask=mask)
    params = {"logprobs": jnp.array([[-1.1, -2.0, -1.7]]), "values": jnp.array([[0.1, 7.0, 0.2]])}
    frozen, cfg = {"kl_coef": KL_COEF}, PPOConfig(kl_in_reward="none", kl_in_loss="k3")
    got, want = (
        jax.grad(loss_of, has_aux=True)(params, batch, cfg, frozen) for batch in (wild, tame)
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(np.array(g)[0, 1] == 0 for g in got[0].values())


# --- update


class Log(NamedTuple):
    """The state of an optimizer that writes down which rows had a gradient, and takes a step."""

    count: jax.Array
    rows: jax.Array  # [steps, B]


def logging_sgd(steps, lr=0.1):
    def init(params):
        return Log(jnp.int32(0), jnp.zeros((steps, len(params["logprobs"])), bool))

    def update(grads, log, params=None):
        seen = jnp.any(grads["logprobs"] != 0, axis=1)
        updates = jax.tree.map(lambda g: -lr * g, grads)
        return updates, Log(log.count + 1, log.rows.at[log.count].set(seen))

    return optax.GradientTransformation(init, update)


def row_table_fn(params, tokens, *inputs, last):
    """As `table_fn`, for any part of the rows: the first token of a row is its number."""
    logprobs, values = (params[name][tokens[:, 0]] for name in ("logprobs", "values"))
    return logprobs, jnp.zeros_like(logprobs), values


def numbered_rollout():
    """A rollout of a policy that has moved since, in which every token has an advantage."""
    rng, rows = np.random.default_rng(0), np.arange(B, dtype=np.int32)
    samples = Samples(
        tokens=np.repeat(rows[:, None], T + 1, axis=1),
        attention_mask=np.ones((B, T + 1), bool),
        mask=np.ones((B, T), bool),
        logprobs=np.full((B, T), -1.0, np.float32),
        ended=np.ones(B, bool),
    )
    zeros = np.zeros((B, T), np.float32)
    return PPORollout(samples, noise(rng, B, T), samples.logprobs, samples.logprobs, zeros)


def updated(cfg, key=KEY, rollout=None, start=-1.0, lr=0.1):
    params = {"logprobs": jnp.full((B, T), start), "values": jnp.zeros((B, T))}
    tx = logging_sgd(cfg.epochs * cfg.minibatches, lr)
    update = jax.jit(ppo.make_update(row_table_fn, tx, cfg))
    state = train_step.init_state(params, tx)
    return update(state, {}, KL_COEF, rollout or numbered_rollout(), key)


def test_every_epoch_sees_every_row_once_and_orders_are_fresh():
    cfg = PPOConfig(epochs=3, minibatches=4, policy_clip=10.0)
    state, metrics = updated(cfg)
    log = np.array(state.opt_state.rows).reshape(3, 4, B)
    assert np.all(log.sum(axis=2) == B // 4)  # equal minibatches
    assert np.all(log.sum(axis=1) == 1)  # that are a partition of the rows
    assert not np.array_equal(log[0], log[1]) and not np.array_equal(log[1], log[2])
    other = updated(cfg, key=jax.random.fold_in(KEY, 1))[0].opt_state.rows
    assert not np.array_equal(log.reshape(12, B), other)  # the next iteration's
    again = updated(cfg)[0].opt_state.rows
    np.testing.assert_array_equal(log.reshape(12, B), again)
    assert metrics["ppo/steps"] == state.step == 12


def test_metrics_are_means_over_the_steps():
    _, one = updated(PPOConfig(epochs=1))
    _, metrics = updated(PPOConfig(epochs=2), lr=0.0)
    for name in ("ppo/loss", "ppo/value_loss", "ppo/ratio", "train/grad_norm"):
        np.testing.assert_allclose(metrics[name], one[name], rtol=1e-5)
    assert metrics["train/skipped"] == 0


def test_kl_stop_takes_the_step_that_exceeds_it_and_none_after():
    moved = partial(updated, start=-1.3)  # approximate KL 0.045 from the first minibatch on
    want, _ = moved(PPOConfig(epochs=1))
    got, metrics = moved(PPOConfig(epochs=3, kl_stop=0.04))
    assert metrics["ppo/steps"] == got.step == got.opt_state.count == 1
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), got.params, want.params)
    np.testing.assert_allclose(metrics["ppo/approx_kl"], 0.3**2 / 2, rtol=1e-4)

    free, metrics = moved(PPOConfig(epochs=3, kl_stop=1.0))
    assert metrics["ppo/steps"] == free.step == 3
    unbounded, _ = moved(PPOConfig(epochs=3))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)  # two programs
    jax.tree.map(close, free, unbounded)


def test_kl_stop_is_for_the_rest_of_the_rollout():
    """One row has moved far: once its minibatch was seen, those of quiet rows are not taken either."""
    cfg = PPOConfig(epochs=2, minibatches=B)
    order = np.argmax(updated(cfg, lr=0.0)[0].opt_state.rows, axis=1)  # one row a step
    far = numbered_rollout()
    far.samples.logprobs[order[2]] = -1.5
    state, metrics = updated(replace(cfg, kl_stop=0.05), rollout=far, lr=0.0)
    assert metrics["ppo/steps"] == state.step == state.opt_state.count == 3


def test_kl_stop_lets_a_fresh_policy_move():
    """Its first minibatch has KL zero; the second sees what the first step did, and ends the rollout."""
    state, metrics = updated(PPOConfig(epochs=4, kl_stop=1e-8), lr=1.0)
    assert metrics["ppo/steps"] == state.step == 2


def test_a_rollout_that_is_not_finite_skips_every_step_and_counts_them():
    bad = numbered_rollout()
    bad.rewards[3, 2] = np.nan
    start = {"logprobs": jnp.full((B, T), -1.0), "values": jnp.zeros((B, T))}
    state, metrics = updated(PPOConfig(epochs=2, minibatches=2), rollout=bad)
    assert metrics["train/skipped"] == state.step == 4
    assert state.opt_state.count == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, start)


def test_minibatches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"ppo.minibatches = 3 does not divide the 8 rows"):
        updated(PPOConfig(minibatches=3))


@pytest.mark.parametrize(
    "cut", [pytest.param(dict(microbatches=2), marks=pytest.mark.more), dict(microbatches=4)]
)
def test_microbatches_change_no_result(cut):
    want, got = (
        updated(PPOConfig(epochs=2, minibatches=2, **kinds), start=-1.1) for kinds in ({}, cut)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


# --- the first minibatch after a rollout


LM = networks.language_model(ModelConfig(vocab_size=V, context=9, layers=1, d_model=16, heads=2))


@pytest.fixture(scope="module")
def fresh():
    """A sampled batch at temperature 0.7, and the actor-critic it came from."""
    ac = networks.actor_critic(LM.at(0.7))
    params = jax.jit(lambda key: ac.init(LM.init(key)))(KEY)
    rng = np.random.default_rng(0)
    prompts = Prompts(
        tokens=rng.integers(2, V, (B, 3), np.int32),
        attention_mask=np.arange(3) >= rng.integers(0, 3, (B, 1)),
        index=np.arange(B, dtype=np.int32),
        draw=np.zeros(B, np.int32),
    )
    cfg = sampling.SampleConfig(length=T, temperature=0.7, stop=(1,))
    samples = jax.jit(sampling.make_sample(LM, cfg))(params["policy"], prompts, KEY)
    assert 0 < np.mean(samples.mask) < 1  # ragged
    return ac, params, samples


@pytest.fixture(scope="module")
def first_minibatch(fresh):
    """`first_minibatch(recompute_logprobs) -> (rollout, metrics)` of one step on the fresh samples."""
    ac, params, samples = fresh
    tx = optax.sgd(0.1)
    update = jax.jit(ppo.make_update(ac.fn, tx, PPOConfig(epochs=1)))

    def run(recompute_logprobs):
        cfg = rollout.RolloutConfig(recompute_logprobs=recompute_logprobs)
        annotate = jax.jit(rollout.make_annotate_with_values(LM.at(0.7).policy_fn, ac.fn, cfg))
        seen = annotate(params, params["policy"], samples)
        batch = rollout.with_rewards(seen, np.arange(B, dtype=np.float32), cfg)
        _, metrics = update(train_step.init_state(params, tx), {}, KL_COEF, batch, KEY)
        return batch, {name: float(value) for name, value in metrics.items()}

    return run


def test_a_fresh_policy_is_its_own_rollout_policy(fresh, first_minibatch):
    batch, metrics = first_minibatch(recompute_logprobs=False)
    assert metrics["ppo/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["ppo/approx_kl"] < 1e-8  # half the square of 1e-4
    assert metrics["ppo/policy_clipfrac"] == metrics["ppo/value_clipfrac"] == 0.0
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-4)  # the reference is the policy
    np.testing.assert_array_equal(batch.logprobs, fresh[2].logprobs)


def test_recomputed_logprobs_are_the_learners(fresh, first_minibatch):
    """To the rounding of float32: the two programs are compiled apart, on rows in another order."""
    batch, metrics = first_minibatch(recompute_logprobs=True)
    assert metrics["ppo/approx_kl"] < 0.5 * 1e-6**2
    assert metrics["ppo/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["ppo/policy_clipfrac"] == metrics["ppo/value_clipfrac"] == 0.0
    assert metrics["objective/kl"] == 0.0
    np.testing.assert_allclose(batch.logprobs, fresh[2].logprobs, atol=1e-4)
    assert np.any(batch.logprobs != fresh[2].logprobs)
    np.testing.assert_array_equal(batch.samples.logprobs, fresh[2].logprobs)


def test_a_forgotten_temperature_would_show(fresh):
    """The learner's log-probabilities at temperature 1 are not those of a sampler at 0.7."""
    _, params, samples = fresh
    inputs = params["policy"], samples.tokens, samples.attention_mask
    logprobs = lambda temperature: jax.jit(partial(LM.policy_fn, last=T, temperature=temperature))(
        *inputs
    )[0]
    error = lambda x: np.max(np.abs(np.where(samples.mask, x - samples.logprobs, 0)))
    assert error(logprobs(0.7)) < 1e-4
    assert error(logprobs(1.0)) > 1e-2
