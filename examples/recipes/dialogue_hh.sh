#!/usr/bin/env bash
# Helpful dialogues: a reward model from human comparisons (Bai et al., 2022), then RLOO from an instructed model.
#
# It needs a GPU, a hub, and the extra [datasets]. IT WAS NOT RUN HERE. Published accuracies of reward models on HH:
# about 62 % (13M parameters) to 72 % (52B); about 63 % of people agree with each other.
set -euo pipefail
MODEL=${MODEL:-Qwen/Qwen2.5-1.5B-Instruct}
exec python launch.py dialogue --reference "$MODEL" --model.dtype bfloat16 --model.remat --lora.rank 16 \
  --data.comparisons hf:trl-lib/hh-rlhf-helpful-base:train --data.prompts hf:trl-lib/hh-rlhf-helpful-base:train \
  --data.prompt-length 512 --sample.length 256 --rollout.missing-eos-penalty 1 \
  --reward.epochs 1 --reward.batch-size 64 --reward.optimizer.lr 1e-5 --reward.microbatches 8 \
  --rl.batch-size 512 --rl.iterations 300 --rl.optimizer.lr 1e-6 --rl.kl-coef 0.05 --pg.microbatches 16 "$@"
