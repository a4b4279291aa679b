"""What the small runs of a study share: language models, held-out prompts, a pool of responses, golds.

It is trained once. What each seed does (`proxies.py`: comparisons and reward models; `learners.py`: policies)
are functions with a leading axis of seeds [S, ...], mapped by `Devices.each`; `population.py` decides whether
all seeds are one program or a process each.
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
from rlhf_jax.tasks import reviews

SHAPE = ModelConfig(context=64, positions="rotary")
Size = Literal["10k", "100k", "400k", "1M", "3M", "10M"]
Gold = Literal["symbolic", "teacher"]
SIZES: dict[str, ModelConfig] = {  # parameters of the blocks, to a digit
    "10k": replace(SHAPE, d_model=20, layers=2, heads=2),
    "100k": replace(SHAPE, d_model=64, layers=2, heads=4),
    "400k": replace(SHAPE, d_model=128, layers=2, heads=4),
    "1M": replace(SHAPE, d_model=168, layers=3, heads=4),
    "3M": replace(SHAPE, d_model=256, layers=4, heads=4),
    "10M": replace(SHAPE, d_model=384, layers=6, heads=6),
}
PROMPT, LENGTH = 10, 24  # columns of a prompt and of a response
CHUNK = 256  # rows that are sampled or scored at once, a seed


@dataclass(frozen=True)
class LabConfig(Settings):
    """Settings that all small runs of a study share."""

    seed: Whole = 0
    """Seed of the shared language models, teacher, held-out prompts and pool."""
    policy: Size = "100k"
    """Size of the policy and its reference, in parameters."""
    teacher: Size = "400k"
    """Size of the teacher, a frozen reward model, in parameters; larger than the reward models that it
    labels for."""
    teacher_pairs: Annotated[int, Bound(ge=2)] = 10_000
    """Comparisons labelled by the symbolic gold that train the teacher."""
    reviews: Count = 20_000
    """Reviews that train the language models."""
    sft: stages.SFTConfig = stages.SFTConfig(steps=800, eval_every=100)
    people: annotators.AnnotatorConfig = annotators.AnnotatorConfig()
    reward_epochs: Positive = 1.0
    """Passes of a reward model over its comparisons; `reward_steps` sets a minimum."""
    reward_steps: Count = 300
    """Minimum number of gradient steps of a reward model; the 60 steps of 1000 pairs are too few."""
    reward_batch: Count = 16
    """Pairs per gradient step of a reward model."""
    reward_lr: Positive = 3e-3
    """Peak learning rate of a reward model of width 64; wider models divide it by the root of the relative
    width."""
    pool_prompts: Count = 48
    """Held-out prompts that best of n answers."""
    pool_draws: Annotated[int, Bound(ge=2)] = 128
    """Responses of the reference to each pool prompt: the largest n of best of n."""


class Seed(NamedTuple):
    """Nested seeds: of the preference data, of the reward model, of the policy."""

    data: int
    reward: int
    policy: int


class Lab(NamedTuple):
    """What all small runs share, trained. Parameters and arrays are on the host."""

    cfg: LabConfig
    folder: pathlib.Path
    devices: Devices
    words: Any  # the tokenizer
    lms: dict[str, networks.LanguageModel]  # by size
    trunks: dict[str, Any]  # parameters of each, after SFT
    sample: Callable  # (params [S], Prompts [S], keys [S]) -> Samples [S], all on the devices
    prompts: list[str]  # to train on,
    encoded: Prompts  # and as arrays
    asked: list[str]  # held-out prompts, each `pool_draws` times,
    asked_encoded: Prompts
    pool: Samples  # and what the reference said to them
    teacher: Any  # reward parameters, of deviation 1 on the pool; None until `proxies.with_teacher`


def open_lab(folder: pathlib.Path, cfg: LabConfig, sizes: Sequence[str], devices: Devices) -> Lab:
    """The lab in `folder`, with language models of `sizes` too; what stands there is not trained again."""
    train, held_out = reviews.split_prompts(0.1, cfg.seed)
    corpus = [tuple(r) for r in reviews.generate(cfg.seed, cfg.reviews, train)]
    corpus_held_out = [tuple(r) for r in reviews.generate(cfg.seed + 1, 1000, held_out)]
    words = stages.read_tokenizer(folder, "", corpus, 600)
    demos = [
        stages.demonstrations(words, texts, (PROMPT, LENGTH)) for texts in (corpus, corpus_held_out)
    ]
    lms, trunks = {}, {}
    for size in dict.fromkeys([cfg.policy, *sizes]):
        lms[size] = network(size, tokenizer.size(words))
        lr = cfg.sft.optimizer.lr * (64 / max(64, SIZES[size].d_model)) ** 0.5
        sft = replace(cfg.sft, optimizer=replace(cfg.sft.optimizer, lr=lr))
        place = stages.Place(folder / size, devices, cfg.seed)
        trunks[size], _ = stages.sft(place, sft, lms[size], demos[0], demos[1])
    eos: Any = words.eos_token_id
    pad: Any = words.pad_token_id
    say = sampling.SampleConfig(length=LENGTH, stop=(eos,), pad=pad)
    asked = [held_out[row] for row in rows_at(len(held_out), cfg.pool_prompts, cfg.seed, 0)]
    shape = lambda x: np.zeros((len(asked) * cfg.pool_draws, x), np.int32)
    underived: Any = None
    like = Samples(  # what the pool is restored as
        tokens=shape(PROMPT + LENGTH),
        attention_mask=shape(PROMPT + LENGTH) > 0,
        mask=shape(LENGTH) > 0,
        logprobs=shape(LENGTH).astype(np.float32),
        ended=underived,
    )
    lab = Lab(
        cfg=cfg, folder=folder, devices=devices, words=words, lms=lms, trunks=trunks,
        sample=devices.each(sampling.make_sample(lms[cfg.policy], say), (P(DATA),) * 3),
        prompts=train, encoded=encode_prompts(words, train, PROMPT),
        asked=[prompt for prompt in asked for _ in range(cfg.pool_draws)],
        asked_encoded=repeat_draws(encode_prompts(words, asked, PROMPT), cfg.pool_draws),
        pool=like, teacher=None,
    )  # fmt: skip

    def answer():
        said = respond(lab, one_more(trunks[cfg.policy]), lab.asked_encoded, [cfg.seed])
        return one(said)._replace(ended=underived)

    pool = kept(folder / "pool", like, answer)
    ended = np.any(pool.mask & (pool.tokens[:, -LENGTH:] == eos), axis=1)
    return lab._replace(pool=pool._replace(ended=ended))


@functools.cache
def network(size: str, vocab_size: int) -> networks.LanguageModel:
    """The language model of a size: one object for each, so that jit compiles for it once."""
    return networks.language_model(replace(SIZES[size], vocab_size=vocab_size))


def kept(place: pathlib.Path, like, make: Callable):
    """The tree of arrays that stands in `place`; made, and saved there, if none does."""
    found = checkpoint.restore_latest(place, like)
    if found is None:
        tree = jax.device_get(make())
        checkpoint.save(place, 1, tree)
        return tree
    return found[1]


def one(tree):
    """The first along each leading axis."""
    return jax.tree.map(lambda x: x[0], tree)


def nth(tree, n: int):
    """Entry n of the leading axis."""
    return jax.tree.map(lambda x: x[n], tree)


def one_more(tree, n: int = 1):
    """The tree with a leading axis of n equal entries."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], n, axis=0), tree)


def stack(trees):
    """Trees of arrays as one with a leading axis."""
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def filled(devices: Devices, entries) -> Any:
    """A list of S, or a tree [S, ...], up to a multiple of the devices: with copies of the last."""
    S = len(entries) if isinstance(entries, list) else len(jax.tree.leaves(entries)[0])
    rows = np.minimum(np.arange(-(-S // devices.count) * devices.count), S - 1)
    if isinstance(entries, list):
        return [entries[row] for row in rows]
    return entries if len(rows) == S else jax.tree.map(lambda x: x[rows], entries)


def in_chunks(devices: Devices, fn: Callable, S: int, N: int, size: int = CHUNK):
    """The arrays [filled S, rows, ...] that `fn(rows)` gives for `size` rows of N at a time: [S, N, ...].

    The last chunk is filled up with copies of the last row, so that jit meets one shape.
    """
    parts = [fn(np.minimum(np.arange(i, i + size), N - 1)) for i in range(0, N, size)]
    parts = [devices.fetch(part) for part in parts]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:S, :N], *parts)


def batch_of(data, rows):
    """The rows [S, B] of records [S, N, ...], each seed's own."""
    return jax.tree.map(lambda x: x[np.arange(len(rows))[:, None], rows], data)


@functools.cache
def _keys(each: Callable):
    return each(lambda stage, seed: jax.random.fold_in(jax.random.key(stage), seed), (P(), P(DATA)))


def keys(devices: Devices, seeds: Sequence[int], stage: int):
    """A key for each seed [S] on the devices, another one in each stage."""
    return _keys(devices.each)(np.int32(stage), devices.put_batch(np.array(seeds, np.int32)))


def respond(lab: Lab, params, prompts: Prompts, seeds: Sequence[int], stage: int = 0) -> Samples:
    """What policies `params` [S] say to `prompts` ([N], or a row of them for each seed [S, N]): [S, N]."""
    devices, S = lab.devices, len(seeds)
    if prompts.index.ndim == 1:
        prompts = one_more(prompts, S)
    params, prompts = filled(devices, params), filled(devices, prompts)
    params, rngs = devices.put_batch(params), keys(devices, filled(devices, [*seeds]), stage)
    part = lambda rows: devices.put_batch(jax.tree.map(lambda x: x[:, rows], prompts))
    say = lambda rows: lab.sample(params, part(rows), rngs)
    return in_chunks(devices, say, S, prompts.index.shape[1])


@functools.cache
def scorer(each: Callable, lm: networks.LanguageModel):
    """(reward parameters [S], tokens [S, N, L], attention_mask) -> scores [S, N], on the devices."""
    return each(networks.reward_model(lm).fn, (P(DATA),) * 3)


def score(lab: Lab, size: str, params, samples) -> np.ndarray:
    """The rewards `params` [S] of samples [S, N, ...]: [S, N]."""
    devices, (S, N) = lab.devices, samples.tokens.shape[:2]
    fn, both = scorer(devices.each, lab.lms[size]), (samples.tokens, samples.attention_mask)
    params, both = devices.put_batch(filled(devices, params)), filled(devices, both)
    ask = lambda rows: fn(params, *devices.put_batch(tuple(x[:, rows] for x in both)))
    return in_chunks(devices, ask, S, N, min(CHUNK, N))


def texts(lab: Lab, samples: Samples) -> list[str]:
    """The responses of samples [N, ...]."""
    said = zip(samples.tokens[:, -LENGTH:], samples.mask, strict=True)
    special = lab.words.all_special_ids
    ids = [[token for token in row[mask] if token not in special] for row, mask in said]
    return [text.strip() for text in lab.words.batch_decode(ids)]


def gold(lab: Lab, kind: str, prompts: Sequence[str], samples: Samples) -> np.ndarray:
    """What samples [N, ...] are worth: to the grammar ("symbolic"), or to the teacher."""
    if kind == "symbolic":
        return reviews.golds(prompts, texts(lab, samples))
    n, N = lab.devices.count, len(samples.tokens)  # each device takes its part of the rows
    parts = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), filled(lab.devices, samples))
    return score(lab, lab.cfg.teacher, one_more(lab.teacher, n), parts).ravel()[:N]


def pool_gold(lab: Lab, kind: str) -> np.ndarray:
    """What the pool's responses are worth [N]."""
    return gold(lab, kind, lab.asked, lab.pool)
