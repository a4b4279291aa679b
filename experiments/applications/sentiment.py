"""From people's preferences to a better policy: SFT, a reward model and PPO.

    python launch.py sentiment

trains on generated movie reviews whose true sentiment ("gold") is known, in three to five minutes on two CPU
cores: gold rises from about 0 to above 1, in reference standard deviations.

    python launch.py sentiment --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your files and data sets (docs/data.md). Gold is unknown there; besides the maximised reward
model, a held-out one, trained on other comparisons, judges the policy. examples/recipes/sentiment_imdb.sh is
a real run, of GPT-2 (Ziegler et al., 2019); it needs a GPU and was not made here.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.pipeline import generation, learners, on_policy, people, results, scoring, stages
from rlhf_jax.pipeline.prepare import Prepared, prepare
from rlhf_jax.pipeline.rl_settings import PPORun

order = 1  # position in the launcher's list
# four times the KL penalty of `ppo`: twice as many different responses, at a gold that is no lower
config = PPORun(rl=replace(PPORun().rl, kl_coef=0.4))


def main(cfg: PPORun):
    """Runs the missing stages of the experiment, and prints its results."""
    # texts, tokenizer, network and folder of the run; None: it is finished, and was shown
    run = prepare("sentiment", cfg, learners.batch_sizes(cfg, "ppo", cfg.ppo))
    if run is None:
        return

    # 1. a language model, from texts
    reference, facts = stages.reference(run)

    # 2. people compare two of its responses to a prompt, and two reward models learn from them
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)

    # 3. PPO against the first of them
    method = learners.with_ppo(run, reference, reward)
    params, kl_coef = on_policy.train(run, method, reference, reward, held_out_reward)

    # 4. the results, on held-out prompts
    said = results.respond(run, params["policy"])
    judges = results.Judges(reward, held_out_reward)
    tokens = by_token(run, method, params, reference, kl_coef, said, scoring.maximised(run, reward))
    results.conclude(run, "PPO", reference, said, judges, tokens=tokens, pairs=pairs, facts=facts)


def by_token(run: Prepared, method, params, reference, kl_coef, said, reward_of) -> dict:
    """Value, advantage and reward of each token of the responses [N, T], as PPO would train on them."""
    both = run.devices.share((params, reference))
    annotate = lambda samples: method.learner.annotate(*both, samples)
    seen = generation.by_batches(run.devices, annotate, said.samples)
    scores = reward_of(results.held_out_rows(run), said)
    rolled = rollout.with_rewards(jax.tree.map(jnp.asarray, seen), scores, run.cfg.rollout)
    batch, _ = ppo.prepare(rolled, kl_coef, run.cfg.ppo)
    penalised = ppo.penalised_rewards(rolled, kl_coef, run.cfg.ppo)
    return {"value": rolled.values, "advantage": batch.advantages, "reward": penalised}
