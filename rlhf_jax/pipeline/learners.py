"""Learners on the devices of a run: PPO, policy gradients, and any other that samples from its policy."""

from collections.abc import Callable

from rlhf_jax import optimizer
from rlhf_jax.algorithms import policy_gradient, ppo
from rlhf_jax.bounds import batch_parts
from rlhf_jax.models import lora, networks
from rlhf_jax.pipeline import keys, stages
from rlhf_jax.pipeline.on_policy import OnPolicy
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.pipeline.scoring import Reward


def batch_sizes(cfg, area: str, algorithm) -> dict[str, int]:
    """Numbers of rows that must divide over the devices; `algorithm` holds the settings named `area`."""
    return batch_parts(area, algorithm, "rl.batch_size", cfg.rl.batch_size)


def make_tx(cfg, algorithm):
    """The optimizer for all updates of a run."""
    steps = cfg.rl.iterations * algorithm.epochs * algorithm.minibatches
    return optimizer.make(cfg.rl.optimizer, steps)


def on_devices(
    run: Prepared, stage: str, make: Callable, fn: Callable, tx, reference, reward_params=None
) -> OnPolicy:
    """The learner `make(fn)`, compiled, for the function `fn` of the trained network.

    With adapters, updates compute `fn` over the frozen base. The policy starts from `reference`, or from the
    setting `policy`, and the critic from `reward_params` if given.
    """
    learner, adapters = make(fn), run.cfg.lora
    start = learner.init(run.start(reference), reward_params)
    base, trained = lora.split(keys.adapters(run.cfg.seed, "policy"), start, adapters)
    update = lora.over_base(lambda fn: make(fn).update, fn, adapters)
    learner = stages.compile_learner(run.devices, learner._replace(update=update))
    return OnPolicy(stage=stage, learner=learner, base=base, trained=trained, tx=tx)


def with_ppo(run: Prepared, reference, reward: Reward | None) -> OnPolicy:
    """PPO with the critic set by `rl.value`."""
    cfg, tx = run.cfg, make_tx(run.cfg, run.cfg.ppo)
    lm = run.lm.at(cfg.sample.temperature)
    critic = networks.actor_critic(lm, value=cfg.rl.value)
    make = lambda fn: ppo.make_learner(
        lm.policy_fn, critic._replace(fn=fn), tx, cfg.ppo, cfg.rollout,
        axis_name=run.devices.axis_name,
    )  # fmt: skip
    start = lora.merge(reward.params) if reward and cfg.rl.value_from == "reward" else None
    return on_devices(run, "ppo", make, critic.fn, tx, reference, start)


def with_policy_gradient(run: Prepared, stage: str, reference) -> OnPolicy:
    """A policy gradient without a critic, trained in the stage of that name."""
    cfg, tx = run.cfg, make_tx(run.cfg, run.cfg.pg)
    make = lambda fn: policy_gradient.make_learner(
        fn, tx, cfg.pg, cfg.rollout, axis_name=run.devices.axis_name
    )
    policy_fn = run.lm.at(cfg.sample.temperature).policy_fn
    return on_devices(run, stage, make, policy_fn, tx, reference)
