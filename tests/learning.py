"""The loop of an on-policy method in the enumerable world: every stage of it is a shipped one."""

import enumerable
import jax
import jax.numpy as jnp

from rlhf_jax import sampling, train_step
from rlhf_jax.algorithms import rollout
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.sampling import SampleConfig

SAMPLE = SampleConfig(length=enumerable.LENGTH, stop=(enumerable.EOS,), pad=enumerable.PAD)
# four content tokens are a whole response here, so that no EOS costs nothing
ROLLOUT = RolloutConfig(missing_eos_penalty=0.0)


def learn(
    learner,
    tx,
    params,
    ref_params,
    key,
    *,
    lm,
    score,
    prompts,
    iterations,
    sample_cfg=SAMPLE,
    rollout_cfg=ROLLOUT,
    engine=lambda policy: policy,
):
    """The parameters of a Learner after training with the optimizer `tx`; KL coefficient enumerable.BETA.

    `score(samples)` gives scores [B] or rewards [B, T]; `engine` makes the parameters that are sampled from.
    """
    sample = sampling.make_sample(lm, sample_cfg)

    def iteration(state, i):
        rng = jax.random.fold_in(key, i)
        samples = sample(engine(learner.policy_of(state.params)), prompts, rng)
        seen = learner.annotate(state.params, ref_params, samples)
        rolled = rollout.with_rewards(seen, score(samples), rollout_cfg)
        kl_coef = jnp.float32(enumerable.BETA)
        return learner.update(state, {}, kl_coef, rolled, jax.random.fold_in(rng, 1))[0], None

    state = train_step.init_state(params, tx)
    return jax.lax.scan(iteration, state, jnp.arange(iterations))[0].params
