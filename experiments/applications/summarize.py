"""Summaries of one line, from preferences: SFT, a reward model and PPO (Stiennon et al., 2020).

    python launch.py summarize

trains on generated reports of five facts that matter more or less (`rlhf_jax/tasks/summarize.py`). The
demonstrations choose facts with little regard to their weight, get one in ten wrong, sometimes invent one,
and are sometimes padded; people who know better compare the summaries of the policy that learned from
them. Seven minutes on one CPU core lead to (seed 0):

                            before   after   best
    gold                     -0.10    0.64   1.37
    faithful summaries        0.56    0.65   1
    words, "." included        9.1     7.7
    win rate over SFT                 0.76           at a KL of 1.2 nats a response

SFT ends at 6.73 nats a response, where the demonstrations' entropy is 6.34, and the reward model is right on
0.725 of the held-out pairs (0.858 is possible): it sees what matters, what is too long and what is padding,
but often not whether the report says so.

    python launch.py summarize --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your files, which take the place of the generated reports.

The published recipe for TL;DR (Stiennon et al., 2020; Huang et al., 2024), one epoch of SFT and of reward
modelling and a million episodes of PPO, needs a GPU and was not run here: examples/recipes/summarize_tldr.sh.
"""

from dataclasses import replace

from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import PPORun
from rlhf_jax.pipeline.stages import RewardConfig, SFTConfig

order = 2  # position in the launcher's list
config = PPORun(
    task="summarize",
    sft=SFTConfig(steps=2500, eval_every=250),
    reward=RewardConfig(epochs=3.0),
    rl=replace(PPORun().rl, kl_coef=0.2),
)


def main(cfg: PPORun):
    """Runs the missing stages of the experiment, and prints its results."""
    # texts, tokenizer, network and folder of the run; None: it is finished, and was shown
    run = prepare("summarize", cfg, learners.batch_sizes(cfg, "ppo", cfg.ppo))
    if run is None:
        return

    # 1. a language model that summarises as the writers do
    reference, facts = stages.reference(run)

    # 2. people compare two of its summaries of a report, and two reward models learn from them
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)

    # 3. PPO against the first of them
    method = learners.with_ppo(run, reference, reward)
    params, _ = on_policy.train(run, method, reference, reward, held_out_reward)

    # 4. the results, on held-out reports
    said = results.respond(run, params["policy"])
    judges = results.Judges(reward, held_out_reward)
    results.conclude(
        run, "PPO", reference, said, judges, pairs=pairs, facts=facts,
        overlaps=("ROUGE-1", "ROUGE-2", "ROUGE-L"),
    )  # fmt: skip
