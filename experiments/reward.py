"""A reward model alone, from comparisons in JSONL: held-out accuracy, length baseline, calibration.

    python launch.py reward --data.comparisons FILES

splits the comparisons by prompt, trains a tokenizer, a language model of the chosen responses (or of
--data.corpus FILES) and a reward model that starts from it, and prints how often it agrees with people it
has not seen. A minute or two on two CPU cores for a few thousand pairs.
"""

from dataclasses import dataclass, replace

import numpy as np

from experiments import inference, inputs, pretrained, stages, verdict
from rlhf_jax import parallel, run
from rlhf_jax.data import dialogues
from rlhf_jax.data.comparisons import (
    ComparisonFields,
    encode_comparisons,
    identical,
    read_comparisons,
)
from rlhf_jax.data.demonstrations import read_demonstrations
from rlhf_jax.data.splits import split
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig


@dataclass(frozen=True)
class RewardDataConfig:
    """What is learned from."""

    comparisons: str = ""
    """JSONL files of preferences (commas and globs allowed)."""
    corpus: str = ""
    """JSONL files for the language model: rows with "text", with "prompt" and "response", or with "messages"
    that end with an answer. Empty: the chosen responses."""
    fields: ComparisonFields = ComparisonFields()
    prompt_length: int = 64
    """Columns of a prompt, in tokens (P); longer ones keep their end."""
    length: int = 128
    """Columns of a response, EOS included (T); longer ones are cut."""
    held_out: float = 0.2
    """Share of the prompts whose comparisons are judged and not learned."""
    vocab_size: int = 4096
    """Most tokens of a tokenizer that is trained here."""


@dataclass(frozen=True)
class Config(pretrained.Config):
    """Settings of the reward experiment."""

    seed: int = 0
    """Of all that is drawn."""
    run: str = ""
    """Run directory; empty: runs/reward/HASH-OF-CONFIG."""
    devices: str = "auto"
    """auto, device (the first one), pmap, or mesh, as mesh:data=-1,fsdp=2,tensor=2 (-1: the devices left)."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    data: RewardDataConfig = RewardDataConfig()
    model: ModelConfig = ModelConfig(d_model=64, context=256)
    sft: stages.SFTConfig = stages.SFTConfig(steps=200, batch_size=32, eval_every=40)
    reward: stages.RewardConfig = stages.RewardConfig(epochs=1.0)


config = Config()
AGAIN = "python launch.py reward ... --seed 1 (or any other setting, or --run NEW_FOLDER)"


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    if not cfg.data.comparisons:
        raise ValueError('data.comparisons is "": name JSONL files of preferences')
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    lengths = cfg.data.prompt_length, cfg.data.length
    pretrained.check_context(cfg, lengths)
    networks.check_backend(cfg.model)
    devices = parallel.choose(
        cfg.devices,
        {"sft.batch_size": cfg.sft.batch_size, "reward.batch_size": cfg.reward.batch_size},
        cfg.model.cuts,
    )
    chat = dialogues.template(cfg.tokenizer)
    compared, ties = read_comparisons(cfg.data.comparisons, cfg.data.fields, cfg.seed, chat)
    train, held_out = split(compared, lambda c: c.group, cfg.data.held_out, cfg.seed)
    corpus = [(c.prompt, c.chosen) for c in dict.fromkeys(train)]
    if cfg.data.corpus:
        corpus = read_demonstrations(cfg.data.corpus, chat)
    corpus, corpus_held_out = split(corpus, "\n".join, 0.1, cfg.seed)
    folder = run.open_run("reward", cfg, cfg.run, content=lambda: inputs.content(cfg))
    if verdict.stands(folder):
        print("this run is finished")
        return verdict.show(folder, AGAIN)
    words = stages.read_tokenizer(folder, cfg.tokenizer, corpus, cfg.data.vocab_size)
    cfg, lm = pretrained.fitted(cfg, words)

    encode = lambda texts: stages.demonstrations(words, texts, lengths)
    demos_held_out, judged = encode(corpus_held_out), encode_comparisons(words, held_out, *lengths)
    demos = run.mapped(folder / "data" / "demonstrations", lambda: encode(corpus), demos_held_out)
    of_pairs = lambda: encode_comparisons(words, train, *lengths)
    pairs = run.mapped(folder / "data" / "reward", of_pairs, judged)
    trunk, sft_loss = stages.reference(folder, cfg, devices, lm, demos, demos_held_out)
    params = stages.train_reward(
        folder, "reward", cfg.reward, devices, lm, trunk,
        pairs, demos_held_out, cfg.seed, wandb=cfg.wandb, adapters=cfg.lora,
    )  # fmt: skip
    scores = inference.both_scores(devices, networks.reward_model(lm).fn, params, judged)
    results = verdict.of_rewards(scores, train, held_out) | {
        "pairs": {"train": len(train), "held out": len(held_out), "ties left out": ties},
        "held-out pairs that are one text when cut to data.length": int(np.sum(identical(judged))),
        "SFT held-out loss, nats a token": sft_loss,
    }
    verdict.write(folder, results)
    return verdict.show(folder, AGAIN)
