"""The side of `bench trl_ppo` that needs PyTorch and TRL, and the reward, which both sides call.

    python bench/replication/trl_side.py SETTINGS.json

Writes the checkpoint that SETTINGS names where there is none; with a `result` among the settings it then
trains by TRL's PPOTrainer, and writes its metrics to that file and the samples of every iteration beside it.
"""

import itertools
import json
import pathlib
import sys
from types import SimpleNamespace

import numpy as np

VOCABULARY, PROMPT, WIDTH = 64, 4, 64
ENDING = 3.0
PLAIN = dict(  # of TRL 1.12's PPOConfig, in every bench: float32 at a constant rate, and nothing beside
    missing_eos_penalty=None, temperature=1.0, lr_scheduler_type="constant", weight_decay=0.0, use_cpu=True,
    bf16=False, gradient_checkpointing=False, num_sample_generations=0, save_strategy="no",
    report_to="none", disable_tqdm=True,
)  # fmt: skip


def reward(tokens, eos: int | None) -> float:
    """One for each token above the one before it, less one for each below; `ENDING` more for an end.

    `tokens` are the last of the prompt and the response, `eos` (no step itself) included.
    """
    steps = [int(b > a) - int(b < a) for a, b in itertools.pairwise(tokens) if b != eos]
    return float(sum(steps)) + ENDING * (eos is not None and tokens[-1] == eos)


def make_checkpoint(folder: str, length: int):
    """A random GPT-2 of two layers, as transformers initialises and saves it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=PROMPT + length,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def train(s: SimpleNamespace):
    """One seed of PPO: metrics of every iteration, and the tokens [iterations, batch, prompt + length]."""
    import datasets
    import tokenizers
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Reward(torch.nn.Module):
        """The reward as TRL calls a reward model: a backbone, then a score for each column."""

        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.seen = []

        def backbone(self, input_ids, attention_mask, **_):
            """Hands the tokens on as the hidden states, -1 where there is none."""
            return SimpleNamespace(hidden_states=(torch.where(attention_mask, input_ids, -1),))

        def score(self, tokens):
            """The score of a row, in every column of it: TRL reads that of the last token."""
            rows = [[t for t in row[PROMPT - 1 :] if t >= 0] for row in tokens.tolist()]
            scores = torch.tensor([reward(row, s.eos) for row in rows])
            room = PROMPT + s.length - tokens.shape[1]
            self.seen.append(np.pad(tokens.numpy(), ((0, 0), (0, room)), constant_values=-1))
            return scores[:, None, None].expand(-1, tokens.shape[1], 1)

    transformers.set_seed(s.seed)
    torch.set_num_threads(1)
    load = transformers.GPT2LMHeadModel.from_pretrained
    value = transformers.GPT2ForSequenceClassification.from_pretrained(s.checkpoint, num_labels=1)
    value.score = torch.nn.Linear(WIDTH, 1)  # TRL's has no bias and starts at random
    torch.nn.init.zeros_(value.score.weight)
    torch.nn.init.zeros_(value.score.bias)
    # the pad is no token of the model: TRL takes any pad that was sampled for the response's end
    words = {str(i): i for i in range(VOCABULARY)} | {"<pad>": VOCABULARY}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "0")),
        pad_token="<pad>",
        eos_token=str(VOCABULARY - 1),
        padding_side="left",
    )
    judge = Reward()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(pathlib.Path(s.result).with_suffix("")),
            seed=s.seed,
            total_episodes=s.iterations * s.batch,
            per_device_train_batch_size=s.batch,
            gradient_accumulation_steps=1,
            num_ppo_epochs=s.ppo["epochs"],
            num_mini_batches=s.ppo["minibatches"],
            local_rollout_forward_batch_size=s.batch,
            response_length=s.length,
            stop_token_id=s.eos,
            kl_coef=s.kl_coef,
            cliprange=s.ppo["policy_clip"],
            cliprange_value=s.ppo["value_clip"],
            vf_coef=s.ppo["value_coef"],
            gamma=s.ppo["gamma"],
            lam=s.ppo["lam"],
            whiten_rewards=False,
            learning_rate=s.lr,
            optim="adamw_torch",
            adam_epsilon=s.adam_eps,
            **PLAIN,
        ),
        processing_class=tokenizer,
        model=load(s.checkpoint),
        ref_model=load(s.checkpoint),
        reward_model=judge,
        value_model=value,
        train_dataset=datasets.Dataset.from_dict({"input_ids": s.prompts}),
    )
    trainer.train()
    names = {
        "score": "objective/scores",
        "kl": "objective/kl",
        "policy_loss": "loss/policy_avg",
        "value_loss": "loss/value_avg",
    }
    log = [row for row in trainer.state.log_history if "objective/kl" in row]
    return {ours: [row[name] for row in log] for ours, name in names.items()}, np.stack(judge.seen)


def main(settings: str):
    """Does what the file `settings` asks for."""
    s = SimpleNamespace(**json.loads(pathlib.Path(settings).read_text()))
    if not (pathlib.Path(s.checkpoint) / "config.json").exists():
        make_checkpoint(s.checkpoint, s.length)
    if s.result:
        metrics, tokens = train(s)
        np.save(pathlib.Path(s.result).with_suffix(".npy"), tokens.astype(np.int16))
        pathlib.Path(s.result).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1])
