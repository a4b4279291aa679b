"""RLOO against the common score of several reward models (Coste et al., 2024).

    python launch.py ensemble                          # --ensemble.combine mean, min or uwo
    python launch.py ensemble --ensemble.combine warm                             # averaged weights

Some minutes beyond the shared stages; --start-from RUN takes those from a run. Held-out accuracy 0.715 to
0.768 a member, 0.755 of their mean, 0.759 of mean less half a deviation (UWO), 0.717 of averaged weights
(WARM); RLOO against UWO takes gold from -0.11 to 1.48 (seed 0).
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import ensemble, reward_model
from rlhf_jax.algorithms.ensemble import EnsembleConfig
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.evaluation import evaluate
from rlhf_jax.models import networks
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import inference, judge, outcome, rl, stages
from rlhf_jax.pipeline.ground import Ground
from rlhf_jax.runs import loop


@dataclass(frozen=True)
class Config(rl.Config):
    """Settings of the ensemble experiment; its members are trained as `reward` says."""

    ensemble: EnsembleConfig = EnsembleConfig()


config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    if not judge.model_weight(cfg):
        raise ValueError(
            "rl.reward_model_weight = 0.0 leaves the ensemble out of the reward: set it above 0, or start "
            "rloo with this rl.reward"
        )
    ground = grounds.lay("ensemble", cfg, rl.batch_sizes(cfg, cfg.pg))
    if ground is None:
        return
    ours, fn = ground.cfg.ensemble, networks.reward_model(ground.lm).fn

    # 1. reward models, and what they know of pairs that nothing was trained on
    members = train(ground)
    scored = on_held_out_pairs(ground, members)
    groups = [c.group for c in ground.pairs_held_out]
    accuracy = lambda x: evaluate.accuracy(x[:, 0] - x[:, 1], groups)._asdict()
    rows = [{"scores of": name, "held-out accuracy": accuracy(x)} for name, x in scored.items()]
    facts = grounds.about_reward(
        ground.world, scored[ours.combine], ground.halves[0], ground.pairs_held_out
    )

    # 2. RLOO against what they say together
    if ours.combine == "warm":
        ground = ground._replace(reward=ensemble.weight_average(members))
    else:
        ground = ground._replace(reward=members, reward_fn=ensemble.make_score(fn, ours))
    ground = ground._replace(facts=ground.facts | facts)
    params, _ = rl.train(ground, rl.with_policy_gradient(ground, "rloo"))

    # 3. the verdict, and where they disagree
    said = outcome.after(ground, params)
    spread = lambda answers: each(ground, members, answers.samples).std(axis=-1).mean().item()
    extra = {
        "disagreement of the reward models": {
            "before": spread(outcome.before(ground)),
            "after": spread(said),
        },
        "ensemble": rows,
    }
    outcome.conclude(ground, f"RLOO ({ours.combine})", said, extra=extra)


def train(ground: Ground):
    """The parameters of all members [M, ...], taught by the pairs that taught `ground.reward`.

    Member 0 has that model's head and order of pairs, and parts from it by rounding alone, which a thousand
    steps make large; the others have their own.
    """
    cfg, devices, M = ground.cfg, ground.devices, ground.cfg.ensemble.members
    rm, root = networks.reward_model(ground.lm), jax.random.key(cfg.seed)
    pairs = encode_comparisons(ground.words, ground.halves[0], *ground.lengths)
    count, size = len(ground.halves[0]), cfg.reward.batch_size
    steps = max(1, round(cfg.reward.epochs * count / size))
    tx = optimizer.make(cfg.reward.optimizer, steps)
    step = ensemble.make_train_step(
        rm.fn, tx, cfg.reward.loss,
        microbatches=cfg.reward.microbatches, axis_name=devices.axis_name,
    )  # fmt: skip
    step = stages.compile_step(devices, "ensemble", step)
    params = devices.make(
        lambda trunk: ensemble.init(rm.init, root, trunk, cfg.ensemble),
        devices.share(ground.reference),
    )

    def body(state, i):
        rows = np.stack([rows_at(count, size, cfg.seed + m, i) for m in range(M)], axis=1)
        batch = devices.take(pairs, rows)  # [B, M, ...]
        return step(state, {}, batch)

    state = loop.iterate(
        ground.folder, "ensemble", stages.begun(devices, params, tx, ensemble.init_state), body,
        iterations=steps, save_every=cfg.reward.save_every, log_every=5,
        unit="steps", wandb=cfg.wandb,
    )  # fmt: skip
    texts = stages.demonstrations(ground.words, ground.world.corpus_held_out, ground.lengths)
    means = each(ground, devices.host(state.params), texts).mean(axis=0)
    return reward_model.centre(devices.host(state.params), means)


def each(ground: Ground, members, sequences) -> np.ndarray:
    """The score that each member gives to each row [N, M]."""
    fn = jax.vmap(networks.reward_model(ground.lm).fn, in_axes=(0, None, None), out_axes=1)
    return inference.score(ground.devices, fn, members, sequences)


def on_held_out_pairs(ground: Ground, members) -> dict[str, np.ndarray]:
    """Scores [N, 2] of both sides of every held-out pair: by one model, each member, and them together."""
    fn, cfg = networks.reward_model(ground.lm).fn, ground.cfg.ensemble
    pairs = encode_comparisons(ground.words, ground.pairs_held_out, *ground.lengths)
    sides = [jnp.asarray(each(ground, members, side)).T for side in pairs.sides]  # [M, N] each
    scored = {
        "one reward model": inference.both_scores(
            ground.devices, ground.reward_fn, ground.reward, pairs
        )
    }
    for m in range(cfg.members):
        scored[f"member {m}"] = np.stack([side[m] for side in sides], axis=1)
    for how in ("mean", "min", "uwo"):
        scored[how] = np.stack(
            [ensemble.combine(x, replace(cfg, combine=how)) for x in sides], axis=1
        )
    warm = inference.both_scores(ground.devices, fn, ensemble.weight_average(members), pairs)
    return scored | {"warm": warm}
