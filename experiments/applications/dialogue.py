"""Dialogues of several turns, from preferences: SFT, a reward model and RLOO.

    python launch.py dialogue

A customer orders coffee and may change his mind; the policy asks, and orders (`tasks/dialogue.py`). The
customer answers between its turns, and no loss sees his words. It learns from demonstrations by agents who
guess or ignore a change, and from comparisons of two dialogues with one customer. Three and a half minutes
of one CPU core; three seeds give (the best agent has a gold of 0.98, two turns, and always orders right):

    seed   gold before   after                  right orders     turns            KL
    0      -0.09         0.90 (0.86 to 0.94)    0.51 to 0.97     2.23 to 2.03     1.3
    1      -0.05         0.87 (0.80 to 0.92)    0.54 to 0.94     2.34 to 2.00     1.3
    2      -0.05         0.87 (0.81 to 0.92)    0.53 to 0.95     2.28 to 2.06     1.1

The success of a dialogue as a Python reward does as well (gold 0.90, right orders 0.97, with 200 iterations):

    python launch.py dialogue --rl.reward rlhf_jax/tasks/dialogue.py:success

On human comparisons of dialogues (Bai et al., 2022) the policy gives the next turn of each dialogue. That
needs a GPU and was not run here: examples/recipes/dialogue_hh.sh.
"""

from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import GroupRLConfig, PolicyGradientRun
from rlhf_jax.pipeline.stages import RewardConfig, SFTConfig
from rlhf_jax.pipeline.texts import DataConfig

order = 4  # position in the launcher's list
config = PolicyGradientRun(
    task="dialogue",
    data=DataConfig(demonstrations=8000, pairs=6000),
    sft=SFTConfig(steps=1000, eval_every=100),
    reward=RewardConfig(batch_size=32),
    rl=GroupRLConfig(
        iterations=150, save_every=50, kl_coef=0.05, optimizer=OptimizerConfig(lr=2e-3)
    ),
)


def main(cfg: PolicyGradientRun):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("dialogue", cfg, learners.batch_sizes(cfg, "pg", cfg.pg))
    if run is None:
        return

    # 1. a language model, from dialogues of agents with customers; it learns the agents' turns alone
    reference, facts = stages.reference(run)

    # 2. people compare two dialogues with one customer, and two reward models learn from them
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)

    # 3. RLOO against the first of them, in dialogues with the customers
    method = learners.with_policy_gradient(run, "rloo", reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)

    # 4. the results, with customers of held-out prompts
    judges = results.Judges(reward, held_out_reward)
    said = results.respond(run, params)
    results.conclude(run, "RLOO", reference, said, judges, pairs=pairs, facts=facts)
