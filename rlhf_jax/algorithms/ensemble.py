"""Several reward models as one program, and their combined score (Coste et al., 2024; Rame et al., 2024).

Members learn from the same comparisons, each in its own order and from its own initial head. Their
parameters, optimizer states, step counts and scores carry a leading member axis M. A batch does not: its
rows lead, as everywhere, because devices shard rows. The batch is Comparisons of arrays [B, M, ...], and
member m learns from column m.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax import train_step
from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.bounds import Bound, NonNegative, Settings


@dataclass(frozen=True)
class EnsembleConfig(Settings):
    """Size of a reward model ensemble, and the rule that combines its scores."""

    _main = ("members", "combine")

    members: Annotated[int, Bound(ge=2)] = 4
    """Number of reward models (4 or 5: Coste et al., 2024, who saw little gain from more)."""
    combine: Literal["mean", "min", "uwo", "warm"] = "uwo"
    """Score to maximise: the members' mean, their minimum (min), their mean less uncertainty_coef standard
    deviations (uwo), or the score of one model with their averaged weights (warm), whose members share the
    initial head and differ only in the order of their data."""
    uncertainty_coef: NonNegative = 0.5
    """For uwo: standard deviations subtracted from the mean score (our choice; Coste et al., 2024, subtract
    variances)."""


def init(reward_init, key, trunk, cfg: EnsembleConfig):
    """Initial parameters of all members, [M, ...]: `reward_init(key_m, trunk)`, stacked.

    key_m is `key` folded with m, or with 0 for every member where "warm" averages their weights.
    """
    names = jnp.arange(cfg.members) * (cfg.combine != "warm")
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, names)
    return jax.vmap(reward_init, in_axes=(0, None))(keys, trunk)


def init_state(params, tx) -> train_step.TrainState:
    """Initial state for training each member of `params` [M, ...] with `tx`."""
    return jax.vmap(lambda member: train_step.init_state(member, tx))(params)


def make_train_step(reward_fn, tx, cfg: RewardLossConfig, *, microbatches=1, axis_name=None):
    """`step(state, frozen, batch) -> (state, metrics)`: the reward step of every member at once.

    `state` comes from `init_state`; `batch` is Comparisons of arrays [B, M, ...]. Clipping, skipping and
    counting are per member; metrics are means over members.
    """
    step = reward_model.make_train_step(
        reward_fn, tx, cfg, microbatches=microbatches, axis_name=axis_name
    )

    def ensemble_step(state, frozen, batch):
        state, metrics = jax.vmap(step, in_axes=(0, None, 1))(state, frozen, batch)
        return state, jax.tree.map(jnp.mean, metrics)

    return ensemble_step


def weight_average(params):
    """Parameters of one reward model: the mean of all members' (WARM: Rame et al., 2024).

    Averaging works for weights that started at one point and did not move far: use a shared head and a
    small learning rate. Any other average may be worse than every member.
    """
    mean = lambda x: x.astype("float32").mean(axis=0).astype(x.dtype)
    return jax.tree.map(mean, params)


def disagreement(scores: Float[Array, "M B"]) -> Float[Array, " B"]:
    """Standard deviation over members of the score of each row (divided by M)."""
    return jnp.std(scores, axis=0)


def combine(scores: Float[Array, "M B"], cfg: EnsembleConfig) -> Float[Array, " B"]:
    """One score per row from the members' scores; raises ValueError for "warm", which averages weights
    instead.

    "uwo" is mean - uncertainty_coef std, in units of score. The uncertainty-weighted optimisation of Coste
    et al. (2024) subtracts uncertainty_coef times the variance instead, so its coefficient depends on the
    scale of scores. "min" is their worst case. Both compare scores across members, and Bradley-Terry leaves
    the zero of each member free: apply `reward_model.centre` to all of them first (with means [M]), on the
    same texts.
    """
    if cfg.combine == "mean":
        return jnp.mean(scores, axis=0)
    if cfg.combine == "min":
        return jnp.min(scores, axis=0)
    if cfg.combine == "uwo":
        return jnp.mean(scores, axis=0) - cfg.uncertainty_coef * disagreement(scores)
    raise ValueError(
        f'ensemble.combine = "{cfg.combine}" does not combine scores: use mean, min or uwo, or make_score'
    )


def make_score(reward_fn, cfg: EnsembleConfig):
    """`score(params, tokens, attention_mask) -> [B]`: a reward_fn whose parameters are all members'.

    "warm" averages the parameters at each call; to average only once, call `weight_average` and use
    `reward_fn` itself.
    """
    members = jax.vmap(reward_fn, in_axes=(0, None, None))

    def score(params, tokens, attention_mask):
        if cfg.combine == "warm":
            return reward_fn(weight_average(params), tokens, attention_mask)
        return combine(members(params, tokens, attention_mask), cfg)

    return score
