"""One gradient step: the global masked mean, however it is cut, and never a step that should not be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import ppo, reward_model, sft
from rlhf_jax.batches import Comparisons, PPORollout, Samples, Sequences
from rlhf_jax.models import networks

B, P, T, V, D = 8, 3, 5, 11, 6
KEY = jax.random.key(0)


def hidden(params, tokens, mask):  # [B, L, D]
    embedded = params["embedding"][tokens] * mask[..., None]
    return jnp.tanh(jnp.cumsum(embedded, axis=1))


def logits(params, tokens, mask):
    return hidden(params, tokens, mask) @ params["out"]


def reward_fn(params, tokens, mask):
    return hidden(params, tokens, mask)[:, -1] @ params["head"]


policy_fn = networks.from_logits(logits).policy_fn
actor_critic_fn = networks.with_values(
    policy_fn, lambda params, *inputs: hidden(params, *inputs) @ params["head"]
)


def sequences(seed):
    """Rows of 0 to T response tokens, some with holes, after prompts of 1 to P."""
    rng = np.random.default_rng(seed)
    mask = np.arange(T) < rng.permutation(B)[:, None] % (T + 1)
    mask &= rng.random((B, T)) < 0.8
    prompt = np.arange(P) >= rng.integers(0, P, (B, 1))
    return Sequences(
        tokens=rng.integers(1, V, (B, P + T), np.int32),
        attention_mask=np.concatenate([prompt, np.ones((B, T), bool)], axis=1),
        mask=mask,
    )


def rollout(seed):
    rng, s = np.random.default_rng(seed), sequences(seed)
    noise = lambda: np.where(s.mask, rng.normal(size=(B, T)), 0.0).astype(np.float32)
    samples = Samples(s.tokens, s.attention_mask, s.mask, noise() - 2.0, np.ones(B, bool))
    return PPORollout(samples, noise(), noise() - 2.0, noise() - 2.0, noise())


PREPARE = jax.jit(partial(ppo.prepare, cfg=ppo.PPOConfig()))


def ppo_batch(seed):
    return PREPARE(rollout(seed), jnp.float32(0.1))[0]


def tokens_and_rows(params, frozen, batch, weights):
    """Two kinds of weights in one loss: an uneven token mean and a mean over rows that said anything."""
    total, _ = sft.loss(params, frozen, batch, weights["tokens"], policy_fn=policy_fn)
    scores = reward_fn(params, batch.tokens, batch.attention_mask)
    total += jnp.vdot(weights["rows"], jnp.square(scores - 1.0))
    return total, {"both/loss": total}


def two_kinds(batch):
    return {
        "tokens": batch.mask * (1 + batch.tokens[:, -T:] % 3),
        "rows": jnp.any(batch.mask, axis=1),
    }


def tree(names):
    shapes = {"embedding": (V, D), "out": (D, V), "head": (D,)}
    return {
        name: jax.random.normal(jax.random.fold_in(KEY, i), shapes[name])
        for i, name in enumerate(names)
    }


LM = tree(["embedding", "out"])
SCORER = tree(["embedding", "head"])
CASES = {
    # loss, weights_of, params, frozen, batch of a seed
    "sft": (partial(sft.loss, policy_fn=policy_fn), sft.weights_of, LM, {}, sequences),
    "reward": (
        partial(reward_model.loss, reward_fn=reward_fn),
        reward_model.weights_of,
        SCORER,
        {},
        lambda seed: Comparisons(
            sequences(seed), sequences(seed + 100), np.arange(1.0, B + 1), np.linspace(0.5, 1, B)
        ),
    ),
    "ppo": (
        partial(ppo.loss, actor_critic_fn=actor_critic_fn, cfg=ppo.PPOConfig()),
        ppo.weights_of,
        {"policy": LM, "value": SCORER},
        {"kl_coef": jnp.float32(0.1)},
        ppo_batch,
    ),
    "two kinds": (tokens_and_rows, two_kinds, LM | SCORER, {}, sequences),
}
ADAMW = optimizer.make(optimizer.OptimizerConfig(schedule="constant", weight_decay=0.1), steps=10)


def compiled(case, tx, microbatches=1):
    loss, weights_of, *_ = CASES[case]
    return jax.jit(train_step.make_train_step(loss, weights_of, tx, microbatches=microbatches))


def assert_close(got, want, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=atol), got, want)


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.parametrize("case", CASES)
def test_microbatches_change_nothing(case):
    *_, params, frozen, batch_of = CASES[case]
    state, batch = train_step.init_state(params, ADAMW), batch_of(1)
    (one, metrics), two, four = (compiled(case, ADAMW, n)(state, frozen, batch) for n in (1, 2, 4))
    assert not same_bits(one.params, params)
    assert metrics["train/skipped"] == 0
    assert_close(two, (one, metrics))
    assert_close(four, (one, metrics))


def test_the_trial_can_tell_a_mean_of_means():
    """The usual mistake, a mean of each microbatch's own mean, fails the test above by far."""
    loss, weights_of, params, frozen, batch_of = CASES["sft"]
    batch = batch_of(1)

    @jax.jit
    @jax.grad
    def grad_of(params, batch):
        weights = weights_of(batch)
        return loss(params, frozen, batch, weights / jnp.sum(weights))[0]

    want = grad_of(params, batch)
    halves = [grad_of(params, jax.tree.map(lambda x, i=i: x[i::2], batch)) for i in range(2)]
    got = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert max(np.max(np.abs(got[k] - want[k])) for k in want) > 1e-3


@pytest.mark.parametrize("microbatches", [1, 4])
def test_gradient_is_that_of_the_global_masked_mean(microbatches):
    """A bigram table, whose gradient is (softmax - one hot) averaged over the masked tokens."""
    table = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
    batch = sequences(2)
    bigram = networks.from_logits(lambda params, tokens, mask: params[tokens]).policy_fn
    step = sft.make_train_step(bigram, optax.sgd(1.0), microbatches=microbatches)
    state = train_step.init_state(jnp.array(table), optax.sgd(1.0))
    new, metrics = jax.jit(step)(state, {}, batch)

    tokens, mask = np.array(batch.tokens), np.array(batch.mask)
    want, nats = np.zeros((V, V)), 0.0
    for b, t in np.argwhere(mask):
        before, said = tokens[b, P + t - 1], tokens[b, P + t]
        probs = np.exp(table[before].astype(float))
        probs /= probs.sum()
        nats -= np.log(probs[said])
        want[before] += probs
        want[before, said] -= 1.0
    np.testing.assert_allclose(table - new.params, want / mask.sum(), atol=1e-6)
    np.testing.assert_allclose(metrics["sft/loss"], nats / mask.sum(), rtol=1e-6)
    norm = np.linalg.norm(want / mask.sum())
    np.testing.assert_allclose(metrics["train/grad_norm"], norm, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_gradient_is_jax_grad_of_the_whole_loss(case, microbatches):
    loss, weights_of, params, frozen, batch_of = CASES[case]
    batch, tx = batch_of(3), optax.sgd(1.0)

    @jax.jit
    @jax.grad
    def grad_of(params, batch):
        weights = jax.tree.map(lambda w: w / jnp.sum(w), weights_of(batch))
        return loss(params, frozen, batch, weights)[0]

    grads = grad_of(params, batch)
    new, metrics = compiled(case, tx, microbatches)(
        train_step.init_state(params, tx), frozen, batch
    )
    assert_close(new.params, jax.tree.map(jnp.subtract, params, grads))
    assert_close(metrics["train/grad_norm"], optax.tree.norm(grads), atol=1e-5)


def silenced(case, batch):
    """The same batch, of which nothing counts."""
    if case == "ppo":
        mask = jnp.zeros_like(batch.samples.mask)
        return batch._replace(samples=batch.samples._replace(mask=mask))
    return batch._replace(mask=jnp.zeros_like(batch.mask))


@pytest.mark.parametrize("case", ["sft", "ppo", "two kinds"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_all_zero_mask_moves_nothing(case, microbatches):
    *_, params, frozen, batch_of = CASES[case]
    step = compiled(case, ADAMW, microbatches)
    state = train_step.init_state(params, ADAMW)
    for seed in range(2):  # momentum is warm, so an update with gradient zero would still move
        state, metrics = step(state, frozen, batch_of(seed))
        assert metrics["train/skipped"] == 0
    new, metrics = step(state, frozen, silenced(case, batch_of(2)))
    assert same_bits((new.params, new.opt_state), (state.params, state.opt_state))
    assert metrics["train/skipped"] == 1
    assert (state.step, new.step) == (2, 3)
    moved, _ = ADAMW.update(jax.tree.map(jnp.zeros_like, params), state.opt_state, params)
    assert optax.tree.norm(moved) > 0  # what the skip has prevented


def test_one_kind_of_weight_that_is_all_zero_drops_its_term_alone():
    loss, _, params, frozen, batch_of = CASES["two kinds"]
    only_rows = lambda b: {"tokens": jnp.zeros((len(b.mask), T)), "rows": jnp.ones(len(b.mask))}
    tx, batch = optax.sgd(1.0), batch_of(1)
    state = train_step.init_state(params, tx)
    new, metrics = jax.jit(train_step.make_train_step(loss, only_rows, tx))(state, frozen, batch)
    scores = jax.jit(reward_fn)(params, batch.tokens, batch.attention_mask)
    np.testing.assert_allclose(metrics["both/loss"], jnp.mean((scores - 1) ** 2), rtol=1e-5)
    assert metrics["train/skipped"] == 0
    assert same_bits(new.params["out"], params["out"])


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e30])  # the last overflows in the norm alone
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(factor, microbatches):
    loss, weights_of, params, _, batch_of = CASES["sft"]

    def poisoned(params, frozen, *args):
        total, metrics = loss(params, frozen, *args)
        return total * frozen["factor"], metrics

    step = train_step.make_train_step(poisoned, weights_of, ADAMW, microbatches=microbatches)
    step, batch = jax.jit(step), batch_of(1)
    good, bad = {"factor": jnp.float32(1.0)}, {"factor": jnp.float32(factor)}
    state, metrics = step(train_step.init_state(params, ADAMW), good, batch)
    assert metrics["train/skipped"] == 0
    skipped, metrics = step(state, bad, batch)
    assert metrics["train/skipped"] == 1
    assert not np.isfinite(metrics["train/grad_norm"])
    assert same_bits((skipped.params, skipped.opt_state), (state.params, state.opt_state))
    assert skipped.step == 2
    after, _ = step(skipped, good, batch)  # and goes on as if it had not been
    want, _ = step(state, good, batch)
    assert same_bits((after.params, after.opt_state), (want.params, want.opt_state))


def test_noise_whose_keys_are_in_the_batch_is_each_rows_own_however_it_is_cut():
    def noisy(params, frozen, batch, weights):
        noise = jax.vmap(jax.random.normal)(batch["keys"])
        return jnp.vdot(weights, params * noise), {"noise": jnp.vdot(weights, jnp.square(noise))}

    tx, ones = optax.sgd(1.0), lambda batch: jnp.ones(len(batch["keys"]))
    state = train_step.init_state(jnp.float32(0.0), tx)

    def run(seed, microbatches):
        step = train_step.make_train_step(noisy, ones, tx, microbatches=microbatches)
        return jax.jit(step)(state, {}, {"keys": jax.random.split(jax.random.key(seed), B)})

    assert same_bits(run(5, 4), run(5, 4))
    assert not same_bits(run(5, 4), run(6, 4))
    assert_close(run(5, 4), run(5, 1))
    noise = jax.vmap(jax.random.normal)(jax.random.split(jax.random.key(5), B))
    np.testing.assert_allclose(run(5, 4)[0].params, -np.mean(noise), rtol=1e-5)


def test_microbatches_that_do_not_divide_are_refused():
    loss, weights_of, params, frozen, batch_of = CASES["sft"]
    step = jax.jit(train_step.make_train_step(loss, weights_of, ADAMW, microbatches=3))
    with pytest.raises(ValueError, match=r"microbatches = 3 does not divide the 8 rows.*divisor"):
        step(train_step.init_state(params, ADAMW), frozen, batch_of(1))


def test_a_new_state_is_step_zero():
    state = train_step.init_state(LM, ADAMW)
    assert state.step == 0 and state.step.dtype == jnp.int32
    assert same_bits(state.params, LM)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(ADAMW.init(LM))
