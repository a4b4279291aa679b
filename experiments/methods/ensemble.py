"""RLOO against the combined score of several reward models (Coste et al., 2024).

    python launch.py ensemble                          # --ensemble.combine mean, min or uwo
    python launch.py ensemble --ensemble.combine warm                             # averaged weights

Some minutes beyond the shared stages; --start-from RUN takes those from a run. Held-out accuracy is 0.689 to
0.776 for a member, 0.766 for their mean, 0.761 for mean less half a deviation (UWO) and 0.646 for averaged
weights (WARM); RLOO against UWO raises gold from -0.39 to 1.42 at a KL of 3.5 (seed 0).
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import ensemble, reward_model
from rlhf_jax.algorithms.ensemble import EnsembleConfig
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.evaluation import intervals
from rlhf_jax.models import networks
from rlhf_jax.pipeline import (
    agreement,
    generation,
    keys,
    learners,
    on_policy,
    people,
    results,
    stages,
    texts,
)
from rlhf_jax.pipeline.prepare import Prepared, prepare
from rlhf_jax.pipeline.rl_settings import PolicyGradientRun
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.pipeline.texts import Feedback


@dataclass(frozen=True)
class Config(PolicyGradientRun):
    """Settings of the ensemble experiment, whose members are trained with the settings of `reward`."""

    ensemble: EnsembleConfig = EnsembleConfig()

    def needs(self) -> texts.Needs:
        """The files that the method learns from: comparisons, and no ratings."""
        needs = super().needs()
        return needs._replace(optional=tuple(x for x in needs.optional if x != "ratings"))

    def _conditions(self, at: str):
        super()._conditions(at)
        if not self.rl.model_weight:
            raise ValueError(
                f"{at}rl.reward_model_weight = 0.0 leaves the ensemble out of the reward: set it above 0, or "
                f"start rloo with this rl.reward"
            )


config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("ensemble", cfg, learners.batch_sizes(cfg, "pg", cfg.pg))
    if run is None:
        return
    own, fn = run.cfg.ensemble, networks.reward_model(run.lm).fn
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    reward, held_out_reward = stages.reward_models(run, reference, pairs)
    assert reward is not None and pairs is not None

    # 1. more reward models, and their accuracy on held-out pairs
    members = train(run, reference, pairs)
    scored = on_held_out_pairs(run, reward, members, pairs)
    of = [c.group for c in pairs.held_out], [c.weight for c in pairs.held_out]
    accuracy = lambda x: intervals.accuracy(x[:, 0] - x[:, 1], *of)._asdict()
    rows = [{"scores of": name, "held-out accuracy": accuracy(x)} for name, x in scored.items()]
    facts = agreement.about_scored(run, scored[own.combine], pairs, pairs.halves[0]) | facts

    # 2. RLOO against their combined score
    if own.combine == "warm":
        combined = Reward(fn, run.devices.make(ensemble.weight_average, members))
    else:
        combined = Reward(ensemble.make_score(fn, own), members)
    method = learners.with_policy_gradient(run, "rloo", reference)
    params, _ = on_policy.train(run, method, reference, combined, held_out_reward)

    # 3. the results, and the disagreement of the members
    before, said = (results.respond(run, x) for x in (run.start(reference), params))
    spread = lambda said: member_scores(run, members, said.samples).std(axis=-1).mean().item()
    extra = {
        "disagreement of the reward models": {"before": spread(before), "after": spread(said)},
        "ensemble": rows,
    }
    judges = results.Judges(combined, held_out_reward)
    name = f"RLOO ({own.combine})"
    results.conclude(run, name, reference, said, judges, extra=extra, facts=facts)


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
