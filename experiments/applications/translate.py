"""Translation, from preferences: SFT, a reward model and RLOO.

    python launch.py translate

trains on clauses of a small part of German and their English (`rlhf_jax/tasks/translate.py`). The
demonstrations are by translators who keep the German order, miss agreement, take the wrong sense of
"Bank", leave words out or add some, each with a known probability, and get one clause in five right.
Three minutes on one CPU core lead from there to seven in ten (seed 0):

                            before   after   best
    gold                     -0.05    1.06   1.30
    exact translations        0.21    0.70   1
    win rate over SFT                 0.84           at a KL of 1.1 nats a response

SFT ends at 3.37 nats a response, where the demonstrations' entropy is 3.31, and the reward model is right on
0.778 of the held-out pairs (0.842 is possible). With --reward.epochs 2 --rl.iterations 100 it notices order
and missing words, but agreement less: gold ends at 0.58, and 0.29 are exact.

    python launch.py translate --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your files, which take the place of the generated clauses.

A real run, on WMT 2014 with a published model and chrF as a verifiable reward, needs a GPU and was not made
here: examples/recipes/translate_wmt14.sh.
"""

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import GroupRLConfig, PolicyGradientRun
from rlhf_jax.pipeline.stages import RewardConfig

order = 3  # position in the launcher's list
config = PolicyGradientRun(
    task="translate",
    reward=RewardConfig(epochs=4.0),
    pg=policy_gradient.RLOO,
    rl=GroupRLConfig(iterations=150),
)


def main(cfg: PolicyGradientRun):
    """Runs the missing stages of the experiment, and prints its results."""
    # texts, tokenizer, network and folder of the run; None: it is finished, and was shown
    run = prepare("translate", cfg, learners.batch_sizes(cfg, "pg", cfg.pg))
    if run is None:
        return

    # 1. a language model that translates as the translators do, errors included
    reference, facts = stages.reference(run)

    # 2. people compare two of its translations of a clause, and two reward models learn from them
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)

    # 3. RLOO against the first of them
    method = learners.with_policy_gradient(run, "rloo", reference)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)

    # 4. the results, on held-out clauses
    said = results.respond(run, params)
    judges = results.Judges(reward, held_out_reward)
    results.conclude(
        run, "RLOO", reference, said, judges, pairs=pairs, facts=facts,
        overlaps=("BLEU", "chrF", "exact match"),
    )  # fmt: skip
