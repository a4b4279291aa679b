"""The shared context of a study: language models, held-out prompts, a pool of responses, and golds.

It is trained once. The work of each seed (`proxies.py`: comparisons and reward models; `learners.py`:
policies) is written as functions with a leading axis of seeds [S, ...], mapped by `Devices.each`;
`population.py` runs all seeds as one program, or each in a process.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import sampling
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.bounds import Bound, Count, Positive, Settings, Whole
from rlhf_jax.data import tokenizer
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import encode_prompts, repeat_draws
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.people import annotators
from rlhf_jax.pipeline import stages
from rlhf_jax.runs import checkpoint
from rlhf_jax.studies.trees import (
    CHUNK,
    in_chunks,
    pad_list_to_devices,
    pad_to_devices,
    tree_index,
    tree_repeat,
)
from rlhf_jax.tasks import reviews

SHAPE = ModelConfig(context=64, positions="rotary")
Size = Literal["10k", "100k", "400k", "1M", "3M", "10M"]
Gold = Literal["symbolic", "teacher"]
SIZES: dict[str, ModelConfig] = {  # parameters of the blocks, to one digit
    "10k": replace(SHAPE, d_model=20, layers=2, heads=2),
    "100k": replace(SHAPE, d_model=64, layers=2, heads=4),
    "400k": replace(SHAPE, d_model=128, layers=2, heads=4),
    "1M": replace(SHAPE, d_model=168, layers=3, heads=4),
    "3M": replace(SHAPE, d_model=256, layers=4, heads=4),
    "10M": replace(SHAPE, d_model=384, layers=6, heads=6),
}
OF_TEXTS = {"symbolic": reviews.golds, "warmth": reviews.warmths}
PROMPT, LENGTH = 10, 24  # columns of a prompt and of a response


@dataclass(frozen=True)
class SharedConfig(Settings):
    """Settings that all small runs of a study share."""

    seed: Whole = 0
    """Seed of the shared parts: language models, teacher, held-out prompts, pool."""
    policy: Size = "100k"
    """Size of the policy and its reference: 10k, 100k, 400k, 1M, 3M or 10M parameters."""
    teacher: Size = "400k"
    """Size of the teacher: a frozen reward model that serves as gold for smaller reward models."""
    teacher_pairs: Annotated[int, Bound(ge=2)] = 10_000
    """Comparisons for the teacher, labelled by the symbolic gold."""
    reviews: Count = 20_000
    """Reviews for the language models."""
    sft: stages.SFTConfig = stages.SFTConfig(steps=800, eval_every=100)
    people: annotators.AnnotatorConfig = annotators.AnnotatorConfig()
    reward_epochs: Positive = 1.0
    """Passes of a reward model over its comparisons."""
    reward_steps: Count = 300
    """Least gradient steps of a reward model; the 60 steps of 1000 pairs teach it little."""
    reward_batch: Count = 16
    """Pairs in a step."""
    reward_lr: Positive = 3e-3
    """Peak learning rate of reward models of width 64; it falls with the root of the width."""
    pool_prompts: Count = 48
    """Held-out prompts for best of n."""
    pool_draws: Annotated[int, Bound(ge=2)] = 128
    """Responses of the reference to each of them: the largest n."""


class Seed(NamedTuple):
    """Nested seeds of the preference data, the reward model and the policy."""

    data: int
    reward: int
    policy: int


class StudyContext(NamedTuple):
    """The trained parts that all small runs share. Parameters and arrays are on the host."""

    cfg: SharedConfig
    folder: pathlib.Path
    devices: Devices
    tokenizer: Any
    lms: dict[str, networks.LanguageModel]  # by size
    references: dict[str, Any]  # by size: parameters after SFT
    sample: Callable  # (params [S], Prompts [S], keys [S]) -> Samples [S], all on the devices
    prompts: list[str]  # of training
    encoded: Prompts  # the same as arrays
    held_out: list[str]  # held-out prompts, each `pool_draws` times
    held_out_encoded: Prompts
    pool: Samples  # responses of the reference to `held_out`
    teacher: Any  # reward parameters, of deviation 1 on the pool; None until `proxies.with_teacher`

    @property
    def lm(self) -> networks.LanguageModel:
        """The language model of the policy's size."""
        return self.lms[self.cfg.policy]

    @property
    def reference(self) -> Any:
        """The parameters of the reference."""
        return self.references[self.cfg.policy]


def open_context(
    folder: pathlib.Path, cfg: SharedConfig, sizes: Sequence[str], devices: Devices
) -> StudyContext:
    """Opens the context in `folder`, with language models of `sizes` too; trains only missing parts."""
    train, held_out = reviews.split_prompts(0.1, cfg.seed)
    corpus = [tuple(r) for r in reviews.generate(cfg.seed, cfg.reviews, train)]
    corpus_held_out = [tuple(r) for r in reviews.generate(cfg.seed + 1, 1000, held_out)]
    words = stages.read_tokenizer(folder, "", corpus, 600)
    demonstrations = [
        stages.demonstrations(words, texts, (PROMPT, LENGTH)) for texts in (corpus, corpus_held_out)
    ]
    lms, references = {}, {}
    for size in dict.fromkeys([cfg.policy, *sizes]):
        lms[size] = network(size, tokenizer.size(words))
        lr = cfg.sft.optimizer.lr * (64 / max(64, SIZES[size].d_model)) ** 0.5
        sft = replace(cfg.sft, optimizer=replace(cfg.sft.optimizer, lr=lr))
        place = stages.Place(folder / size, devices, cfg.seed)
        references[size], _ = stages.sft(place, sft, lms[size], *demonstrations)
    stop: Any = words.eos_token_id
    pad: Any = words.pad_token_id
    sample = sampling.SampleConfig(length=LENGTH, stop=(stop,), pad=pad)
    asked = [held_out[row] for row in rows_at(len(held_out), cfg.pool_prompts, cfg.seed, 0)]
    context = StudyContext(
        cfg=cfg, folder=folder, devices=devices, tokenizer=words, lms=lms, references=references,
        sample=devices.each(sampling.make_sample(lms[cfg.policy], sample), (P(DATA),) * 3),
        prompts=train, encoded=encode_prompts(words, train, PROMPT),
        held_out=[prompt for prompt in asked for _ in range(cfg.pool_draws)],
        held_out_encoded=repeat_draws(encode_prompts(words, asked, PROMPT), cfg.pool_draws),
        pool=_empty_pool(cfg.pool_prompts * cfg.pool_draws), teacher=None,
    )  # fmt: skip

    def respond_to_pool():
        samples = respond(
            context, tree_repeat(context.reference), context.held_out_encoded, [cfg.seed]
        )
        return tree_index(samples, 0)._replace(ended=context.pool.ended)

    pool = load_or_make(folder / "pool", context.pool, respond_to_pool)
    ended = np.any(pool.mask & (pool.tokens[:, -LENGTH:] == stop), axis=1)
    return context._replace(pool=pool._replace(ended=ended))


def _empty_pool(n: int) -> Samples:
    """A tree of the pool's shapes, to restore it; whether a response ended is derived from its tokens."""
    shape = lambda columns: np.zeros((n, columns), np.int32)
    underived: Any = None
    return Samples(
        tokens=shape(PROMPT + LENGTH),
        attention_mask=shape(PROMPT + LENGTH) > 0,
        mask=shape(LENGTH) > 0,
        logprobs=shape(LENGTH).astype(np.float32),
        ended=underived,
    )


@functools.cache
def network(size: str, vocab_size: int) -> networks.LanguageModel:
    """The language model of a size: one object for each, so that jit compiles for it once."""
    return networks.language_model(replace(SIZES[size], vocab_size=vocab_size))


def load_or_make(place: pathlib.Path, like, make: Callable):
    """The tree of arrays in `place`; without one, `make()` makes it, and it is saved there."""
    found = checkpoint.restore_latest(place, like)
    if found is None:
        tree = jax.device_get(make())
        checkpoint.save(place, 1, tree)
        return tree
    return found[1]


@functools.cache
def _keys(each: Callable):
    return each(lambda stage, seed: jax.random.fold_in(jax.random.key(stage), seed), (P(), P(DATA)))


def keys(devices: Devices, seeds: Sequence[int], stage: int):
    """A key for each seed [S], on the devices, with different keys in each stage."""
    return _keys(devices.each)(np.int32(stage), devices.put_batch(np.array(seeds, np.int32)))


def respond(
    context: StudyContext, params, prompts: Prompts, seeds: Sequence[int], stage: int = 0
) -> Samples:
    """Responses [S, N] of policies `params` [S] to `prompts`: [N], or other prompts for each seed [S, N]."""
    devices, S = context.devices, len(seeds)
    if prompts.index.ndim == 1:
        prompts = tree_repeat(prompts, S)
    params, prompts = pad_to_devices(devices, params), pad_to_devices(devices, prompts)
    params, rngs = (
        devices.put_batch(params),
        keys(devices, pad_list_to_devices(devices, seeds), stage),
    )
    part = lambda rows: devices.put_batch(jax.tree.map(lambda x: x[:, rows], prompts))
    sample = lambda rows: context.sample(params, part(rows), rngs)
    return in_chunks(devices, sample, S, prompts.index.shape[1])


@functools.cache
def reward_fn(lm: networks.LanguageModel) -> Callable:
    """The reward function of a language model: one object for each, so that jit compiles for it once."""
    return networks.reward_model(lm).fn


@functools.cache
def make_score(each: Callable, fn: Callable):
    """(parameters of `fn` [S], tokens [S, N, L], attention_mask) -> its results [S, N], on the devices."""
    return each(fn, (P(DATA),) * 3)


def score(context: StudyContext, fn: Callable, params, samples) -> np.ndarray:
    """Results [S, N] of a reward function for samples [S, N, ...], under its parameters [S]."""
    devices, (S, N) = context.devices, samples.tokens.shape[:2]
    scored = make_score(devices.each, fn)
    params = devices.put_batch(pad_to_devices(devices, params))
    both = pad_to_devices(devices, (samples.tokens, samples.attention_mask))
    part = lambda rows: scored(params, *devices.put_batch(tuple(x[:, rows] for x in both)))
    return in_chunks(devices, part, S, N, min(CHUNK, N))


def response_texts(context: StudyContext, samples: Samples) -> list[str]:
    """The texts of the responses of samples [N, ...]."""
    rows = zip(samples.tokens[:, -LENGTH:], samples.mask, strict=True)
    special = context.tokenizer.all_special_ids
    ids = [[token for token in row[mask] if token not in special] for row, mask in rows]
    return [text.strip() for text in context.tokenizer.batch_decode(ids)]


def gold(context: StudyContext, kind: str, prompts: Sequence[str], samples: Samples) -> np.ndarray:
    """Gold scores [N] of samples: by the grammar ("symbolic", or the simpler "warmth"), or by the teacher."""
    if kind in OF_TEXTS:
        return OF_TEXTS[kind](prompts, response_texts(context, samples))
    devices, N = context.devices, len(samples.tokens)  # each device takes its part of the rows
    split = lambda x: x.reshape(devices.count, -1, *x.shape[1:])
    parts = jax.tree.map(split, pad_to_devices(devices, samples))
    teachers = tree_repeat(context.teacher, devices.count)
    fn = reward_fn(context.lms[context.cfg.teacher])
    return score(context, fn, teachers, parts).ravel()[:N]


def pool_gold(context: StudyContext, kind: str) -> np.ndarray:
    """Gold scores [N] of the pool's responses."""
    return gold(context, kind, context.held_out, context.pool)
