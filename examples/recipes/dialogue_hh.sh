#!/usr/bin/env bash
# Helpful and harmless dialogues: SFT on the chosen answers, a reward model, PPO (Bai et al., 2022).
#
# It needs a GPU, a hub, and Anthropic's pairs (harmless-base and helpful-base, train.jsonl.gz) in hh/. IT WAS NOT RUN
# HERE. Published accuracies of reward models on HH: about 62 % (13M parameters) to 72 % (52B); about 63 % of people
# agree with each other.
set -euo pipefail
MODEL=${MODEL:-EleutherAI/pythia-1.4b}
exec python launch.py ppo --pretrained "$MODEL" --model.dtype bfloat16 --model.remat --lora.rank 16 \
  --data.comparisons 'hh/*.jsonl.gz' --data.prompt-length 512 --sample.length 128 --rollout.missing-eos-penalty 1 \
  --sft.steps 1000 --sft.batch-size 64 --sft.optimizer.lr 1e-4 --sft.microbatches 8 \
  --reward.epochs 1 --reward.batch-size 64 --reward.optimizer.lr 1e-4 --reward.microbatches 8 \
  --rl.iterations 1000 --rl.batch-size 256 --rl.optimizer.lr 1e-5 --rl.kl-coef 0.05 --rl.value-from reward \
  --ppo.microbatches 16 "$@"
