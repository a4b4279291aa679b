"""Comparisons of the reference's responses, and the reward models that learn gold from them.

Everything has a leading axis of seeds [S, ...] and is mapped over it by `Devices.each`.
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
from rlhf_jax.studies import lab as labs
from rlhf_jax.studies.lab import Lab, Seed

TEACHER = Seed(2**20, 2**20, 2**20)  # which no study counts up to


def with_teacher(lab: Lab) -> Lab:
    """The lab with its teacher, which learned from the symbolic gold; trained once."""
    size = lab.cfg.teacher
    rm = networks.reward_model(lab.lms[size])
    like = jax.device_get(rm.init(jax.random.key(0), lab.trunks[size]))
    learn = lambda: labs.one(
        learn_rewards(lab, size, "symbolic", lab.cfg.teacher_pairs, [TEACHER])[0]
    )
    return lab._replace(teacher=labs.kept(lab.folder / "teacher", like, learn))


def compare(lab: Lab, kind: str, pairs: int, seeds: Sequence[Seed]) -> Comparisons:
    """`pairs` comparisons for each seed [S, pairs, ...], of the reference's responses, judged by gold.

    The first n of a larger set are the set of n: what stands in the lab's folder is not drawn again.
    """
    place = lambda seed: lab.folder / "pairs" / f"{kind}-{seed.data}.npz"
    missing = [s for s in seeds if not hosts.agreed(load(place(s), pairs) is not None)]
    if missing:
        for seed, both in zip(missing, draw_pairs(lab, kind, pairs, missing), strict=True):
            hosts.once(lambda: False, functools.partial(save, place(seed), both))
    return labs.stack([load(place(seed), pairs) for seed in seeds])


def draw_pairs(lab: Lab, kind: str, pairs: int, seeds: Sequence[Seed]) -> list[Comparisons]:
    """Two draws of the reference to each of `pairs` prompts, and which of them is the better."""
    rows = [rows_at(len(lab.prompts), pairs, seed.data, 0) for seed in seeds]
    asked = [
        repeat_draws(jax.tree.map(lambda x, r=r: x[r], lab.encoded), 2)._replace(
            draw=np.arange(2 * pairs, dtype=np.int32)  # a prompt may recur
        )
        for r in rows
    ]
    reference = labs.one_more(lab.trunks[lab.cfg.policy], len(seeds))
    said = labs.respond(lab, reference, labs.stack(asked), [seed.data for seed in seeds], stage=1)
    both = []
    for s, seed in enumerate(seeds):
        samples = labs.nth(said, s)
        prompts = [lab.prompts[row] for row in np.repeat(rows[s], 2)]
        worth, words = labs.gold(lab, kind, prompts, samples), samples.mask.sum(axis=1)
        shown = annotators.Pairs(worth[::2], worth[1::2], words[::2], words[1::2])
        best = annotators.annotate(shown, lab.cfg.people, seed.data)  # 0 or 1
        first = 2 * np.arange(pairs)
        side = lambda rows, x=samples: Sequences(
            x.tokens[rows], x.attention_mask[rows], x.mask[rows]
        )
        weight = np.ones(pairs, np.float32)
        both.append(Comparisons(side(first + best), side(first + 1 - best), weight))
    return both


def load(place: pathlib.Path, pairs: int) -> Comparisons | None:
    """The first `pairs` comparisons that stand in `place`; None where fewer do."""
    if not place.exists():
        return None
    with np.load(place) as file:
        sides = [Sequences(*(file[f"{side}_{x}"] for x in Sequences._fields)) for side in (0, 1)]
    both = Comparisons(*sides, weight=np.ones(len(sides[0].tokens), np.float32))
    enough = len(both.weight) >= pairs
    return jax.tree.map(lambda x: x[:pairs], both) if enough else None


def save(place: pathlib.Path, both: Comparisons):
    """Writes comparisons all at once; other processes may write the same."""
    place.parent.mkdir(exist_ok=True)
    partial = place.with_name(f".{os.getpid()}.npz")
    arrays = {f"{side}_{x}": getattr(both[side], x) for side in (0, 1) for x in Sequences._fields}
    np.savez(partial, **arrays)
    os.replace(partial, place)


@functools.cache
def _learning(each: Callable, lm: networks.LanguageModel, lr: float, steps: int):
    """(rngs [S], trunk) -> states [S], and one gradient step of each, on the devices."""
    rm = networks.reward_model(lm)
    cfg = OptimizerConfig(lr=lr, warmup=min(20, steps // 5), b2=0.99, eps=1e-8)
    tx = optimizer.make(cfg, steps)
    start = lambda rng, trunk: train_step.init_state(rm.init(rng, trunk), tx)
    step = reward_model.make_train_step(rm.fn, tx)
    return each(start, (P(DATA), P())), each(step, (P(DATA), P(), P(DATA)), 0)


def learn_rewards(lab: Lab, size: str, kind: str, pairs: int, seeds: Sequence[Seed]):
    """Reward models [S], each of its own comparisons, and their scores of the pool [S, N].

    Those have mean 0 and deviation 1: KL coefficients then mean the same to all reward models.
    """
    cfg, lm, devices, S = lab.cfg, lab.lms[size], lab.devices, len(seeds)
    data = labs.filled(devices, compare(lab, kind, pairs, seeds))
    seeds = labs.filled(devices, [*seeds])
    batch_size = min(cfg.reward_batch, pairs)
    steps = max(cfg.reward_steps, round(cfg.reward_epochs * pairs / batch_size))
    lr = cfg.reward_lr * (64 / max(64, lm.d_model)) ** 0.5
    start, step = _learning(devices.each, lm, lr, steps)
    rngs = labs.keys(devices, [seed.reward for seed in seeds], stage=2)
    state = start(rngs, devices.share(lab.trunks[size]))
    for i in range(steps):
        rows = np.stack([rows_at(pairs, batch_size, seed.reward, i) for seed in seeds])
        state, _ = step(state, {}, devices.put_batch(labs.batch_of(data, rows)))
    params = jax.tree.map(lambda x: x[:S], devices.fetch(state.params))
    scores = labs.score(lab, size, params, labs.one_more(lab.pool, S))
    mean, deviation = scores.mean(axis=1), scores.std(axis=1)
    params |= {
        "head": params["head"] / deviation[:, None],
        "bias": (params["bias"] - mean) / deviation,
    }
    return params, (scores - mean[:, None]) / deviation[:, None]


def judge(lab: Lab, kind: str, scores: np.ndarray) -> list[dict]:
    """How scores [S, N] of the pool rank two responses, and what the best of n by them are worth."""
    golds = labs.pool_gold(lab, kind)
    ns = 2 ** np.arange(int(np.log2(lab.cfg.pool_draws)) + 1)
    by_prompt = lambda x: x.reshape(lab.cfg.pool_prompts, lab.cfg.pool_draws)
    decided = golds[::2] != golds[1::2]
    rows = []
    for own in scores:
        margin = np.sign(own[::2] - own[1::2]) * np.sign(golds[::2] - golds[1::2])
        best = lambda values, own=own: best_of_n.estimates(
            by_prompt(own), by_prompt(values), ns
        ).mean(axis=0)
        rows.append(
            {
                "accuracy": float(np.mean(0.5 + 0.5 * margin[decided])) if decided.any() else 0.5,
                "kl": [best_of_n.kl(int(n)) for n in ns],
                "gold": best(golds).tolist(),
                "proxy": best(own).tolist(),
            }
        )
    return rows
