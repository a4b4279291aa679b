#!/usr/bin/env bash
# GSM8K with GRPO on a published model: learning rate, KL and lengths of verl's examples.
#
# It needs a GPU with 80 GB, a hub, jq, and GSM8K's train.jsonl. IT WAS NOT RUN HERE. The table of verl's baselines goes
# from 36 % (49.6 % in a later version) to 57 % by PPO, and to 54 % by GRPO with adapters.
set -euo pipefail
MODEL=${MODEL:-Qwen/Qwen2.5-0.5B-Instruct}
jq -c '{answer, prompt: [{role: "user",
    content: (.question + " Think step by step, then write #### and the final number.")}]}' train.jsonl > prompts.jsonl
exec python launch.py answer --reference "$MODEL" --data.prompts prompts.jsonl \
  --data.prompt-length 512 --sample.length 1024 --model.dtype bfloat16 \
  --rl.batch-size 1024 --pg.minibatches 4 --pg.microbatches 32 --rl.iterations 800 \
  --rl.optimizer.lr 1e-6 --rl.optimizer.schedule constant --rl.kl-coef 0.001 --eval-draws 4 "$@"
