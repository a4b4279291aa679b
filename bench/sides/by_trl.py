"""TRL's trainers of rewards, SFT, DPO and GRPO, a step at a time: a peer's side.

Its defaults are bfloat16 and gradient checkpointing; both are off here, as they are on the other side. Data
are tokens already, so a step includes no tokenisation, but for GRPO's prompts.
"""

import os
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
import trl
from torch.utils.data import SequentialSampler

from bench import works
from bench.sides import protocol, words

BATCHES = 64
"""Of a data set: what begins a pass over it is not measured often."""


def model(folder: Path, kind=transformers.AutoModelForCausalLM):
    """In float32."""
    return kind.from_pretrained(folder, dtype=torch.float32)


class Paced(transformers.TrainerCallback):
    """Waits at the gate before every step; what a step says is the loss that the trainer saw."""

    def __init__(self, gate: protocol.Gate):
        self.gate, self.losses = gate, []

    def on_train_begin(self, args, state, control, **_):
        """The first step comes."""
        self.gate.wait()

    def on_step_end(self, args, state, control, **_):
        """A step has ended."""
        self.gate.wait(self.losses[-1])


def paced(kind, gate: protocol.Gate):
    """`kind` of trainer, which waits at the gate, takes rows in order, and takes data as they are."""

    class Trainer(kind):
        """Of TRL."""

        def compute_loss(self, *args, **kinds):
            """TRL's; its value is kept."""
            found = super().compute_loss(*args, **kinds)
            first = found[0] if isinstance(found, tuple) else found
            self.paced.losses.append(first.item())
            return found

        def _get_train_sampler(self, dataset=None):
            if kind is trl.GRPOTrainer:  # it repeats prompts
                return super()._get_train_sampler(dataset)
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    def made(**settings):
        trainer = Trainer(**settings)
        trainer.paced = Paced(gate)
        trainer.add_callback(trainer.paced)
        return trainer

    return made


def common(work: works.Work) -> dict:
    """Settings of all trainers."""
    return dict(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=work.rows,
        max_steps=10**6,
        learning_rate=works.LR,
        lr_scheduler_type="constant",
        adam_epsilon=1e-5,
        weight_decay=0.0,
        max_grad_norm=works.CLIP,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def reward(asked, work, tokens, word, gate):
    """The trainer of a reward model."""
    kind = transformers.AutoModelForSequenceClassification
    rows = {name: x.tolist() * BATCHES for name, x in zip(("chosen_ids", "rejected_ids"), tokens)}  # noqa: B905
    return paced(trl.RewardTrainer, gate)(
        model=model(Path(asked.folder) / "reward", kind),
        args=trl.RewardConfig(**common(work)),
        processing_class=word,
        train_dataset=datasets.Dataset.from_dict(rows),
    )


def supervised(asked, work, tokens, word, gate):
    """The trainer on demonstrations."""
    rows = tokens.tolist() * BATCHES
    return paced(trl.SFTTrainer, gate)(
        model=model(Path(asked.folder) / "policy"),
        args=trl.SFTConfig(**common(work)),
        processing_class=word,
        train_dataset=datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}),
    )


def dpo(asked, work, tokens, word, gate):
    """The trainer on pairs; the reference's pass is part of a step, as its default is."""
    P = work.prompt
    parts = {"prompt_ids": tokens[0, :, :P], "chosen_ids": tokens[0, :, P:]}
    parts |= {"rejected_ids": tokens[1, :, P:]}
    return paced(trl.DPOTrainer, gate)(
        model=model(Path(asked.folder) / "policy"),
        ref_model=model(Path(asked.folder) / "policy"),
        args=trl.DPOConfig(**common(work), beta=works.BETA),
        processing_class=word,
        train_dataset=datasets.Dataset.from_dict(
            {name: x.tolist() * BATCHES for name, x in parts.items()}
        ),
    )


def grpo(asked, work, tokens, word, gate):
    """The trainer that samples."""
    prompts = [words.text(row) for row in tokens[:: work.group]] * BATCHES

    def even(completion_ids, **_):
        return [float(works.score(np.array([row]))[0]) for row in completion_ids]

    return paced(trl.GRPOTrainer, gate)(
        model=model(Path(asked.folder) / "policy"),
        reward_funcs=even,
        args=trl.GRPOConfig(
            **common(work),
            num_generations=work.group,
            max_completion_length=work.response,
            temperature=1.0,
            beta=works.KL,
            loss_type="grpo",
        ),
        processing_class=word,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
    )


MAKE = dict(reward=reward, sft=supervised, dpo=dpo, grpo=grpo)


def main():
    """Serves what the parent asks for."""
    asked, gate = protocol.settings(), protocol.Gate()
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    work, folder = works.Work(**asked.work), Path(asked.folder) / "policy"
    vocabulary = transformers.AutoConfig.from_pretrained(folder).vocab_size
    tokens = works.tokens(asked.name, work, vocabulary)
    trainer = MAKE[asked.name](asked, work, tokens, words.tokenizer(vocabulary), gate)
    trainer.train()


if __name__ == "__main__":
    main()
