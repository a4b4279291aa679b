"""Several reward models against over-optimization, and RLOO against their common score (Coste et al., 2024).

    python launch.py ensemble                                   # --ensemble.combine mean, min or uwo
    python launch.py ensemble --ensemble.combine warm --ensemble.shared-head     # their weights' average

TODO
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from experiments import ground as grounds
from experiments import rl, stages
from experiments.ground import Ground
from rlhf_jax import ensemble, evaluate, loop, optimizer, reward_model
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.ensemble import EnsembleConfig
from rlhf_jax.models import networks
from rlhf_jax.parallel import DATA


@dataclass(frozen=True)
class Config(rl.Config):
    """Settings of the ensemble experiment; the members are trained as `reward` says."""

    ensemble: EnsembleConfig = EnsembleConfig()


config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    ground = grounds.lay("ensemble", cfg, rl.batch_sizes(cfg, cfg.pg))
    if ground is None:
        return
    fn, warm = networks.reward_model(ground.lm).fn, cfg.ensemble.combine == "warm"
    members_fn = jax.vmap(fn, in_axes=(0, None, None), out_axes=1)  # [B, M]
    members = train(ground, members_fn)
    average = ensemble.weight_average(members)

    # 1. what they, and what is made of them, know of held-out pairs
    judged = encode_comparisons(ground.words, ground.pairs_held_out, *ground.lengths)
    each = stages.both_scores(members_fn, members, judged)  # [N, 2, M]
    as_one = lambda scores, how: np.asarray(
        ensemble.combine(jnp.moveaxis(scores, -1, 0), replace(cfg.ensemble, combine=how))
    )
    scored = {"the reward model of all experiments": stages.both_scores(fn, ground.reward, judged)}
    scored |= {f"member {m}": each[..., m] for m in range(cfg.ensemble.members)}
    combined = {how: as_one(each.reshape(-1, each.shape[-1]), how).reshape(-1, 2) for how in ("mean", "min", "uwo")}
    combined["warm"] = stages.both_scores(fn, average, judged)
    groups = [c.group for c in ground.pairs_held_out]
    rows = [
        {"scores of": name, "accuracy on held-out pairs": evaluate.accuracy(x[:, 0] - x[:, 1], groups)._asdict()}
        for name, x in (scored | combined).items()
    ]

    # 2. RLOO against their common score
    score_fn = ensemble.make_score(fn, cfg.ensemble)
    ground = ground._replace(
        reward=average if warm else members,
        reward_fn=fn if warm else score_fn,
        facts=ground.facts
        | grounds.about_reward(ground.world, combined[cfg.ensemble.combine], ground.halves[0], ground.pairs_held_out),
    )
    params, _ = rl.train(ground, rl.with_policy_gradient(ground, "rloo"))
    said = grounds.after(ground, params)
    spread = {
        "on held-out pairs": each.std(axis=-1).mean(),
        "after": stages.score(members_fn, members, said.samples).std(axis=-1).mean(),
    }
    extra = {"disagreement of members": spread, "accuracies": rows}
    grounds.conclude(ground, f"RLOO against {cfg.ensemble.combine}", said, extra=extra)


def train(ground: Ground, members_fn):
    """The parameters of all members [M, ...], the mean score of held-out texts set to zero for each."""
