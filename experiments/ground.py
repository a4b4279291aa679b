"""The ground that every method stands on.

`lay` reads the texts and trains, or restores, what all methods share: a language model (SFT) and two
reward models from what people preferred, one to train against and one to judge by. `outcome.conclude` tells
what a method made of it.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import inference, inputs, pretrained, stages, start_from, verdict, worlds
from rlhf_jax import hosts, parallel, run
from rlhf_jax.batches import Prompts
from rlhf_jax.data import dialogues
from rlhf_jax.data.comparisons import Comparison, encode_comparisons
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.splits import split
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.parallel import Devices
from rlhf_jax.rollout import RolloutConfig
from rlhf_jax.sampling import SampleConfig, check_on_policy
from rlhf_jax.tasks.annotators import AnnotatorConfig


@dataclass(frozen=True)
class Config(pretrained.Config):
    """Settings of the stages that all methods share."""

    seed: int = 0
    """Of all that is drawn."""
    run: str = ""
    """Run directory; empty: runs/EXPERIMENT/HASH-OF-CONFIG."""
    start_from: str = ""
    """Run directory of any method with the same settings of these stages, whose SFT and reward models are
    copied instead of trained."""
    devices: str = "auto"
    """auto, device (the first one), pmap, or mesh, as mesh:data=-1,fsdp=2,tensor=2 (-1: the devices left)."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    reward_model: str = ""
    """Folder or hub name of a classifier of one label, with the policy's tokenizer, that takes the place of
    the reward model; the held-out judge is trained here all the same."""
    data: worlds.DataConfig = worlds.DataConfig()
    annotators: AnnotatorConfig = AnnotatorConfig()
    model: ModelConfig = ModelConfig(d_model=64, context=64, positions="rotary")
    sft: stages.SFTConfig = stages.SFTConfig()
    reward: stages.RewardConfig = stages.RewardConfig()
    sample: SampleConfig = SampleConfig()
    rollout: RolloutConfig = RolloutConfig()
    eval_draws: int = 4
    """Responses to each held-out prompt, before and after."""


class Ground(NamedTuple):
    """What the shared stages leave to a method."""

    cfg: Any  # the experiment's, with what the tokenizer decides filled in
    folder: pathlib.Path
    devices: Devices
    world: worlds.World
    words: Any  # the tokenizer
    lm: networks.LanguageModel
    answers: inference.Responder
    key: jax.Array
    prompts: Prompts  # those to train on, encoded as world.prompts
    pairs: list[Comparison]  # what people preferred, both reward models' halves
    halves: tuple[list[Comparison], list[Comparison]]  # what taught `reward`, and `judge`
    pairs_held_out: list[Comparison]  # what taught neither
    reference: Any  # parameters, on the host: of the SFT policy,
    reward: Any  # of the reward model to train against,
    judge: Any  # and of the one to judge by
    reward_fn: Callable  # (reward, tokens, attention_mask) -> scores [B]
    facts: dict  # what results stand beside

    @property
    def lengths(self) -> tuple[int, int]:
        """Columns of a prompt and of a response."""
        return self.cfg.data.prompt_length, self.cfg.sample.length


def lay(name: str, cfg, batch_sizes: dict[str, int]) -> Ground | None:
    """The shared stages of experiment `name`; None where the whole run is finished, after showing it.

    `batch_sizes` are the method's own, which must divide over the devices.
    """
    check_on_policy(cfg.sample)
    timed = [f.name for f in fields(cfg) if hasattr(getattr(cfg, f.name), "temperature")]
    for part in timed:
        if getattr(cfg, part).temperature not in (1.0, cfg.sample.temperature):
            raise ValueError(
                f"{part}.temperature = {getattr(cfg, part).temperature} is not what samples are drawn "
                "at: set sample.temperature, and the others follow"
            )
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    lengths = cfg.data.prompt_length, cfg.sample.length
    pretrained.check_context(cfg, lengths)
    networks.check_backend(cfg.model)
    sizes = {"sft.batch_size": cfg.sft.batch_size, "reward.batch_size": cfg.reward.batch_size}
    devices = parallel.choose(cfg.devices, sizes | batch_sizes, cfg.model.cuts)
    world = worlds.read(cfg.data, cfg.annotators, cfg.seed, dialogues.template(cfg.tokenizer))
    if cfg.start_from:
        start_from.check(pathlib.Path(cfg.start_from), cfg, Config())
    content = lambda: inputs.content(cfg)
    ignore = (*run.UNTELLING, "start_from")
    folder = run.open_run(name, cfg, cfg.run, ignore=ignore, content=content)
    if verdict.stands(folder):
        print("this run is finished")
        verdict.show(folder, again(name))
        return None
    if cfg.start_from:
        hosts.once(lambda: False, lambda: start_from.copy(pathlib.Path(cfg.start_from), folder))
    words = stages.read_tokenizer(folder, cfg.tokenizer, world.corpus, cfg.data.vocab_size)
    drawn = {part: {"temperature": cfg.sample.temperature} for part in timed}
    for part in drawn:
        if hasattr(getattr(cfg, part), "stop"):
            drawn[part]["stop"] = pretrained.stops(cfg, words)
    cfg = replace(cfg, **{part: replace(getattr(cfg, part), **x) for part, x in drawn.items()})
    cfg = replace(cfg, sample=replace(cfg.sample, pad=words.pad_token_id))
    cfg, lm = pretrained.fitted(cfg, words)
    if cfg.rollout.recompute_logprobs is None:
        differ = cfg.model.dtype != "float32"
        cfg = replace(cfg, rollout=replace(cfg.rollout, recompute_logprobs=differ))
    scorer = cfg.reward_model and pretrained.scorer(cfg, words, lengths, devices.places)
    answers = inference.responder(
        cfg.sample, devices, lm, words, lengths[0], cfg.sft.batch_size * 4
    )
    key = jax.random.key(cfg.seed)

    # 1. a language model, from texts
    kept = lambda name, make, like: run.mapped(folder / "data" / name, make, like)
    encode = lambda texts: stages.demonstrations(words, texts, lengths)
    demos_held_out = encode(world.corpus_held_out)
    demos = kept("demonstrations", lambda: encode(world.corpus), demos_held_out)
    reference, sft_loss = stages.reference(folder, cfg, devices, lm, demos, demos_held_out)

    # 2. two reward models, from what people preferred
    ask = lambda prompts: answers.respond(reference, prompts, jax.random.fold_in(key, 1)).texts
    compared = world.comparisons(folder, ask)
    train, held_out = split(compared, lambda c: c.group, cfg.data.held_out, cfg.seed)
    halves = split(train, lambda c: c.group, 0.5, cfg.seed + 1)
    judged = encode_comparisons(words, held_out, *lengths)
    taught = lambda stage, half: stages.train_reward(
        folder, stage, cfg.reward, devices, lm, reference,
        kept(stage, lambda: encode_comparisons(words, half, *lengths), judged), demos_held_out,
        cfg.seed, wandb=cfg.wandb, adapters=cfg.lora,
    )  # fmt: skip
    if scorer:
        reward_fn, reward = scorer()
        reward = devices.host(stages.centred(devices, reward_fn, reward, demos_held_out))
    else:
        reward_fn, reward = networks.reward_model(lm).fn, taught("reward", halves[0])
    judge = taught("judge", halves[1])
    scored = inference.both_scores(devices, reward_fn, reward, judged)
    facts = about_reward(world, scored, train, held_out)
    facts |= {"SFT held-out loss, nats a response": sft_loss * demos_held_out.mask.sum(1).mean()}
    return Ground(
        cfg=cfg,
        folder=folder,
        devices=devices,
        world=world,
        words=words,
        lm=lm,
        answers=answers,
        key=key,
        prompts=encode_prompts(words, world.prompts, lengths[0]),
        pairs=train,
        halves=halves,
        pairs_held_out=held_out,
        reference=reference,
        reward=reward,
        judge=judge,
        reward_fn=reward_fn,
        facts=facts | world.known(held_out),
    )


def about_reward(world: worlds.World, scored, train, held_out) -> dict:
    """`verdict.of_rewards` of what was scored [N, 2] on held-out pairs, with gold where it is known."""
    asked, *sides = zip(*((c.prompt, c.chosen, c.rejected) for c in held_out), strict=True)
    gold = np.stack([world.gold(asked, side) for side in sides], axis=1) if world.gold else None
    return verdict.of_rewards(scored, train, held_out, gold)


def again(name: str) -> str:
    """How to start another run."""
    return f"python launch.py {name} --seed 1 (or any other setting, or --run NEW_FOLDER)"
