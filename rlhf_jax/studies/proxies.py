"""Comparisons of the reference's responses, and the reward models that learn gold from them.

All results have a leading axis of seeds [S, ...], and `Devices.each` maps over it.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import best_of_n, reward_model
from rlhf_jax.batches import Comparisons, Sequences
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import repeat_draws
from rlhf_jax.devices import hosts
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.people import annotators
from rlhf_jax.runs import checkpoint
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies.context import Seed, StudyContext
from rlhf_jax.studies.trees import (
    pad_list_to_devices,
    pad_to_devices,
    rows_of_seeds,
    tree_index,
    tree_repeat,
    tree_stack,
)

TEACHER = Seed(2**20, 2**20, 2**20)  # larger than the seeds of any study


def with_teacher(context: StudyContext) -> StudyContext:
    """The context with its teacher, which learned from the symbolic gold; trained once."""
    size, pairs = context.cfg.teacher, context.cfg.teacher_pairs
    rm = networks.reward_model(context.lms[size])
    like = jax.device_get(rm.init(jax.random.key(0), context.references[size]))
    learn = lambda: tree_index(learn_rewards(context, size, "symbolic", pairs, [TEACHER])[0], 0)
    return context._replace(teacher=contexts.load_or_make(context.folder / "teacher", like, learn))


def comparisons(context: StudyContext, kind: str, pairs: int, seeds: Sequence[Seed]) -> Comparisons:
    """`pairs` comparisons [S, pairs, ...] of the reference's responses for each seed, judged by gold.

    They are saved in the folder of the context. The first n of a larger set are the set of n, so a smaller
    set needs no new draws.
    """
    place = lambda seed: context.folder / "pairs" / f"{kind}-{seed.data}.npz"
    missing = [s for s in seeds if not hosts.agreed(load(place(s), pairs) is not None)]
    if missing:
        for seed, drawn in zip(missing, draw_pairs(context, kind, pairs, missing), strict=True):
            hosts.once(lambda: False, functools.partial(save, place(seed), drawn))
    return tree_stack([load(place(seed), pairs) for seed in seeds])


def draw_pairs(
    context: StudyContext, kind: str, pairs: int, seeds: Sequence[Seed]
) -> list[Comparisons]:
    """Draws two responses of the reference to each of `pairs` prompts and chooses the better one."""
    rows = [rows_at(len(context.prompts), pairs, seed.data, 0) for seed in seeds]
    asked = [
        repeat_draws(tree_index(context.encoded, r), 2)._replace(
            draw=np.arange(2 * pairs, dtype=np.int32)  # a prompt may recur
        )
        for r in rows
    ]
    references = tree_repeat(context.reference, len(seeds))
    data_seeds = [seed.data for seed in seeds]
    responses = contexts.respond(context, references, tree_stack(asked), data_seeds, stage=1)
    drawn = []
    for s, seed in enumerate(seeds):
        samples = tree_index(responses, s)
        prompts = [context.prompts[row] for row in np.repeat(rows[s], 2)]
        golds = contexts.gold(context, kind, prompts, samples)
        lengths = samples.mask.sum(axis=1)
        shown = annotators.Pairs(golds[::2], golds[1::2], lengths[::2], lengths[1::2])
        best = annotators.annotate(shown, context.cfg.people, seed.data)  # 0 or 1
        sequences = Sequences(samples.tokens, samples.attention_mask, samples.mask)
        first = 2 * np.arange(pairs)
        drawn.append(
            Comparisons(
                chosen=tree_index(sequences, first + best),
                rejected=tree_index(sequences, first + 1 - best),
                weight=np.ones(pairs, np.float32),
                probability=np.ones(pairs, np.float32),
            )
        )
    return drawn


def load(place: pathlib.Path, pairs: int) -> Comparisons | None:
    """The first `pairs` comparisons in `place`; None if it has fewer."""
    if not place.exists():
        return None
    with np.load(place) as file:
        sides = [Sequences(*(file[f"{side}_{x}"] for x in Sequences._fields)) for side in (0, 1)]
    ones = np.ones(len(sides[0].tokens), np.float32)
    found = Comparisons(*sides, weight=ones, probability=ones)
    return tree_index(found, slice(pairs)) if len(found.weight) >= pairs else None


def save(place: pathlib.Path, both: Comparisons):
    """Writes comparisons atomically, because several processes may write the same file."""
    place.parent.mkdir(exist_ok=True)
    partial = place.with_name(f".{os.getpid()}.npz")
    arrays = {f"{side}_{x}": getattr(both[side], x) for side in (0, 1) for x in Sequences._fields}
    np.savez(partial, **arrays)
    os.replace(partial, place)


@functools.cache
def _compiled(each: Callable, lm: networks.LanguageModel, lr: float, steps: int):
    """(keys [S], trunk) -> states [S], and one gradient step of each, on the devices."""
    rm = networks.reward_model(lm)
    cfg = OptimizerConfig(lr=lr, warmup=min(20, steps // 5), b2=0.99, eps=1e-8)
    tx = optimizer.make(cfg, steps)
    start = lambda rng, trunk: train_step.init_state(rm.init(rng, trunk), tx)
    step = reward_model.make_train_step(rm.fn, tx)
    return each(start, (P(DATA), P())), each(step, (P(DATA), P(), P(DATA)), 0)


def learn_rewards(context: StudyContext, size: str, kind: str, pairs: int, seeds: Sequence[Seed]):
    """Reward models [S], each of its own comparisons, and their scores [S, N] of the pool."""
    return fit_rewards(context, size, comparisons(context, kind, pairs, seeds), seeds)


def fit_rewards(context: StudyContext, size: str, data: Comparisons, seeds: Sequence[Seed]):
    """Reward models [S] of the comparisons [S, pairs, ...], and their scores [S, N] of the pool.

    The scores are standardised, so that a KL coefficient has the same meaning for all reward models.
    """
    cfg, lm, devices, S = context.cfg, context.lms[size], context.devices, len(seeds)
    pairs = data.weight.shape[1]
    data = pad_to_devices(devices, data)
    seeds = pad_list_to_devices(devices, seeds)
    batch_size = min(cfg.reward_batch, pairs)
    steps = max(cfg.reward_steps, round(cfg.reward_epochs * pairs / batch_size))
    lr = cfg.reward_lr * (64 / max(64, lm.d_model)) ** 0.5
    start, step = _compiled(devices.each, lm, lr, steps)
    rngs = contexts.keys(devices, [seed.reward for seed in seeds], stage=2)
    state = start(rngs, devices.share(context.references[size]))
    for i in range(steps):
        rows = np.stack([rows_at(pairs, batch_size, seed.reward, i) for seed in seeds])
        state, _ = step(state, {}, devices.put_batch(rows_of_seeds(data, rows)))
    params = tree_index(devices.fetch(state.params), slice(S))
    scores = contexts.score(context, contexts.reward_fn(lm), params, tree_repeat(context.pool, S))
    mean, deviation = scores.mean(axis=1), scores.std(axis=1)
    params |= {
        "head": params["head"] / deviation[:, None],
        "bias": (params["bias"] - mean) / deviation,
    }
    return params, (scores - mean[:, None]) / deviation[:, None]


def save_rewards(context: StudyContext, params, seeds: Sequence[Seed]):
    """Saves the reward model of each seed in the folder of the context."""
    for s, seed in enumerate(seeds):
        checkpoint.save(_reward_place(context, seed), 1, tree_index(params, s))


def load_rewards(context: StudyContext, size: str, seeds: Sequence[Seed]):
    """Reward models [S] of `size` that `save_rewards` saved."""
    rm = networks.reward_model(context.lms[size])
    like = jax.device_get(rm.init(jax.random.key(0), context.references[size]))
    return tree_stack([checkpoint.restore(_reward_place(context, seed), 1, like) for seed in seeds])


def _reward_place(context: StudyContext, seed: Seed) -> pathlib.Path:
    return context.folder / "rewards" / "-".join(map(str, seed))


def best_of_n_curves(context: StudyContext, kind: str, scores: np.ndarray) -> list[dict]:
    """Accuracy of scores [S, N] of the pool, and gold and proxy of the best of n by them, for each seed."""
    golds = contexts.pool_gold(context, kind)
    ns = 2 ** np.arange(int(np.log2(context.cfg.pool_draws)) + 1)
    by_prompt = lambda x: x.reshape(context.cfg.pool_prompts, context.cfg.pool_draws)
    curves = []
    for own in scores:
        best = lambda values, own=own: best_of_n.estimates(
            by_prompt(own), by_prompt(values), ns
        ).mean(axis=0)
        curves.append(
            {
                "accuracy": accuracy(own, golds),
                "kl": [best_of_n.kl(int(n)) for n in ns],
                "gold": best(golds).tolist(),
                "proxy": best(own).tolist(),
            }
        )
    return curves


def accuracy(scores: np.ndarray, golds: np.ndarray) -> float:
    """How often scores [N] order adjacent responses as gold does; ties are half right, 1/2 without gaps."""
    differ = golds[::2] != golds[1::2]
    margin = np.sign(scores[::2] - scores[1::2]) * np.sign(golds[::2] - golds[1::2])
    return float(np.mean(0.5 + 0.5 * margin[differ])) if differ.any() else 0.5
