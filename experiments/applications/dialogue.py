"""A dialogue of several turns, from people's judgements of whole dialogues: SFT, a reward model and RLOO.

python launch.py dialogue
"""

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import GroupRLConfig, PolicyGradientRun
from rlhf_jax.pipeline.stages import RewardConfig, SFTConfig
from rlhf_jax.pipeline.texts import DataConfig

order = 4  # position in the launcher's list
config = PolicyGradientRun(
    task="dialogue",
    data=DataConfig(reviews=8000, pairs=6000),
    sft=SFTConfig(
        steps=500, eval_every=100, batch_size=32,
        optimizer=OptimizerConfig(lr=4e-3, warmup=50, b2=0.99, eps=1e-8),
    ),
    reward=RewardConfig(batch_size=32),
    pg=policy_gradient.RLOO,
    rl=GroupRLConfig(iterations=60, kl_coef=0.05),
)  # fmt: skip


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
