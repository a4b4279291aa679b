from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import train_step
from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.batches import Comparisons, Sequences
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

KEY = jax.random.key(0)


def side(tokens, mask=None, length=1):
    tokens = jnp.asarray(tokens)
    mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    return Sequences(tokens=tokens, attention_mask=mask, mask=mask[:, -length:])


def strength_of(params, tokens, attention_mask):
    """An item a row: its strength is its reward."""
    return params[tokens[:, 0]]


def pairs_of(chosen, rejected):
    """Comparisons that weigh the same."""
    return Comparisons(chosen, rejected, *np.ones((2, len(chosen.tokens)), np.float32))


def test_training_recovers_known_strengths_up_to_a_constant():
    # item i wins against j in a share worth_i / (worth_i + worth_j) of their 840 meetings
    worth = np.array([1, 2, 3, 5, 8])
    rows = [
        (i, j)
        for i in range(5)
        for j in range(5)
        if i != j
        for _ in range(worth[i] * 840 // (worth[i] + worth[j]))
    ]
    chosen, rejected = np.array(rows).T
    batch = pairs_of(side(chosen[:, None]), side(rejected[:, None]))
    tx = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    step = reward_model.make_train_step(strength_of, tx)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: (step(s, {}, batch)[0], None), state, None, 600)[0]

    got = train(train_step.init_state(jnp.zeros(5), tx)).params
    np.testing.assert_allclose(got - got.mean(), np.log(worth) - np.log(worth).mean(), atol=5e-3)


@pytest.fixture(scope="module")
def model():
    lm = networks.language_model(
        ModelConfig(vocab_size=13, context=32, layers=1, d_model=16, heads=2)
    )
    rm = networks.reward_model(lm)
    trunk = jax.jit(lm.init)(KEY)
    return jax.jit(rm.fn), rm.init(jax.random.key(1), trunk)


def ragged(seed, rows=6, columns=9):
    rng = np.random.default_rng(seed)
    mask = (np.arange(columns) >= rng.integers(0, 3, (rows, 1))) & (
        np.arange(columns) < rng.integers(5, columns + 1, (rows, 1))
    )
    return side(rng.integers(0, 13, (rows, columns)), mask)


def test_swapping_chosen_and_rejected_negates_the_margin_and_mirrors_the_accuracy(model):
    reward_fn, params = model
    batch = pairs_of(ragged(0), ragged(1))
    weights = jnp.full(6, 1 / 6)
    measure = partial(reward_model.loss, params, {}, weights=weights, reward_fn=reward_fn)
    _, there = measure(batch)
    _, back = measure(pairs_of(batch.rejected, batch.chosen))
    assert there["reward/margin"] == -back["reward/margin"] != 0
    np.testing.assert_allclose(there["reward/accuracy"] + back["reward/accuracy"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(  # -log s(x) + log s(-x) = -x
        there["reward/loss"] - back["reward/loss"], -there["reward/margin"], rtol=1e-4
    )


def test_the_loss_is_the_mean_of_bradley_terrys_and_padding_changes_nothing(model):
    reward_fn, params = model
    a, b = ragged(0), ragged(1)
    scores = [np.asarray(reward_fn(params, x.tokens, x.attention_mask), float) for x in (a, b)]
    want = np.mean(np.log1p(np.exp(scores[1] - scores[0])))

    def loss(a, b):
        batch = pairs_of(a, b)
        weights = jnp.full(6, 1 / 6)
        return reward_model.loss(params, {}, batch, weights, reward_fn=reward_fn)[0]

    np.testing.assert_allclose(loss(a, b), want, rtol=1e-5)
    wider = lambda x: side(
        np.pad(x.tokens, ((0, 0), (3, 4)), constant_values=7),
        np.pad(x.attention_mask, ((0, 0), (3, 4))),
    )
    np.testing.assert_allclose(loss(wider(a), wider(b)), want, rtol=1e-5)


def test_centring_sets_the_mean_of_demonstrations_to_zero_and_training_leaves_the_bias(model):
    reward_fn, params = model
    demos = ragged(2)
    before = reward_fn(params, demos.tokens, demos.attention_mask)
    centred = reward_model.centre(params, before.mean())
    after = reward_fn(centred, demos.tokens, demos.attention_mask)
    np.testing.assert_allclose(after.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-6)
    tx = optax.adam(1e-2)
    step = jax.jit(reward_model.make_train_step(reward_fn, tx))
    state = train_step.init_state(centred, tx)
    for _ in range(3):
        state, _ = step(state, {}, pairs_of(ragged(0), ragged(1)))
    assert state.params["bias"] == centred["bias"] != 0
    assert not np.array_equal(state.params["head"], centred["head"])


def item(n):
    return side(np.full((1, 1), n))


PAIR = pairs_of(item(0), item(1))
MIXED = pairs_of(  # item 0 wins four meetings of five
    side(np.array([[0], [0], [0], [0], [1]])), side(np.array([[1], [1], [1], [1], [0]]))
)


@pytest.mark.parametrize(
    ("cfg", "want"),
    [
        (RewardLossConfig(), 0.0485873516),  # log(1 + e^-3)
        (
            RewardLossConfig(label_smoothing=0.1),
            0.3485873516,
        ),  # and a tenth of log(1 + e^3), 3 more
        (RewardLossConfig(centring=0.01), 0.0485873516 + 0.01 * 49),
    ],
)
def test_the_loss_by_hand(cfg, want):
    """Scores 5 and 2."""
    total, metrics = reward_model.loss(
        jnp.array([5.0, 2.0]), {}, PAIR, jnp.ones(1), reward_fn=strength_of, cfg=cfg
    )
    np.testing.assert_allclose(total, want, rtol=1e-5)
    assert metrics["reward/loss"] == total
    assert (metrics["reward/margin"], metrics["reward/accuracy"]) == (3.0, 1.0)


def trained(cfg, batch=MIXED):
    """Two strengths that begin at 5 and 3, after training on `batch`."""
    tx = optax.sgd(optax.cosine_decay_schedule(2.0, 2000))
    step = reward_model.make_train_step(strength_of, tx, cfg)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, _: (step(s, {}, batch)[0], None), state, None, 2000)[0]

    return train(train_step.init_state(jnp.array([5.0, 3.0]), tx)).params


@pytest.mark.parametrize(
    ("cfg", "difference", "total"),
    [
        (RewardLossConfig(), np.log(4), 8.0),
        (RewardLossConfig(label_smoothing=0.1), 1.0459686, 8.0),  # logit(0.9 0.8 + 0.1 0.2)
        (RewardLossConfig(centring=0.01), np.log(4), 0.0),
    ],
)
def test_training_ends_at_the_optimum_of_each_setting(cfg, difference, total):
    """Each but centring leaves the sum of the two scores as it was; centring alone removes it."""
    first, second = trained(cfg)
    np.testing.assert_allclose(first - second, difference, atol=2e-3)
    np.testing.assert_allclose(first + second, total, atol=2e-3)


def test_a_pair_counts_by_its_weight():
    """Two pairs of weights 4 and 1 are the five of MIXED, and one that weighs nothing may be anything."""
    sides = np.array([[0], [1], [1]]), np.array([[1], [0], [0]])
    uneven = pairs_of(*map(side, sides))._replace(weight=np.array([4.0, 1.0, 0.0], np.float32))
    np.testing.assert_allclose(
        trained(RewardLossConfig(), uneven), trained(RewardLossConfig()), atol=1e-4
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("centring", -0.01),
        ("centring", float("nan")),
        ("label_smoothing", 0.5),
        ("label_smoothing", -0.1),
    ],
)
def test_bad_settings_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"{setting} = {value}"):
        RewardLossConfig(**{setting: value})
