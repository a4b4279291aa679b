import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax import train_step
from rlhf_jax.algorithms import sft
from rlhf_jax.batches import Sequences
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

RNG = np.random.default_rng(0)
V, P, T = 7, 2, 5
LM = networks.from_logits(lambda params, tokens, mask: params[tokens])  # a table of bigrams


def demonstrations():
    tokens = RNG.integers(0, V, (6, P + T))
    mask = np.arange(T) < RNG.integers(1, T + 1, (6, 1))
    return Sequences(
        tokens=jnp.array(tokens),
        attention_mask=jnp.array(np.concatenate([np.ones((6, P), bool), mask], axis=1)),
        mask=jnp.array(mask),
    )


def nats(table, batch):
    """-log p of each response token, by a loop."""
    logp = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    return [
        -logp[batch.tokens[b, P + t - 1], batch.tokens[b, P + t]]
        for b, t in np.argwhere(np.asarray(batch.mask))
    ]


def test_the_loss_is_the_mean_over_response_tokens_alone():
    batch, table = demonstrations(), RNG.normal(size=(V, V))
    step = sft.make_train_step(LM.policy_fn, optax.sgd(0.1))
    state = train_step.init_state(jnp.array(table, jnp.float32), optax.sgd(0.1))
    _, metrics = step(state, {}, batch)
    np.testing.assert_allclose(metrics["sft/loss"], np.mean(nats(table, batch)), rtol=1e-5)


def test_held_out_nats_are_summed_over_real_rows():
    batch, table = demonstrations(), RNG.normal(size=(V, V))
    real = np.array([1, 0, 1, 1, 0, 1], bool)
    total, tokens = sft.make_held_out_loss(LM.policy_fn)(
        jnp.array(table, jnp.float32), batch, jnp.array(real)
    )
    kept = batch._replace(mask=batch.mask & real[:, None])
    np.testing.assert_allclose(total, np.sum(nats(table, kept)), rtol=1e-5)
    assert tokens == kept.mask.sum()


def test_a_table_of_bigrams_learns_the_frequencies():
    first = np.array([[0, 1], [0, 1], [0, 1], [0, 2]])  # after 0: 1 in three of four
    batch = Sequences(
        tokens=jnp.array(first), attention_mask=jnp.ones((4, 2), bool), mask=jnp.ones((4, 1), bool)
    )
    tx = optax.adam(0.1)
    step = jax.jit(sft.make_train_step(LM.policy_fn, tx))
    state = train_step.init_state(jnp.zeros((3, 3)), tx)
    for _ in range(300):
        state, _ = step(state, {}, batch)
    np.testing.assert_allclose(jax.nn.softmax(state.params[0]), [0, 0.75, 0.25], atol=2e-2)


def test_a_packed_row_takes_the_step_of_its_sequences_in_rows_of_their_own():
    """Two rows of three sequences, with padding between and after, beside six rows of one."""
    lm = networks.language_model(ModelConfig(vocab_size=V, context=24, d_model=8, heads=2))
    rows = demonstrations()
    tokens, numbers, mask = (np.zeros((2, 24), kind) for kind in (int, np.int32, bool))
    for i, real in enumerate(np.asarray(rows.attention_mask)):
        at = i % 2, 8 * (i // 2) + np.arange(real.sum())
        tokens[at], numbers[at] = rows.tokens[i][real], i + 1
        mask[at] = np.arange(real.sum()) >= P
    packed = Sequences(jnp.array(tokens), jnp.array(numbers), jnp.array(mask[:, 1:]))

    tx = optax.sgd(1.0)
    state = train_step.init_state(jax.jit(lm.init)(jax.random.key(0)), tx)
    step = jax.jit(sft.make_train_step(lm.policy_fn, tx))
    want, expected = step(state, {}, rows)
    got, metrics = step(state, {}, packed)
    np.testing.assert_allclose(metrics["sft/loss"], expected["sft/loss"], rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(close, got.params, want.params)
    seen = packed._replace(attention_mask=packed.attention_mask > 0)  # by the segments after
    assert abs(step(state, {}, seen)[1]["sft/loss"] - expected["sft/loss"]) > 1e-3
