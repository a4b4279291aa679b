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
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.batches import Prompts
from rlhf_jax.bounds import Count, Seed
from rlhf_jax.data import dialogues, tokenizer
from rlhf_jax.data.comparisons import Comparison, encode_comparisons
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.devices import hosts, parallel
from rlhf_jax.devices.parallel import Devices
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.pipeline import (
    inference,
    inputs,
    judge,
    lengths,
    pretrained,
    reuse,
    stages,
    verdict,
    worlds,
)
from rlhf_jax.rewards import scorer as rewards
from rlhf_jax.runs import metrics, run
from rlhf_jax.sampling import SampleConfig, check_on_policy


@dataclass(frozen=True)
class Config(pretrained.Config):
    """Settings of the stages that all methods share."""

    _main = ("seed", "run", "start_from", "devices", "reward_model", "eval_draws")

    seed: Seed = 0
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
    sample: SampleConfig = SampleConfig(length=0)
    rollout: RolloutConfig = RolloutConfig()
    eval_draws: Count = 4
    """Responses to each held-out prompt, before and after."""

    def _conditions(self, at: str):
        super()._conditions(at)
        parallel.check_name(self.devices, f"{at}devices")
        check_on_policy(self.sample, f"{at}sample.")

    def _unread(self) -> dict[str, str]:
        data = self.data
        if data.corpus or data.comparisons or data.prompts:
            world, why = ("data.reviews", "data.pairs", "annotators"), "files are read"
        else:
            of_files = ("prompt_words", "fields", "corpus_fields", "prompts_fields")
            world, why = [f"data.{name}" for name in of_files], "no files are read"
        missing = super()._unread() | dict.fromkeys(world, why)
        if why == "files are read" and "comparisons" in judge.dispensable(self):
            missing["reward"] = "a Python reward alone judges"
        missing["sample.pad"] = "the tokenizer decides it"
        if self.reference:
            of_sft = (f"sft.{x.name}" for x in fields(self.sft) if x.name != "batch_size")
            missing |= dict.fromkeys(of_sft, "a reference takes SFT's place")
        return missing


NO_ROLLOUT = {"rollout": "no rollout is trained on"}


def with_tokens(cfg, words):
    """`cfg` with what its tokenizer decides: what ends a response, and what pads it.

    What sample.stop names ends a response too. Raises ValueError where that is no token.
    """
    own, last = pretrained.stops(cfg, words), max(words.get_vocab().values())
    stop = tuple(dict.fromkeys([*own, *cfg.sample.stop]))
    if max({*stop} - {*own}, default=0) > last:
        raise ValueError(f"sample.stop = {cfg.sample.stop}: the tokenizer's last token is {last}")
    if cfg.sample.pad not in (0, words.pad_token_id):
        raise ValueError(
            f"sample.pad = {cfg.sample.pad}: the tokenizer pads by {words.pad_token_id}"
        )
    return replace(cfg, sample=replace(cfg.sample, stop=stop, pad=words.pad_token_id))


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
    judge: Any  # and of the one to judge by (both None without comparisons)
    reward_fn: Callable | None  # (reward, tokens, attention_mask) -> scores [B]
    scorer: rewards.Scorer | None  # the Python reward
    facts: dict  # what results stand beside

    @property
    def lengths(self) -> tuple[int, int]:
        """Columns of a prompt and of a response."""
        return self.cfg.data.prompt_length, self.cfg.sample.length


def lay(name: str, cfg, batch_sizes: dict[str, int]) -> Ground | None:
    """The shared stages of experiment `name`; None where the whole run is finished, after showing it.

    `batch_sizes` are the method's own, which must divide over the devices.
    """
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    from_files = worlds.has_files(cfg.data)
    if not from_files:
        cfg = lengths.put(cfg, *lengths.GENERATED)
    lengths.check(cfg)
    networks.check_backend(cfg.model)
    if cfg.wandb:
        metrics.load_wandb()
    pretrained.check_adapters(cfg)
    words = None  # where it is yet to be trained
    if cfg.tokenizer:
        words = tokenizer.load(cfg.tokenizer, bos=pretrained.begins(cfg))
        cfg, _ = pretrained.fitted(with_tokens(cfg, words), words)
    if cfg.reward_model:
        pretrained.scorer(cfg, words, (cfg.data.prompt_length, cfg.sample.length))
    sizes = stages.parts("sft", cfg.sft) | stages.parts("reward", cfg.reward)
    devices = parallel.choose(cfg.devices, sizes | batch_sizes, cfg.model.cuts)
    chat, unneeded = dialogues.template(cfg.tokenizer), judge.dispensable(cfg)
    world = worlds.read(cfg.data, cfg.annotators, cfg.seed, chat, unneeded)
    python_reward = judge.scorer(cfg, world)
    if cfg.start_from:
        reuse.check(pathlib.Path(cfg.start_from), cfg, Config())
    content = lambda: inputs.content(cfg)
    ignore = (*run.UNTELLING, "start_from")
    folder = run.open_run(name, cfg, cfg.run, ignore=ignore, content=content)
    if verdict.stands(folder):
        print("this run is finished")
        verdict.show(folder, again(name))
        return None
    if cfg.start_from:
        hosts.once(lambda: False, lambda: reuse.copy(pathlib.Path(cfg.start_from), folder))
    words = stages.read_tokenizer(
        folder, cfg.tokenizer, world.corpus, cfg.data.vocab_size, pretrained.begins(cfg)
    )
    if from_files:
        cfg = lengths.settled(cfg, folder, words, lambda: texts_of(world))
    columns = cfg.data.prompt_length, cfg.sample.length
    cfg, lm = pretrained.fitted(with_tokens(cfg, words), words)
    if cfg.rollout.recompute_logprobs is None:
        differ = cfg.model.dtype != "float32"
        cfg = replace(cfg, rollout=replace(cfg.rollout, recompute_logprobs=differ))
    scorer = cfg.reward_model and pretrained.scorer(cfg, words, columns)
    answers = inference.responder(
        cfg.sample, devices, lm, words, columns[0], cfg.sft.batch_size * 4
    )
    key = jax.random.key(cfg.seed)

    # 1. a language model, from texts
    kept = lambda name, make, like: run.mapped(folder / "data" / name, make, like)
    encode = lambda texts: stages.demonstrations(words, texts, columns)
    demos_held_out = encode(world.corpus_held_out)
    demos = kept("demonstrations", lambda: encode(world.corpus), demos_held_out)
    reference, sft_loss = stages.reference(folder, cfg, devices, lm, demos, demos_held_out)
    facts = {}
    if world.corpus:
        nats = sft_loss * demos_held_out.mask.sum(1).mean()
        facts = {"SFT held-out loss, nats a response": nats}

    # 2. two reward models, from what people preferred
    ask = lambda prompts: answers.respond(reference, prompts, jax.random.fold_in(key, 1)).texts
    train, held_out, halves, reward, judging, reward_fn = [], [], ([], []), None, None, None
    if world.comparisons:
        train, halves, held_out = world.comparisons(folder, ask)
        judged = encode_comparisons(words, held_out, *columns)
        taught = lambda stage, half: stages.train_reward(
            folder, stage, cfg.reward, devices, lm, reference,
            kept(stage, lambda: encode_comparisons(words, half, *columns), judged), demos_held_out,
            cfg.seed, wandb=cfg.wandb, adapters=cfg.lora,
        )  # fmt: skip
        if scorer:
            reward_fn, reward = scorer(devices.places)
            mean = stages.mean_score(devices, reward_fn, reward, demos_held_out)
            reward = devices.host(reward_model.centre(reward, jnp.float32(mean)))
        else:
            reward_fn, reward = networks.reward_model(lm).fn, taught("reward", halves[0])
        judging = taught("judge", halves[1])
        scored = inference.both_scores(devices, reward_fn, reward, judged)
        facts = about_reward(world, scored, train, held_out) | facts | world.known(held_out)
    return Ground(
        cfg=cfg,
        folder=folder,
        devices=devices,
        world=world,
        words=words,
        lm=lm,
        answers=answers,
        key=key,
        prompts=encode_prompts(words, world.prompts, columns[0]),
        pairs=train,
        halves=halves,
        pairs_held_out=held_out,
        reference=reference,
        reward=reward,
        judge=judging,
        reward_fn=reward_fn,
        scorer=python_reward,
        facts=facts,
    )


def texts_of(world: worlds.World) -> list[lengths.Texts]:
    """All texts of the files."""
    pairs = world.comparisons(None, None) if world.comparisons else worlds.Pairs([], ([], []), [])
    return [
        lengths.demonstrated("data.corpus", [*world.corpus, *world.corpus_held_out]),
        lengths.compared([*pairs.train, *pairs.held_out]),
        lengths.Texts("data.prompts", [*world.prompts, *world.prompts_held_out], []),
    ]


def about_reward(world: worlds.World, scored, train, held_out) -> dict:
    """`verdict.of_rewards` of what was scored [N, 2] on held-out pairs, with gold where it is known."""
    asked, *sides = zip(*((c.prompt, c.chosen, c.rejected) for c in held_out), strict=True)
    gold = np.stack([world.gold(asked, side) for side in sides], axis=1) if world.gold else None
    return verdict.of_rewards(scored, train, held_out, gold)


def again(name: str) -> str:
    """How to start another run."""
    return f"python launch.py {name} --seed 1 (or any other setting, or --run NEW_FOLDER)"
