"""PPO with a critic, against the reward model, a Python reward, or both (Ziegler et al., 2019).

    python launch.py ppo

The shared stages are those of every method; --start-from RUN copies them from a run, and PPO takes less
than a minute more. The application `sentiment` also reports its results token by token.
"""

from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import PPORun

order = 3  # position in the launcher's list
config = PPORun()


def main(cfg: PPORun):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("ppo", cfg, learners.batch_sizes(cfg, "ppo", cfg.ppo))
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    method = learners.with_ppo(run, reference, reward)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)
    said = results.respond(run, params["policy"])
    judges = results.Judges(reward, held_out_reward)
    results.conclude(run, "PPO", reference, said, judges, pairs=pairs, facts=facts)
