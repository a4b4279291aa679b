"""A reward model alone, from comparisons: accuracy, calibration, baselines.

    python launch.py reward --data.comparisons FILES

splits the comparisons by prompt, trains a tokenizer, a language model of the chosen responses (or of
--data.corpus FILES) and a reward model that starts from it, and prints how often it agrees with people it
has not seen. A minute or two on two CPU cores for a few thousand pairs.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from rlhf_jax.bounds import Bound, Inside, Seed, Settings, Whole
from rlhf_jax.data import dialogues, tokenizer
from rlhf_jax.data.comparisons import (
    ComparisonFields,
    encode_comparisons,
    identical,
    read_comparisons,
)
from rlhf_jax.data.demonstrations import CorpusFields, Demonstration, read_demonstrations
from rlhf_jax.data.splits import split
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import inference, inputs, lengths, pretrained, stages, verdict, worlds
from rlhf_jax.runs import metrics, run


@dataclass(frozen=True)
class RewardDataConfig(Settings):
    """What is learned from."""

    _main = ("comparisons", "corpus", "prompt_length", "length")

    comparisons: str = ""
    """JSONL files of preferences (commas and globs allowed)."""
    fields: ComparisonFields = ComparisonFields()
    corpus: str = ""
    """JSONL files for the language model: rows with "text", with "prompt" and "response", or with "messages"
    that end with an answer. Empty: the chosen responses."""
    corpus_fields: CorpusFields = CorpusFields()
    prompt_length: Whole = 0
    """Columns of a prompt, in tokens (P); a longer text keeps its end, a longer dialogue its latest messages.
    0: what holds 99 % of the prompts of each file."""
    length: Whole = 0
    """Columns of a response, its end included (T); longer ones are cut. 0: what holds 99 % of them."""
    held_out: Inside = 0.2
    """Share of the prompts whose comparisons are judged and not learned."""
    vocab_size: Annotated[int, Bound(ge=259)] = 4096
    """Most tokens of a tokenizer that is trained here; 256 bytes and three marks are the least."""


@dataclass(frozen=True)
class Config(pretrained.Config):
    """Settings of the reward experiment."""

    _main = ("seed", "run", "devices")

    seed: Seed = 0
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

    def _conditions(self, at: str):
        super()._conditions(at)
        parallel.check_name(self.devices, f"{at}devices")

    def _unread(self) -> dict[str, str]:
        no_sft = {"sft": "a reference takes its place"} if self.reference else {}
        return super()._unread() | no_sft


def read(cfg: RewardDataConfig, seed: int, chat: dialogues.Chat):
    """(corpus, corpus held out, comparisons, comparisons held out, how many ties were left out) of the files.

    Nothing of held-out comparisons is in the corpus, and another tenth of it tells when SFT ends.
    """
    worlds.check_fields(cfg)
    group = lambda row: row.group
    compared, ties = read_comparisons(cfg.comparisons, cfg.fields, seed, chat)
    train, held_out = split(
        compared, group, cfg.held_out, seed, "data.comparisons by data.held_out"
    )
    teaches = worlds.unseen(train, held_out)
    of_pair = lambda c: all(teaches(c.group, c.prompt, x) for x in (c.chosen, c.rejected))
    train = worlds.kept(train, of_pair, "data.comparisons")
    if cfg.corpus:
        texts = read_demonstrations(cfg.corpus, chat, cfg.corpus_fields)
        texts = worlds.kept(texts, lambda x: teaches(x.group, x.prompt, x.response), "data.corpus")
    else:
        texts = dict.fromkeys(Demonstration(c.prompt, c.chosen, c.group) for c in train)
    name = "data.corpus" if cfg.corpus else "the chosen responses of data.comparisons"
    sides = split(texts, group, 0.1, seed + 2, name)
    return *([row[:2] for row in side] for side in sides), train, held_out, ties


order = 2  # of the launcher's list
config = Config()
AGAIN = "python launch.py reward ... --seed 1 (or any other setting, or --run NEW_FOLDER)"


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    if not cfg.data.comparisons:
        raise ValueError('data.comparisons is "": name JSONL files of preferences')
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    lengths.check(cfg)
    networks.check_backend(cfg.model)
    if cfg.wandb:
        metrics.load_wandb()
    pretrained.check_adapters(cfg)
    if cfg.tokenizer:  # which is there already
        words = tokenizer.load(cfg.tokenizer, bos=pretrained.begins(cfg))
        cfg, _ = pretrained.fitted(cfg, words)
    devices = parallel.choose(
        cfg.devices,
        stages.parts("sft", cfg.sft) | stages.parts("reward", cfg.reward),
        cfg.model.cuts,
    )
    chat = dialogues.template(cfg.tokenizer)
    corpus, corpus_held_out, train, held_out, ties = read(cfg.data, cfg.seed, chat)
    folder = run.open_run("reward", cfg, cfg.run, content=lambda: inputs.content(cfg))
    if verdict.stands(folder):
        print("this run is finished")
        return verdict.show(folder, AGAIN)
    of_corpus = "data.corpus" if cfg.data.corpus else "data.comparisons, chosen"
    texts = lambda: [
        lengths.demonstrated(of_corpus, [*corpus, *corpus_held_out]),
        lengths.compared([*train, *held_out]),
    ]
    words = stages.read_tokenizer(
        folder, cfg.tokenizer, corpus, cfg.data.vocab_size, pretrained.begins(cfg)
    )
    cfg = lengths.settled(cfg, folder, words, texts)
    columns = cfg.data.prompt_length, cfg.data.length
    cfg, lm = pretrained.fitted(cfg, words)

    encode = lambda texts: stages.demonstrations(words, texts, columns)
    demos_held_out, judged = encode(corpus_held_out), encode_comparisons(words, held_out, *columns)
    demos = run.mapped(folder / "data" / "demonstrations", lambda: encode(corpus), demos_held_out)
    of_pairs = lambda: encode_comparisons(words, train, *columns)
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
