"""The interface between an on-policy method and the loop of rollouts and updates.

    seen = learner.annotate(params, ref_params, samples)
    state, metrics = learner.update(state, frozen, kl_coef, with_rewards(seen, scores, cfg), rng)

`ppo.make_learner` and `policy_gradient.make_learner` return one, made from a network's functions; any other
method with these functions works in the same loops.
"""

from collections.abc import Callable
from typing import NamedTuple


class Learner(NamedTuple):
    """Pure functions of one method, its metric area and its group size."""

    area: str  # prefix of its metrics: "ppo", "pg", ...; the stage, a folder's name, is the experiment's
    init: Callable  # (policy_params, reward_params=None) -> params
    policy_of: Callable  # params -> the policy's parameters
    annotate: Callable  # (params, ref_params, samples) -> a rollout with rewards of zero
    update: Callable  # (state, frozen, kl_coef, rollout, rng) -> (state, metrics)
    group: int  # draws of a prompt, in adjacent rows


def policy_alone(policy_params, reward_params=None):
    """The `init` of a method whose parameters are the policy's."""
    del reward_params
    return policy_params
