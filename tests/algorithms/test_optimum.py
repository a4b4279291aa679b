"""PPO through the shipped stages reaches pi* ~ pi_ref exp(score / beta), and one wrong line keeps it away."""

from dataclasses import replace
from functools import partial

import enumerable
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import optimised
from enumerable import BETA, LENGTH, PREFIXES, distribution, optimum, total_variation
from learning import ROLLOUT, SAMPLE, learn

from rlhf_jax import optimizer
from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.ppo import PPOConfig
from rlhf_jax.batches import Samples
from rlhf_jax.models import networks, transformer
from rlhf_jax.models.config import ModelConfig

TABLE = networks.from_logits(enumerable.apply)
GATE = 1e-3


def shifted(params, tokens, attention_mask, *, last):
    """A policy_fn that reads the logits one column late: after the token that they should predict."""
    logits = enumerable.apply(params, tokens, attention_mask)[:, -last:]
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
    reference_fn=None,
    critic=lambda policy_fn: networks.with_values(policy_fn, enumerable.apply),
    sample_cfg=SAMPLE,
    cfg=PPOConfig(),  # noqa: B008
    place=lambda scores, mask: scores,
    rows=512,
    iterations=500,
    lr=3e-2,
):
    """The policy's parameters after PPO."""
    opt = optimizer.OptimizerConfig(lr=lr, schedule="linear", clip=0.0)
    tx = optimizer.make(opt, steps=iterations * cfg.epochs * cfg.minibatches)
    both = networks.Network(init=lambda *_: params, fn=critic(policy_fn))
    return learn(
        ppo.make_learner(reference_fn or policy_fn, both, tx, cfg, ROLLOUT),
        tx,
        params,
        ref_params,
        key,
        lm=lm,
        score=lambda x: place(scores[enumerable.response_of(x)], x.mask),
        prompts=enumerable.prompts(rows),
        iterations=iterations,
        sample_cfg=sample_cfg,
    )["policy"]


@optimised()
def tabular_distances(seeds, **changes):
    """Total variation from pi* of what trained tables sample, both at the sampling temperature."""
    temperature = changes.get("sample_cfg", SAMPLE).temperature

    @jax.jit
    def run(world, key):
        start = {"policy": world.ref_logits, "value": jnp.zeros(PREFIXES)}
        return train(start, world.ref_logits, world.scores, key, **changes)

    def distance(seed):
        world = enumerable.make(seed)
        pi = distribution(run(world, jax.random.key(seed)), temperature)
        return total_variation(pi, optimum(world, temperature)[0])

    return [distance(seed) for seed in seeds]


def at(temperature):
    """One temperature for sampling and for learning."""
    return dict(
        sample_cfg=replace(SAMPLE, temperature=temperature),
        policy_fn=networks.at_temperature(TABLE.policy_fn, temperature),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ppo_on_a_table_reaches_the_optimum(temperature):
    assert max(tabular_distances((0, 1), **at(temperature))) < GATE


# What misses the gate by thirty times or more; measured .08 for the temperature, .5 and up for the rest
CONTROLS = {
    "k3 in the reward": dict(cfg=PPOConfig(kl_in_reward="k3")),
    "k1 in the loss": dict(cfg=PPOConfig(kl_in_reward="none", kl_in_loss="k1")),
    # Left out of the loss alone it would hardly show: at pi* the advantages vanish, whatever the ratio
    "temperature left out": at(0.7) | dict(policy_fn=TABLE.policy_fn),
    "temperature left out of the reference": at(0.7) | dict(reference_fn=TABLE.policy_fn),
    "logits off by one": dict(policy_fn=shifted),
    "score on padding": dict(place=on_padding),
}


@pytest.mark.parametrize("change", CONTROLS.values(), ids=CONTROLS.keys())
def test_one_wrong_line_misses_the_optimum(change):
    assert tabular_distances((0,), **change)[0] > 30 * GATE


@partial(jax.jit, static_argnums=0)
def table_of(cfg: ModelConfig, params):
    """A transformer's logits after each prefix [40, 4], by the uncached forward pass."""
    tokens, attention_mask, mask = (jnp.asarray(x) for x in enumerable.responses())
    logits = transformer.Transformer(cfg).apply({"params": params}, tokens, attention_mask)
    ends = jnp.sum(mask, axis=1)[:PREFIXES] - 1  # the columns that EOS is said after
    return logits[jnp.arange(PREFIXES), ends]


def every_response(table):
    """All responses as if sampled once each, and their log-probabilities [121] under a table."""
    seen = Samples(
        *map(jnp.asarray, enumerable.responses()), logprobs=jnp.zeros(()), ended=jnp.zeros(())
    )
    logprobs, _ = TABLE.policy_fn(table, seen.tokens, seen.attention_mask, last=LENGTH)
    logprobs = jnp.where(seen.mask, logprobs, 0.0)
    return seen._replace(logprobs=logprobs), jnp.sum(logprobs, axis=1)


def test_at_the_optimum_the_advantage_of_every_token_is_zero():
    world = enumerable.make(3)
    pi_star, best = optimum(world)
    critic = jnp.float32(enumerable.soft_values(world))
    np.testing.assert_allclose(critic[0], best, rtol=1e-6)
    params = {"policy": jnp.float32(enumerable.logits_of(pi_star)), "value": critic}
    samples, logprobs = every_response(params["policy"])
    np.testing.assert_allclose(jnp.exp(logprobs), pi_star, rtol=1e-4)

    actor_critic_fn = networks.with_values(TABLE.policy_fn, enumerable.apply)
    annotate = rollout.make_annotate_with_values(TABLE.policy_fn, actor_critic_fn, ROLLOUT)
    seen = annotate(params, world.ref_logits, samples)
    batch = rollout.with_rewards(seen, world.scores, ROLLOUT)
    prepared, _ = ppo.prepare(batch, jnp.float32(BETA), PPOConfig(whiten_advantages=False))
    np.testing.assert_allclose(prepared.advantages, 0.0, atol=2e-5)
    other, _ = ppo.prepare(batch, jnp.float32(0.6), PPOConfig(whiten_advantages=False))
    assert jnp.max(jnp.abs(other.advantages)) > 0.1


@pytest.mark.parametrize(
    "kinds, exact",
    [
        (dict(kl_in_reward="k1"), True),
        (dict(kl_in_reward="k2"), False),
        (dict(kl_in_reward="k3"), False),
        (dict(kl_in_reward="none", kl_in_loss="k1"), False),
        (dict(kl_in_reward="none", kl_in_loss="k2"), False),
        (dict(kl_in_reward="none", kl_in_loss="k3"), False),
    ],
)
def test_the_expected_gradient_is_that_of_the_regularised_return_for_k1_in_the_reward(kinds, exact):
    """With lambda 1 and any critic, each response weighted by its probability: grad J / E[length]."""
    world, rng = enumerable.make(4), np.random.default_rng(0)
    policy = world.ref_logits + jnp.float32(rng.normal(size=world.ref_logits.shape))
    params = {"policy": policy, "value": jnp.float32(rng.normal(size=PREFIXES))}
    _, ref_logprobs = every_response(world.ref_logits)

    def regularised_return(table):
        _, logprobs = every_response(table)
        return jnp.vdot(jnp.exp(logprobs), world.scores - BETA * (logprobs - ref_logprobs))

    samples, logprobs = every_response(policy)
    weights = jnp.exp(logprobs)[:, None] * samples.mask
    length = jnp.sum(weights)
    want = jax.grad(regularised_return)(policy) / length

    cfg = PPOConfig(lam=1.0, whiten_advantages=False, **kinds)
    actor_critic_fn = networks.with_values(TABLE.policy_fn, enumerable.apply)
    annotate = rollout.make_annotate_with_values(TABLE.policy_fn, actor_critic_fn, ROLLOUT)
    seen = annotate(params, world.ref_logits, samples)
    batch = rollout.with_rewards(seen, world.scores, ROLLOUT)
    batch, _ = ppo.prepare(batch, jnp.float32(BETA), cfg)

    def loss(params):
        frozen = {"kl_coef": jnp.float32(BETA)}
        loss_of = partial(ppo.loss, actor_critic_fn=actor_critic_fn, cfg=cfg)
        return loss_of(params, frozen, batch, weights / length)[0]

    error = jnp.max(jnp.abs(-jax.grad(loss)(params)["policy"] - want)) / jnp.max(jnp.abs(want))
    assert (error < 1e-5) if exact else (error > 0.05), error


@pytest.mark.slow
@optimised()
def test_ppo_on_a_transformer_with_cached_sampling_comes_near_the_optimum():
    cfg = ModelConfig(vocab_size=4, context=1 + LENGTH, layers=1, d_model=32, tied=False)
    lm = networks.language_model(cfg)
    critic = networks.actor_critic(lm)
    key = jax.random.key(0)
    reference = jax.jit(lm.init)(key)
    world = enumerable.make(0)._replace(ref_logits=table_of(cfg, reference))
    pi_star, _ = optimum(world)
    assert total_variation(distribution(world.ref_logits), pi_star) > 0.5

    @jax.jit
    def run(reference, scores, key):
        return train(
            critic.init(reference),
            reference,
            scores,
            key,
            lm=lm,
            policy_fn=lm.policy_fn,
            critic=lambda policy_fn: critic.fn,
            cfg=PPOConfig(epochs=2, minibatches=2),
            iterations=400,
            lr=5e-3,
        )

    trained = run(reference, world.scores, key)
    # .02 to .10 over seeds, and one seed moves as far between two kinds of CPU; with k3 in the
    # reward, or k1 in the loss, .27
    assert total_variation(distribution(table_of(cfg, trained)), pi_star) < 0.15
