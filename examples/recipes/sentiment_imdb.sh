#!/usr/bin/env bash
# Positive continuations of film reviews: GPT-2, a reward model from labelled reviews, PPO (Ziegler et al., 2019).
#
# It needs a GPU and a hub; TFDS prepares imdb_reviews with the extra [tensorflow]. IT WAS NOT RUN HERE. Published, for
# GPT-2 124M against four-way human comparisons: score -.45 to 1.85 at a KL held at 6 nats.
set -euo pipefail
MODEL=${MODEL:-openai-community/gpt2}
exec python launch.py sentiment --pretrained "$MODEL" --model.dtype bfloat16 \
  --data.corpus tfds:imdb_reviews/plain_text:unsupervised --data.comparisons tfds:imdb_reviews/plain_text:train \
  --data.prompts tfds:imdb_reviews/plain_text:test --data.prompt-words 8 --data.prompt-length 64 --sample.length 24 \
  --sft.steps 1000 --sft.batch-size 64 --sft.optimizer.lr 5e-5 --sft.microbatches 2 \
  --reward.epochs 1 --reward.batch-size 32 --reward.optimizer.lr 5e-5 \
  --rl.iterations 2000 --rl.batch-size 512 --rl.optimizer.lr 1e-5 --rl.kl-coef 0.15 --rl.kl-target 6 \
  --ppo.epochs 4 --ppo.microbatches 8 "$@"
