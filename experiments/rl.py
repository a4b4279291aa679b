"""PPO's host loop: sample, score, annotate, update; the reward is any function of samples."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import kl, loop, optimizer, ppo, rollout, train_step
from rlhf_jax.batches import Prompts
from rlhf_jax.data.batching import rows_at
from rlhf_jax.models import networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.padding import is_stop
from rlhf_jax.parallel import DATA, Devices


@dataclass(frozen=True)
class RLConfig:
    """The loop round the algorithm."""

    iterations: int = 100
    """Rollouts, each followed by an update."""
    batch_size: int = 128
    """Responses in a rollout."""
    value: str = "separate"
    """The critic: a network of its own, or "shared" with the policy's trunk."""
    value_from: str = "policy"
    """What a separate critic starts from: policy (its head at zero), or reward (with its head)."""
    kl_coef: float = 0.1
    """Weight of the KL penalty; with a target, where it starts."""
    kl_target: float = 0.0
    """Nats a response that the coefficient adapts to (Ziegler et al., 2019: 6); 0 holds it fixed."""
    kl_horizon: float = 10_000.0
    """Samples over which it adapts."""
    save_every: int = 20
    """Iterations between checkpoints."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))


def batch_sizes(cfg) -> dict[str, int]:
    """What must divide over the devices. Raises ValueError where minibatches do not divide a rollout."""
    rows, minibatches = cfg.rl.batch_size, cfg.ppo.minibatches
    if rows % minibatches:
        raise ValueError(
            f"ppo.minibatches = {minibatches} does not divide rl.batch_size = {rows}: choose a divisor"
        )
    return {"rl.batch_size": rows, "rl.batch_size / ppo.minibatches": rows // minibatches}


def train_ppo(
    folder, cfg, devices: Devices, lm, sample, reference, reward_params, judge_params,
    prompts: Prompts, watch, *, seed, wandb=False,
):  # fmt: skip
    """(the actor-critic's function, its parameters, the KL coefficient) after PPO.

    `cfg` has the settings `rl`, `sample`, `rollout` and `ppo`; `sample` is compiled for `devices`.
    `watch(rows, samples, judged) -> {name: number}` sees each rollout on the host.
    """
    rl = cfg.rl
    ac, reward_fn = networks.actor_critic(lm, value=rl.value), networks.reward_model(lm).fn
    if rl.value_from not in ("policy", "reward"):
        raise ValueError(f'rl.value_from = "{rl.value_from}": use "policy" or "reward"')
    start = ac.init(reference, reward_params if rl.value_from == "reward" else None)
    tx = optimizer.make(rl.optimizer, rl.iterations * cfg.ppo.epochs * cfg.ppo.minibatches)
    annotate = devices.compile(
        rollout.make_annotate(lm.policy_fn, ac.fn, cfg.rollout),
        (P(), P(), P(DATA), P(DATA)),
        P(DATA),
    )
    score = devices.compile(
        lambda params, samples: reward_fn(params, samples.tokens, samples.attention_mask),
        (P(), P(DATA)),
        P(DATA),
    )
    update = devices.compile(
        ppo.make_update(ac.fn, tx, cfg.ppo, axis_name=devices.axis_name),
        (P(), P(), P(), P(DATA), P()),
        (P(), P()),
        donate=0,
    )
    root = jax.random.key(seed)
    reference, reward_params, judge_params = (
        devices.put(params) for params in (reference, reward_params, judge_params)
    )

    def iteration(carry, i):
        state, kl_coef = carry["state"], carry["kl_coef"]
        key = jax.random.fold_in(root, i)
        rows = rows_at(len(prompts.index), rl.batch_size, seed, i)
        batch = jax.tree.map(lambda x: x[rows], prompts)
        batch = batch._replace(draw=np.arange(rl.batch_size, dtype=np.int32))  # a prompt may recur
        samples = sample(state.params["policy"], devices.put_batch(batch), key)
        scores, judged = score(reward_params, samples), score(judge_params, samples)
        annotated = annotate(state.params, reference, samples, scores)
        state, metrics = update(state, {}, kl_coef, annotated, jax.random.fold_in(key, 1))
        said, judged = devices.fetch((samples, judged))
        tokens = jnp.asarray(said.tokens[:, -cfg.sample.length :])
        metrics |= {
            "objective/held_out_score": judged.mean(),
            "objective/eos_rate": np.any(is_stop(tokens, cfg.sample.stop) & said.mask, 1).mean(),
        } | watch(rows, said, judged)
        if rl.kl_target:
            kl_coef = kl.adapt(
                kl_coef, metrics["objective/kl"],
                samples=rl.batch_size, target=rl.kl_target, horizon=rl.kl_horizon,
            )  # fmt: skip
        return {"state": state, "kl_coef": kl_coef}, metrics

    carry = {
        "state": devices.put(train_step.init_state(start, tx)),
        "kl_coef": devices.put(jnp.float32(rl.kl_coef)),
    }
    carry = loop.iterate(
        folder, "ppo", carry, iteration,
        iterations=rl.iterations, save_every=rl.save_every, wandb=wandb,
    )  # fmt: skip
    params, kl_coef = jax.device_get((carry["state"].params, carry["kl_coef"]))
    return ac.fn, params, kl_coef
