"""Policy gradients without a critic: other responses are the baseline of each response.

    reinforce   REINFORCE, with the mean of all other responses as baseline (Williams, 1992)
    rloo        RLOO, with the mean of the prompt's other responses as baseline (Ahmadian et al., 2024)
    grpo        GRPO, with advantages in standard deviations of the group's scores (Shao et al., 2024)
    dr_grpo     Dr. GRPO, without division by length and standard deviation (Liu et al., 2025)
    dapo        DAPO, with an asymmetric clip, token mean and overlong shaping (Yu et al., 2025)
    gspo        GSPO, with one clipped ratio per response, its tokens' geometric mean (Zheng et al., 2025)

The shared stages are those of `ppo`. With --start-from RUN they are copied from a run, and a method takes
less than a minute more. Gold before training is -0.39 (seed 0):

    method       gold    KL   score   notes
    reinforce    1.42   3.5    2.34
    rloo         1.43   3.5    2.34
    grpo         1.36   3.6    2.23   groups are 8 here and 64 in the paper
    dr_grpo      1.41   3.6    2.31   nothing holds it to the reference, as published
    dapo        -1.18  10.6    2.83   over-optimizes; with --pg.kl-in-reward k1: 1.18 at a KL of 4.2
    gspo        -2.47  18.0    2.90   over-optimizes; with --pg.kl-in-reward k1: 1.22 at a KL of 3.9

GRPO's k3 in the loss has another optimum than pi_ref exp(r / beta); --pg.kl-in-loss none --pg.kl-in-reward
k1 has that one. DAPO's dynamic sampling is --rl.refill 2: later prompts replace groups without signal.
"""

from dataclasses import replace

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import PolicyGradientRun

order = 4  # position in the launcher's list
configs = {
    "reinforce": PolicyGradientRun(pg=policy_gradient.REINFORCE),
    "rloo": PolicyGradientRun(pg=policy_gradient.RLOO),
    "grpo": PolicyGradientRun(pg=replace(policy_gradient.GRPO, group=8)),
    "dr_grpo": PolicyGradientRun(pg=policy_gradient.DR_GRPO),
    "dapo": PolicyGradientRun(pg=replace(policy_gradient.DAPO, group=8)),
    "gspo": PolicyGradientRun(pg=replace(policy_gradient.GSPO, group=8)),
}


def main(cfg: PolicyGradientRun, name: str):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare(name, cfg, learners.batch_sizes(cfg, "pg", cfg.pg))
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    method = learners.with_policy_gradient(run, name, reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)
    said = results.respond(run, params)
    judges = results.Judges(reward, held_out_reward)
    results.conclude(run, name.upper(), reference, said, judges, pairs=pairs, facts=facts)
