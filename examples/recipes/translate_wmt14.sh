#!/usr/bin/env bash
# German to English: SFT on WMT14, then RLOO with chrF against the reference translation as a verifiable reward.
#
# It needs a GPU and a hub; TFDS prepares wmt14_translate with the extra [tensorflow]. IT WAS NOT RUN HERE, and no
# published run has exactly these settings: learning rates and KL coefficient are those of the TL;DR recipe.
set -euo pipefail
MODEL=${MODEL:-Qwen/Qwen2.5-0.5B}
exec python launch.py translate --pretrained "$MODEL" --model.dtype bfloat16 --model.remat \
  --data.corpus 'tfds:wmt14_translate/de-en:train[:5%]' --data.corpus-fields.prompt de --data.corpus-fields.response en \
  --data.prompts 'tfds:wmt14_translate/de-en:train[5%:6%]' --data.prompts-fields.prompt de --data.prompts-fields.answer en \
  --data.prompt-length 128 --sample.length 128 --rl.reward verifiers:chrf \
  --sft.steps 2000 --sft.batch-size 64 --sft.optimizer.lr 1e-5 --sft.optimizer.schedule cosine --sft.microbatches 4 \
  --rl.iterations 1000 --rl.batch-size 256 --rl.optimizer.lr 3e-6 --rl.kl-coef 0.05 "$@"
