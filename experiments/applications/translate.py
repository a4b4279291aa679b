"""Translation, from preferences: SFT, a reward model and RLOO.

    python launch.py translate

trains on clauses of a small part of German and their English (`rlhf_jax/tasks/translate.py`). The
demonstrations are by translators who keep the German order, miss agreement, take the wrong sense of
"Bank" or leave words out, each with a known probability, and get one clause in five right.

    python launch.py translate --data.corpus FILES --data.comparisons FILES --data.prompts FILES

does the same on your files, which take the place of the generated clauses.

A real run needs a GPU and was not made here: SFT on WMT 2014, German to English (`wmt14_translate/de-en` in
TFDS), with a published model and LoRA, then RLOO with four draws of a prompt (Ahmadian et al., 2024) against
the chrF (Popovic, 2015) of a response with the "answer" of its row, a Python reward (docs/data.md):

    python launch.py translate --pretrained Qwen/Qwen3-0.6B --model.dtype bfloat16 --model.remat \\
      --data.corpus wmt14-de-en.jsonl --data.prompts wmt14-de-en-prompts.jsonl \\
      --data.prompt-length 128 --sample.length 128 --lora.rank 16 --sft.steps 2000 \\
      --sft.batch-size 128 --sft.microbatches 8 --sft.optimizer.lr 1e-4 --rl.reward chrf.py:chrf \\
      --rl.iterations 500 --rl.batch-size 256 --rl.optimizer.lr 1e-5 --rl.kl-coef 0.02 --pg.group 4
"""

from rlhf_jax.algorithms import policy_gradient
from rlhf_jax.pipeline import learners, on_policy, people, results, stages
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.pipeline.rl_settings import PolicyGradientRun

order = 3  # position in the launcher's list
config = PolicyGradientRun(task="translate", pg=policy_gradient.RLOO)


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
    results.conclude(run, "RLOO", reference, said, judges, pairs=pairs, facts=facts)
