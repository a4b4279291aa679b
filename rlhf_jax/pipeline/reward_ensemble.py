"""The reward models of an ensemble: their training as one stage, and their scores."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import ensemble, reward_model
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.models import networks
from rlhf_jax.pipeline import generation, keys, stages
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.pipeline.texts import Feedback


def train(run: Prepared, reference, compared: Feedback):
    """Trains the members [M, ...] on the pairs of the single reward model, and returns their parameters.

    Member 0 has the head and the order of pairs of that model and differs from it by rounding alone, which
    grows over a thousand steps; the other members have their own.
    """
    cfg, devices, M = run.cfg, run.devices, run.cfg.ensemble.members
    rm, root = networks.reward_model(run.lm), keys.key_of(cfg.seed, "reward")
    pairs = encode_comparisons(run.tokenizer, compared.halves[0], *run.lengths)
    count, size = len(compared.halves[0]), cfg.reward.batch_size
    steps = max(1, round(cfg.reward.epochs * count / size))
    tx = optimizer.make(cfg.reward.optimizer, steps)

    def batch_at(i):
        rows = np.stack([rows_at(count, size, cfg.seed + m, i) for m in range(M)], axis=1)
        return devices.take(pairs, rows)  # [B, M, ...]

    job = stages.Fit(
        stage="ensemble",
        start=lambda: devices.make(
            lambda trunk: ensemble.init(rm.init, root, trunk, cfg.ensemble), devices.share(reference)
        ),
        make=lambda fn: ensemble.make_train_step(
            fn, tx, cfg.reward.loss,
            microbatches=cfg.reward.microbatches, axis_name=devices.axis_name,
        ),
        fn=rm.fn,
        batch_at=batch_at,
        tx=tx,
        steps=steps,
        save_every=cfg.reward.save_every,
        key=keys.adapters(cfg.seed, "reward"),
        log_every=5,
        init=ensemble.init_state,
    )  # fmt: skip
    params, _ = stages.fit(stages.place(run), job)
    texts = stages.demonstrations(run.tokenizer, run.texts.corpus_held_out, run.lengths)
    return reward_model.centre(params, member_scores(run, params, texts).mean(axis=0))


def member_scores(run: Prepared, members, sequences) -> np.ndarray:
    """The scores [N, M] of each row by each member."""
    fn = jax.vmap(networks.reward_model(run.lm).fn, in_axes=(0, None, None), out_axes=1)
    return generation.score(run.devices, fn, members, sequences)


def on_held_out_pairs(
    run: Prepared, reward: Reward, members, compared: Feedback
) -> dict[str, np.ndarray]:
    """Scores [N, 2] of both sides of every held-out pair: by one model, each member, and each combination."""
    cfg, fn = run.cfg.ensemble, networks.reward_model(run.lm).fn
    pairs = encode_comparisons(run.tokenizer, compared.held_out, *run.lengths)
    both = lambda fn, params: generation.both_scores(run.devices, fn, params, pairs)
    sides = [jnp.asarray(member_scores(run, members, side)).T for side in pairs.sides]  # [M, N]
    of_sides = lambda fn: np.stack([fn(side) for side in sides], axis=1)
    scored = {"one reward model": both(*reward)}
    for m in range(cfg.members):
        scored[f"member {m}"] = of_sides(lambda x, m=m: x[m])
    for how in ("mean", "min", "uwo"):
        scored[how] = of_sides(partial(ensemble.combine, cfg=replace(cfg, combine=how)))
    return scored | {"warm": both(fn, run.devices.make(ensemble.weight_average, members))}
