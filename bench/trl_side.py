"""The side of bench.trl_ppo that needs PyTorch and TRL, and the reward, which both sides call.

    python bench/trl_side.py SETTINGS.json

Writes the checkpoint that SETTINGS names where there is none; with a `result` among the settings it then
trains by TRL's PPOTrainer, and writes its metrics to that file and the samples of every iteration beside it.
"""

import json
import pathlib
import sys
from types import SimpleNamespace

import numpy as np

ENDING = 3.0


def reward(tokens, eos: int | None) -> float:
    """One for each token above the one before it, less one for each below; `ENDING` more for an end.

    `tokens` are the last of the prompt and the response, `eos` (no step itself) included.
    """
    steps = [int(b > a) - int(b < a) for a, b in zip(tokens, tokens[1:], strict=False) if b != eos]
    return float(sum(steps)) + ENDING * (eos is not None and tokens[-1] == eos)


def make_checkpoint(folder: pathlib.Path, s: SimpleNamespace):
    """A random GPT-2 as transformers initialises and saves it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=s.vocabulary,
        n_positions=s.prompt + s.length,
        n_embd=s.width,
        n_layer=s.layers,
        n_head=s.heads,
        bos_token_id=s.vocabulary - 1,
        eos_token_id=s.vocabulary - 1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
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
            rows = [[t for t in row[s.prompt - 1 :] if t >= 0] for row in tokens.tolist()]
            scores = torch.tensor([reward(row, s.eos) for row in rows])
            room = s.prompt + s.length - tokens.shape[1]
            self.seen.append(np.pad(tokens.numpy(), ((0, 0), (0, room)), constant_values=-1))
            return scores[:, None, None].expand(-1, tokens.shape[1], 1)

    transformers.set_seed(s.seed)
    torch.set_num_threads(1)
    load = transformers.GPT2LMHeadModel.from_pretrained
    value = transformers.GPT2ForSequenceClassification.from_pretrained(s.checkpoint, num_labels=1)
    value.score = torch.nn.Linear(s.width, 1)  # TRL's has no bias and starts at random
    torch.nn.init.zeros_(value.score.weight)
    torch.nn.init.zeros_(value.score.bias)
    # the pad is no token of the model: TRL takes any pad that was sampled for the response's end
    words = {str(i): i for i in range(s.vocabulary)} | {"<pad>": s.vocabulary}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "0")),
        pad_token="<pad>",
        eos_token=str(s.vocabulary - 1),
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
            num_ppo_epochs=s.epochs,
            num_mini_batches=s.minibatches,
            local_rollout_forward_batch_size=s.batch,
            response_length=s.length,
            stop_token_id=s.eos,
            missing_eos_penalty=None,
            temperature=1.0,
            kl_coef=s.kl_coef,
            cliprange=s.clip,
            cliprange_value=s.value_clip,
            vf_coef=s.value_coef,
            gamma=s.gamma,
            lam=s.lam,
            whiten_rewards=False,
            learning_rate=s.lr,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            adam_epsilon=s.adam_eps,
            weight_decay=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
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
        make_checkpoint(pathlib.Path(s.checkpoint), s)
    if s.result:
        metrics, tokens = train(s)
        np.save(pathlib.Path(s.result).with_suffix(".npy"), tokens.astype(np.int16))
        pathlib.Path(s.result).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(sys.argv[1])
