"""Small whole runs over many seeds, for studies: preference data, a reward model, best of n, a policy.

What all runs of a study share (language models, a teacher, a pool of responses) is trained once. The rest
are functions with a leading axis of seeds [S, ...], mapped by `jax.vmap`; `population.py` decides whether
all seeds are one program or a process each.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import stages
from rlhf_jax import best_of_n, checkpoint, optimizer, parallel, reward_model, sampling, train_step
from rlhf_jax.batches import Comparisons, Prompts, Samples, Sequences
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import encode_prompts, repeat_draws
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.tasks import annotators, reviews

SHAPE = ModelConfig(context=64, positions="rotary")
SIZES = {  # parameters of the blocks, to a digit
    "10k": replace(SHAPE, d_model=20, layers=2, heads=2),
    "100k": replace(SHAPE, d_model=64, layers=2, heads=4),
    "400k": replace(SHAPE, d_model=128, layers=2, heads=4),
    "1M": replace(SHAPE, d_model=168, layers=3, heads=4),
    "3M": replace(SHAPE, d_model=256, layers=4, heads=4),
    "10M": replace(SHAPE, d_model=384, layers=6, heads=6),
}
PROMPT, LENGTH = 10, 24  # columns of a prompt and of a response
CHUNK = 256  # rows that are sampled or scored at once, a seed
TEACHER = 2**20  # the teacher's seed, which no study counts up to


@dataclass(frozen=True)
class LabConfig:
    """What all small runs of a study share."""

    seed: int = 0
    """Of what is shared: language models, teacher, held-out prompts, pool."""
    policy: str = "100k"
    """Size of the policy and its reference: 10k, 100k, 400k, 1M, 3M or 10M parameters."""
    teacher: str = "400k"
    """Size of the teacher: a frozen reward model, larger than those it is gold to."""
    teacher_pairs: int = 10_000
    """Comparisons that the teacher learns, labelled by the symbolic gold."""
    reviews: int = 20_000
    """Reviews that the language models learn."""
    sft: stages.SFTConfig = stages.SFTConfig(steps=800, eval_every=100)
    people: annotators.AnnotatorConfig = annotators.AnnotatorConfig()
    reward_epochs: float = 2.0
    """Passes of a reward model over its comparisons,"""
    reward_steps: int = 60
    """but at least so many gradient steps."""
    reward_batch: int = 32
    """Pairs a step."""
    reward_lr: float = 3e-3
    """Peak learning rate of reward models of width 64; it falls with the root of the width."""
    pool_prompts: int = 64
    """Held-out prompts that best of n answers."""
    pool_draws: int = 256
    """Responses of the reference to each: the largest n."""

    def __post_init__(self):
        for name in ("policy", "teacher"):
            if getattr(self, name) not in SIZES:
                raise ValueError(
                    f'lab.{name} = "{getattr(self, name)}" is no size: use one of {", ".join(SIZES)}'
                )


class Seed(NamedTuple):
    """Nested seeds: of the preference data, of the reward model, of the policy."""

    data: int
    reward: int
    policy: int


class Lab(NamedTuple):
    """What all small runs share, trained. Parameters and arrays are on the host."""

    cfg: LabConfig
    folder: pathlib.Path
    words: Any  # the tokenizer
    lms: dict[str, networks.LanguageModel]  # by size
    trunks: dict[str, Any]  # parameters of each, after SFT
    sample: Callable  # (params [S], Prompts [S], keys [S]) -> Samples [S]
    prompts: list[str]  # to train on,
    encoded: Prompts  # and as arrays
    asked: list[str]  # held-out prompts, each `pool_draws` times,
    asked_encoded: Prompts
    pool: Samples  # and what the reference said to them
    teacher: Any  # reward parameters, of deviation 1 on the pool; None where it is not asked for


def open_lab(folder: pathlib.Path, cfg: LabConfig, sizes: Sequence[str], teacher: bool) -> Lab:
    """The lab in `folder`, with language models of `sizes`; what stands there is not trained again."""
    train, held_out = reviews.split_prompts(0.1, cfg.seed)
    corpus = [tuple(r) for r in reviews.generate(cfg.seed, cfg.reviews, train)]
    corpus_held_out = [tuple(r) for r in reviews.generate(cfg.seed + 1, 1000, held_out)]
    words = stages.read_tokenizer(folder, "", corpus, 600)
    demos = [
        stages.demonstrations(words, texts, (PROMPT, LENGTH)) for texts in (corpus, corpus_held_out)
    ]
    lms, trunks = {}, {}
    for size in dict.fromkeys([cfg.policy, *sizes, *[cfg.teacher] * teacher]):
        lms[size] = network(size, len(words))
        lr = cfg.sft.optimizer.lr * (64 / max(64, SIZES[size].d_model)) ** 0.5
        trunks[size], _ = stages.train_sft(
            folder / size,
            replace(cfg.sft, optimizer=replace(cfg.sft.optimizer, lr=lr)),
            parallel.on_device(), lms[size], demos[0], demos[1], cfg.seed,
        )  # fmt: skip
        trunks[size] = jax.device_get(trunks[size])
    stop: Any = (words.eos_token_id,)
    pad: Any = words.pad_token_id
    say = sampling.SampleConfig(length=LENGTH, stop=stop, pad=pad)
    asked = [held_out[row] for row in rows_at(len(held_out), cfg.pool_prompts, cfg.seed, 0)]
    shape = lambda x: np.zeros((len(asked) * cfg.pool_draws, x), np.int32)
    like = Samples(  # what the pool is restored as
        tokens=shape(PROMPT + LENGTH),
        attention_mask=shape(PROMPT + LENGTH) > 0,
        mask=shape(LENGTH) > 0,
        logprobs=shape(LENGTH).astype(np.float32),
    )
    lab = Lab(
        cfg=cfg, folder=folder, words=words, lms=lms, trunks=trunks,
        sample=jax.jit(jax.vmap(sampling.make_sample(lms[cfg.policy], say))),
        prompts=train, encoded=encode_prompts(words, train, PROMPT),
        asked=[prompt for prompt in asked for _ in range(cfg.pool_draws)],
        asked_encoded=repeat_draws(encode_prompts(words, asked, PROMPT), cfg.pool_draws),
        pool=like, teacher=None,
    )  # fmt: skip
    answer = lambda: one(respond(lab, one_more(trunks[cfg.policy]), lab.asked_encoded, [cfg.seed]))
    lab = lab._replace(pool=kept(folder / "pool", like, answer))
    if teacher:
        size, best = cfg.teacher, [Seed(TEACHER, TEACHER, TEACHER)]
        learn = lambda: one(learn_rewards(lab, size, "symbolic", cfg.teacher_pairs, best))
        like = networks.reward_model(lms[size]).init(jax.random.key(0), trunks[size])
        lab = lab._replace(teacher=kept(folder / "teacher", jax.device_get(like), learn))
    return lab


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


def chunks(n: int):
    """The rows of n, CHUNK at a time; the last chunk is filled up with copies of the last row."""
    return [np.minimum(np.arange(i, i + CHUNK), n - 1) for i in range(0, n, CHUNK)]


def batch_of(data, rows):
    """The rows [S, B] of records [S, N, ...], each seed's own."""
    return jax.tree.map(lambda x: x[np.arange(len(rows))[:, None], rows], data)


def keys(seeds: Sequence[int], stage: int):
    """A key for each seed [S], another one in each stage."""
    return jnp.stack([jax.random.fold_in(jax.random.key(stage), seed) for seed in seeds])


def respond(lab: Lab, params, prompts: Prompts, seeds: Sequence[int], stage: int = 0) -> Samples:
    """What policies `params` [S] say to `prompts` ([N], or a row of them for each seed [S, N]): [S, N]."""
    rngs, S = keys(seeds, stage), len(seeds)
    if prompts.index.ndim == 1:
        prompts = one_more(prompts, S)
    N, parts = prompts.index.shape[1], []
    for rows in chunks(N):
        chunk = jax.tree.map(lambda x, rows=rows: x[:, rows], prompts)
        parts.append(lab.sample(params, chunk, rngs))
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :N], *jax.device_get(parts))


@functools.cache
def scorer(lm: networks.LanguageModel):
    """(reward parameters [S], tokens [S, N, L], attention_mask) -> scores [S, N], compiled."""
    return jax.jit(jax.vmap(networks.reward_model(lm).fn))


def score(lab: Lab, size: str, params, samples) -> np.ndarray:
    """The rewards `params` [S] of samples [S, N, ...]: [S, N]."""
    N, parts = samples.tokens.shape[1], []
    for rows in chunks(N):
        tokens, mask = samples.tokens[:, rows], samples.attention_mask[:, rows]
        parts.append(scorer(lab.lms[size])(params, tokens, mask))
    return np.concatenate(jax.device_get(parts), axis=1)[:, :N]


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
    return score(
        lab, lab.cfg.teacher, one_more(lab.teacher), jax.tree.map(lambda x: x[None], samples)
    )[0]


def compare(lab: Lab, kind: str, pairs: int, seeds: Sequence[Seed]) -> Comparisons:
    """`pairs` comparisons for each seed [S, pairs, ...], of the reference's responses, judged by gold.

    The first n of a larger set are the set of n.
    """
    rows = [rows_at(len(lab.prompts), pairs, seed.data, 0) for seed in seeds]
    asked = [
        repeat_draws(jax.tree.map(lambda x, r=r: x[r], lab.encoded), 2)._replace(
            draw=np.arange(2 * pairs, dtype=np.int32)  # a prompt may recur
        )
        for r in rows
    ]
    reference = one_more(lab.trunks[lab.cfg.policy], len(seeds))
    said = respond(lab, reference, stack(asked), [seed.data for seed in seeds], stage=1)
    both = []
    for s, seed in enumerate(seeds):
        samples = jax.tree.map(lambda x, s=s: x[s], said)
        prompts = [lab.prompts[row] for row in np.repeat(rows[s], 2)]
        worth, words = gold(lab, kind, prompts, samples), samples.mask.sum(axis=1)
        shown = annotators.Pairs(worth[::2], worth[1::2], words[::2], words[1::2])
        best = annotators.annotate(shown, lab.cfg.people, seed.data)  # 0 or 1
        first = 2 * np.arange(pairs)
        side = lambda rows, x=samples: Sequences(
            x.tokens[rows], x.attention_mask[rows], x.mask[rows]
        )
        both.append(Comparisons(chosen=side(first + best), rejected=side(first + 1 - best)))
    return stack(both)


def stack(trees):
    """Trees of arrays as one with a leading axis."""
    return jax.tree.map(lambda *xs: np.stack(xs), *trees)


def learn_rewards(lab: Lab, size: str, kind: str, pairs: int, seeds: Sequence[Seed]):
    """Reward models [S], each of its own comparisons; mean 0 and deviation 1 on the pool."""
    cfg, lm = lab.cfg, lab.lms[size]
    rm, data = networks.reward_model(lm), compare(lab, kind, pairs, seeds)
    batch_size = min(cfg.reward_batch, pairs)
    steps = max(cfg.reward_steps, round(cfg.reward_epochs * pairs / batch_size))
    lr = cfg.reward_lr * (64 / max(64, lm.d_model)) ** 0.5
    tx = optimizer.make(
        OptimizerConfig(lr=lr, warmup=min(20, steps // 5), b2=0.99, eps=1e-8), steps
    )
    step = jax.jit(jax.vmap(reward_model.make_train_step(rm.fn, tx), in_axes=(0, None, 0, 0)))
    rngs = keys([seed.reward for seed in seeds], stage=2)
    state = jax.jit(
        jax.vmap(
            lambda rng, trunk: train_step.init_state(rm.init(rng, trunk), tx), in_axes=(0, None)
        )
    )(rngs, lab.trunks[size])
    for i in range(steps):
        rows = np.stack([rows_at(pairs, batch_size, seed.reward, i) for seed in seeds])
        state, _ = step(state, {}, batch_of(data, rows), rngs)
    params = jax.device_get(state.params)
    scores = score(lab, size, params, one_more(lab.pool, len(seeds)))
    mean, deviation = scores.mean(axis=1), scores.std(axis=1)
    return params | {
        "head": params["head"] / deviation[:, None],
        "bias": (params["bias"] - mean) / deviation,
    }


def judge(lab: Lab, size: str, params, kind: str) -> list[dict]:
    """How each reward model [S] ranks two responses of the pool, and what its best of n are worth."""
    golds = pool_gold(lab, kind)
    scores = score(lab, size, params, one_more(lab.pool, len(params["bias"])))
    ns = 2 ** np.arange(int(np.log2(lab.cfg.pool_draws)) + 1)
    by_prompt = lambda x: x.reshape(lab.cfg.pool_prompts, lab.cfg.pool_draws)
    rows = []
    for own in scores:
        decided = golds[::2] != golds[1::2]
        margin = np.sign(own[::2] - own[1::2]) * np.sign(golds[::2] - golds[1::2])
        mean = lambda values, own=own: best_of_n.estimates(
            by_prompt(own), by_prompt(values), ns
        ).mean(0)
        rows.append({
"accuracy": float(np.mean(0.5 + 0.5 * margin[decided])) if decided.any() else 0.5,
            "kl": [best_of_n.kl(int(n)) for n in ns],
            "gold": mean(golds).tolist(),
            "proxy": mean(own).tolist(),
        })  # fmt: skip
    return rows


def asked(lab: Lab, draws: int) -> list[str]:
    """The held-out prompts, each `draws` times, as `learners.examine` asks them."""
    return [prompt for prompt in lab.asked[:: lab.cfg.pool_draws] for _ in range(draws)]


def pool_gold(lab: Lab, kind: str) -> np.ndarray:
    """What the pool's responses are worth [N]."""
    return gold(lab, kind, lab.asked, lab.pool)
