"""TRL's PPO, of the last release that has it, an iteration at a time: a peer's side."""

import os
import tempfile
from pathlib import Path

import datasets
import torch
import transformers
from trl.experimental.ppo import PPOConfig, PPOTrainer

from bench import works
from bench.replication.trl_side import PLAIN
from bench.sides import protocol, words


class Paced(transformers.TrainerCallback):
    """Waits at the gate before every iteration."""

    def __init__(self, gate: protocol.Gate):
        self.gate = gate

    def on_train_begin(self, args, state, control, **_):
        """The first iteration comes."""
        self.gate.wait()

    def on_step_end(self, args, state, control, **_):
        """An iteration has ended."""
        self.gate.wait()


def main():
    """Serves what the parent asks for."""
    asked, gate = protocol.settings(), protocol.Gate()
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    transformers.set_seed(0)
    work, folder = works.Work(**asked.work), Path(asked.folder)
    policy = lambda: transformers.AutoModelForCausalLM.from_pretrained(
        folder / "policy", dtype=torch.float32
    )
    judge = lambda name: transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / name, num_labels=1, dtype=torch.float32
    )
    vocabulary = transformers.AutoConfig.from_pretrained(folder / "policy").vocab_size
    prompts = works.tokens(asked.name, work, vocabulary).tolist()
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=tempfile.mkdtemp(),
            seed=0,
            total_episodes=10**5 * work.rows,
            per_device_train_batch_size=work.rows,
            gradient_accumulation_steps=1,
            num_ppo_epochs=work.epochs,
            num_mini_batches=1,
            local_rollout_forward_batch_size=work.rows,
            response_length=work.response,
            stop_token_id=None,
            kl_coef=works.KL,
            vf_coef=0.1,
            gamma=1.0,
            lam=0.95,
            learning_rate=works.LR,
            adam_epsilon=1e-5,
            **PLAIN,
        ),
        processing_class=words.tokenizer(vocabulary),
        model=policy(),
        ref_model=policy(),
        reward_model=judge("reward"),
        value_model=judge("policy"),
        train_dataset=datasets.Dataset.from_dict({"input_ids": prompts * 8}),
        callbacks=[Paced(gate)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
