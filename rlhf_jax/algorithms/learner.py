"""What a loop of rollouts and updates asks of an on-policy method.

    seen = learner.annotate(params, ref_params, samples)
    state, metrics = learner.update(state, frozen, kl_coef, with_rewards(seen, scores, cfg), rng)

`ppo.make_learner` and `policy_gradient.make_learner` make one from a network's functions; any other method
that fits these functions serves the same loops.
"""

from collections.abc import Callable
from typing import NamedTuple


class Learner(NamedTuple):
    """Pure functions of one method, and two facts about it."""

    area: str  # of its metrics: "ppo", "pg", ...
    init: Callable  # (policy_params, reward_params=None) -> params
    policy_of: Callable  # params -> the policy's own
    annotate: Callable  # (params, ref_params, samples) -> a rollout with rewards of zero
    update: Callable  # (state, frozen, kl_coef, rollout, rng) -> (state, metrics)
    group: int  # draws of a prompt, in adjacent rows


def policy_alone(policy_params, reward_params=None):
    """The `init` of a method whose parameters are the policy's."""
    del reward_params
    return policy_params
