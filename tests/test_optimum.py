"""PPO through the shipped stages reaches pi* ~ pi_ref exp(score / beta), and one wrong line keeps it away."""

import enumerable
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from enumerable import BETA, EOS, LENGTH, PAD, PREFIXES, distribution, optimum, total_variation

from rlhf_jax import kl, optimizer, ppo, rollout, sampling, train_step
from rlhf_jax.batches import Samples
from rlhf_jax.models import networks, transformer
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.ppo import PPOConfig
from rlhf_jax.rollout import RolloutConfig
from rlhf_jax.sampling import SampleConfig

TABLE = networks.from_logits(enumerable.apply)
GATE = 1e-3
SAMPLE = SampleConfig(length=LENGTH, stop=(EOS,), pad=PAD)
# four content tokens are a whole response here, so that no EOS costs nothing
ROLLOUT = RolloutConfig(stop=(EOS,), missing_eos_penalty=0.0)


def shifted(params, tokens, attention_mask, *, last, temperature):
    """A policy_fn that reads the logits one column late: after the token that they should predict."""
    logits = enumerable.apply(params, tokens, attention_mask)[:, -last:] / temperature
    logprobs = jax.nn.log_softmax(logits)
    taken = jnp.take_along_axis(logprobs, tokens[:, -last:, None], axis=-1)[..., 0]
    return taken, -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def on_padding(scores, mask):
    """Scores one column after the last token; beyond the last column they fall off."""
    return jnp.zeros(mask.shape).at[jnp.arange(len(mask)), jnp.sum(mask, axis=1)].set(scores)


def train(
    params,
    ref_params,
    scores,
    key,
    *,
    lm=TABLE,
    policy_fn=TABLE.policy_fn,
    critic=lambda policy_fn: networks.with_values(policy_fn, enumerable.apply),
    sample_cfg=SAMPLE,
    rollout_cfg=ROLLOUT,
    cfg=PPOConfig(),  # noqa: B008
    place=lambda scores, mask: scores,
    rows=512,
    iterations=1000,
    lr=3e-2,
):
    """The policy's parameters after PPO, every stage a shipped one."""
    opt = optimizer.OptimizerConfig(lr=lr, schedule="linear", clip=0.0)
    tx = optimizer.make(opt, steps=iterations * cfg.epochs * cfg.minibatches)
    actor_critic_fn = critic(policy_fn)
    sample = sampling.make_sample(lm, sample_cfg)
    annotate = rollout.make_annotate(policy_fn, actor_critic_fn, rollout_cfg)
    update = ppo.make_update(actor_critic_fn, tx, cfg)

    def iteration(state, i):
        rng = jax.random.fold_in(key, i)
        samples = sample(state.params["policy"], enumerable.prompts(rows), rng)
        rewards = place(scores[enumerable.response_of(samples)], samples.mask)
        batch = annotate(state.params, ref_params, samples, rewards)
        state, _ = update(state, {}, jnp.float32(BETA), batch, jax.random.fold_in(rng, 1))
        return state, None

    state, _ = jax.lax.scan(iteration, train_step.init_state(params, tx), jnp.arange(iterations))
    return state.params["policy"]


def tabular_distance(seed, **changes):
    """Total variation from pi* of what a trained table samples, both at the sampling temperature."""
    world = enumerable.make(seed)
    temperature = changes.get("sample_cfg", SAMPLE).temperature
    start = {"policy": world.ref_logits, "value": jnp.zeros(PREFIXES)}

    @jax.jit
    def run(start, world, key):
        return train(start, world.ref_logits, world.scores, key, **changes)

    pi = distribution(run(start, world, jax.random.key(seed)), temperature)
    return total_variation(pi, optimum(world, temperature)[0])
