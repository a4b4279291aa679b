import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.batches import Samples

T = 4
# ended; did not; did not, early; did not, with a hole where the environment spoke
TOKENS = np.array([[5, 3, 1, 0], [5, 3, 4, 6], [5, 3, 1, 1], [5, 1, 3, 4]])
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]], bool)


def samples():
    prompt = np.full((4, 2), 9)
    return Samples(
        tokens=jnp.array(np.concatenate([prompt, TOKENS], axis=1)),
        attention_mask=jnp.array(np.concatenate([prompt > 0, MASK], axis=1)),
        mask=jnp.array(MASK),
        logprobs=jnp.where(MASK, -1.0, 0.0),
        ended=jnp.array([True, False, False, False]),
    )


def policy_fn(params, tokens, attention_mask, *, last):
    logprobs = jnp.full((len(tokens), last), params)
    return logprobs, -logprobs


def actor_critic_fn(params, tokens, attention_mask, *, last):
    logprobs, entropy = policy_fn(params, tokens, attention_mask, last=last)
    return logprobs, entropy, logprobs + 10.0


def annotate(scores, **settings):
    cfg = RolloutConfig(**settings)
    run = rollout.make_annotate_with_values(policy_fn, actor_critic_fn, cfg)
    return rollout.with_rewards(run(jnp.float32(-3.0), jnp.float32(-2.0), samples()), scores, cfg)


def test_scores_fall_whole_on_the_last_token_said_less_the_penalty_where_nothing_ended():
    got = annotate(jnp.array([0.7, 0.7, 0.7, 0.7]), missing_eos_penalty=0.5)
    want = np.float32([[0, 0, 0.7, 0], [0, 0, 0, 0.2], [0, 0.2, 0, 0], [0, 0, 0, 0.2]])
    assert got.rewards.dtype == jnp.float32
    np.testing.assert_allclose(got.rewards, want, rtol=1e-6)


def test_rewards_of_several_tokens_are_kept_where_the_policy_spoke():
    rewards = np.arange(16, dtype=np.float32).reshape(4, T) + 0.25
    got = annotate(jnp.array(rewards))
    np.testing.assert_array_equal(got.rewards, np.where(MASK, rewards, 0))


def test_reference_and_values_are_read_and_masked():
    got = annotate(jnp.zeros(4))
    np.testing.assert_allclose(got.ref_logprobs, np.where(MASK, -2.0, 0))
    np.testing.assert_allclose(got.values, np.where(MASK, 7.0, 0))
    np.testing.assert_array_equal(
        got.samples.logprobs, samples().logprobs
    )  # the sampler's are kept


def test_recomputed_log_probabilities_stand_beside_the_samplers():
    got = annotate(jnp.zeros(4), recompute_logprobs=True)
    np.testing.assert_allclose(got.logprobs, np.where(MASK, -3.0, 0))
    np.testing.assert_array_equal(got.samples.logprobs, samples().logprobs)


def test_integer_scores_are_refused():
    with pytest.raises(TypeError, match="scores are int32"):
        annotate(jnp.ones(4, jnp.int32))
    with pytest.raises(TypeError, match="scores are int32"):
        annotate(jnp.ones((4, T), jnp.int32))


def policy_rollout(scores, **settings):
    cfg = RolloutConfig(**settings)
    run = rollout.make_annotate(policy_fn, cfg)
    return rollout.with_rewards(run(jnp.float32(-3.0), jnp.float32(-2.0), samples()), scores, cfg)


def test_without_a_critic_the_samplers_log_probabilities_are_the_learners():
    got = policy_rollout(jnp.zeros(4))
    np.testing.assert_array_equal(got.logprobs, samples().logprobs)
    np.testing.assert_allclose(got.ref_logprobs, np.where(MASK, -2.0, 0))


def test_recomputed_they_stand_beside_those_of_the_engine_that_sampled():
    got = policy_rollout(jnp.zeros(4), recompute_logprobs=True)
    np.testing.assert_allclose(got.logprobs, np.where(MASK, -3.0, 0))
    np.testing.assert_array_equal(got.samples.logprobs, samples().logprobs)


@pytest.mark.parametrize("shape", [(4,), (4, T)])
def test_rewards_are_the_same_with_a_critic_and_without(shape):
    scores = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + 0.7
    got, want = policy_rollout(scores), annotate(scores)
    np.testing.assert_array_equal(got.rewards, want.rewards)
    with pytest.raises(TypeError, match="scores are int32"):
        policy_rollout(scores.astype(jnp.int32))
