#!/usr/bin/env bash
# German to English: SFT on WMT 2014, then RLOO with four draws (Ahmadian et al., 2024) against the chrF (Popović, 2015)
# of a response with the reference translation.
#
# It needs a GPU and a hub; TFDS prepares wmt14_translate with the extra [tensorflow]. IT WAS NOT RUN HERE, and no
# published run has exactly these settings.
set -euo pipefail
MODEL=${MODEL:-Qwen/Qwen3-0.6B}
exec python launch.py translate --pretrained "$MODEL" --model.dtype bfloat16 --model.remat --lora.rank 16 \
  --data.corpus 'tfds:wmt14_translate/de-en:train[:5%]' --data.corpus-fields.prompt de --data.corpus-fields.response en \
  --data.prompts 'tfds:wmt14_translate/de-en:train[5%:6%]' --data.prompts-fields.prompt de --data.prompts-fields.answer en \
  --data.prompt-length 128 --sample.length 128 --rl.reward verifiers:chrf \
  --sft.steps 2000 --sft.batch-size 128 --sft.optimizer.lr 1e-4 --sft.microbatches 8 \
  --rl.iterations 500 --rl.batch-size 256 --rl.optimizer.lr 1e-5 --rl.kl-coef 0.02 --pg.group 4 "$@"
