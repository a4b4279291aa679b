"""The host loop of on-policy methods: sample, score, annotate, update; PPO or a method without a critic."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from experiments import ground as grounds
from experiments import judge, outcome, stages
from experiments.ground import Ground
from rlhf_jax import kl, loop, memory, optimizer, policy_gradient, ppo, rollout
from rlhf_jax.batches import PolicyRollout
from rlhf_jax.data.batching import rows_at
from rlhf_jax.models import lora, networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.padding import is_stop
from rlhf_jax.parallel import DATA
from rlhf_jax.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class RLConfig(judge.PythonRewardConfig):
    """The loop round the algorithm."""

    iterations: int = 100
    """Rollouts, each followed by an update."""
    batch_size: int = 128
    """Responses in a rollout."""
    value: str = "separate"
    """PPO's critic: a network of its own, or "shared" with the policy's trunk."""
    value_from: str = "policy"
    """What a separate critic starts from: policy (its head at zero), or reward (with its head)."""
    kl_coef: float = 0.1
    """Weight of the KL penalty; with a target, where it starts."""
    kl_target: float = 0.0
    """Nats a response that the coefficient adapts to (Ziegler et al., 2019: 6); 0 holds it fixed."""
    kl_horizon: float = 10_000.0
    """Samples over which it adapts."""
    refill: int = 0
    """Most further rounds of sampling in which groups whose draws all score alike are replaced by groups
    of the next prompts (DAPO's dynamic sampling, Yu et al., 2025)."""
    save_every: int = 20
    """Iterations between checkpoints."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    best: str = "objective/reward"
    """Metric whose highest mean between two checkpoints picks one more that is kept, for `export --best`;
    empty: none."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))


class OnPolicy(NamedTuple):
    """An algorithm, as the loop sees it."""

    stage: str
    base: Any  # what is not trained of the parameters, where adapters are,
    trained: Any  # and what is, to start from
    policy_of: Callable  # whole parameters -> the policy's own
    see: Callable  # (params, ref_params, samples) -> what the devices can do before the scores are there
    join: Callable  # (params, ref_params, samples, that, scores) -> the rollout that `update` takes
    update: Callable  # (state, frozen, kl_coef, rollout, rng) -> (state, metrics)
    tx: Any  # its optimizer
    group: int  # draws of a prompt in adjacent rows


def batch_sizes(cfg, algorithm) -> dict[str, int]:
    """What must divide over the devices; `algorithm` are the settings of PPO or of a policy gradient.

    Raises ValueError where minibatches, or the draws of a prompt, do not divide a rollout.
    """
    rows, area = cfg.rl.batch_size, "ppo" if hasattr(algorithm, "lam") else "pg"
    for name in ("minibatches", "group"):
        parts = getattr(algorithm, name, 1)
        if rows % parts:
            raise ValueError(
                f"{area}.{name} = {parts} does not divide rl.batch_size = {rows}: choose a divisor"
            )
    return {
        "rl.batch_size": rows,
        f"rl.batch_size / {area}.minibatches": rows // algorithm.minibatches,
    }


def make_tx(cfg, algorithm):
    """The optimizer of all updates of a run."""
    steps = cfg.rl.iterations * algorithm.epochs * algorithm.minibatches
    return optimizer.make(cfg.rl.optimizer, steps)


def split(ground: Ground, params):
    """(base, trained) of the parameters of a method."""
    return lora.split(jax.random.fold_in(ground.key, 4), params, ground.cfg.lora)


def compile_update(ground: Ground, make: Callable, fn: Callable) -> Callable:
    """`make(fn)`, as `stages.compile_update` takes it, over the base."""
    return stages.compile_update(ground.devices, lora.over_base(make, fn, ground.cfg.lora))


def with_ppo(ground: Ground, actor_critic) -> OnPolicy:
    """PPO, with an actor-critic."""
    cfg, devices, tx = ground.cfg, ground.devices, make_tx(ground.cfg, ground.cfg.ppo)
    if cfg.rl.value_from not in ("policy", "reward"):
        raise ValueError(f'rl.value_from = "{cfg.rl.value_from}": use "policy" or "reward"')
    start = lora.merge(ground.reward) if cfg.rl.value_from == "reward" else None
    base, trained = split(ground, actor_critic.init(ground.reference, start))
    annotate = devices.compile(
        rollout.make_annotate(ground.lm.policy_fn, actor_critic.fn, cfg.rollout),
        (P(), P(), P(DATA), P(DATA)),
        P(DATA),
    )
    return OnPolicy(
        stage="ppo",
        base=base,
        trained=trained,
        policy_of=lambda params: params["policy"],
        see=lambda params, ref_params, samples: None,
        join=lambda params, ref_params, samples, _, scores: annotate(
            params, ref_params, samples, scores
        ),
        update=compile_update(
            ground,
            lambda fn: ppo.make_update(fn, tx, cfg.ppo, axis_name=devices.axis_name),
            actor_critic.fn,
        ),
        tx=tx,
        group=1,
    )


def without_critic(ground: Ground) -> tuple[Callable, Callable]:
    """`see` and `join` of methods without a critic, whose rollout is a PolicyRollout."""
    cfg, devices = ground.cfg, ground.devices
    see = devices.compile(
        rollout.make_logprobs(ground.lm.policy_fn, cfg.rollout), (P(), P(), P(DATA)), P(DATA)
    )
    join = devices.compile(
        lambda samples, seen, scores: rollout.policy_rollout(
            samples, seen[0], seen[1], scores, cfg.rollout
        ),
        (P(DATA), P(DATA), P(DATA)),
        P(DATA),
    )
    return see, lambda params, ref_params, samples, seen, scores: join(samples, seen, scores)


def with_policy_gradient(ground: Ground, stage: str) -> OnPolicy:
    """REINFORCE, RLOO, GRPO and what descends from it: no critic."""
    cfg, devices, tx = ground.cfg, ground.devices, make_tx(ground.cfg, ground.cfg.pg)
    see, join = without_critic(ground)
    base, trained = split(ground, ground.reference)
    return OnPolicy(
        stage=stage,
        base=base,
        trained=trained,
        policy_of=lambda params: params,
        see=see,
        join=join,
        update=compile_update(
            ground,
            lambda fn: policy_gradient.make_update(fn, tx, cfg.pg, axis_name=devices.axis_name),
            ground.lm.policy_fn,
        ),
        tx=tx,
        group=cfg.pg.group,
    )


def train(ground: Ground, algorithm: OnPolicy):
    """(parameters, KL coefficient) after all iterations. Metrics and checkpoints go to the run directory."""
    cfg, rl, devices, world = ground.cfg, ground.cfg.rl, ground.devices, ground.world
    of_samples = lambda fn: fn and (lambda params, x: fn(params, x.tokens, x.attention_mask))
    judge_fn = of_samples(networks.reward_model(ground.lm).fn)
    held_out = devices.compile(judge_fn, (P(), P(DATA)), P(DATA))
    scorer = judge.Judge(ground, of_samples(ground.reward_fn))
    root, group = jax.random.key(cfg.seed), algorithm.group
    sample = memory.told("rollout", ground.answers.sample, "a smaller batch or --sample.slots 32")
    base, reference, reward_params, judge_params = devices.share(
        (algorithm.base, ground.reference, ground.reward, ground.judge)
    )

    def draw(policy, drawn, key):
        """The rows of prompts after the first `drawn` batches, `group` responses to each, their scores."""
        rows = np.repeat(
            rows_at(len(world.prompts), rl.batch_size // group, cfg.seed, drawn), group
        )
        batch = jax.tree.map(lambda x: x[rows], ground.prompts)
        batch = batch._replace(draw=np.arange(rl.batch_size, dtype=np.int32))  # a prompt may recur
        samples = sample(policy, devices.put_batch(batch), key)
        asked, columns = ([texts[r] for r in rows] for texts in (world.prompts, world.columns))
        return rows, samples, scorer.begin(reward_params, asked, columns, samples)

    def refilled(policy, drawn, key, first):
        """A batch whose groups without signal were replaced by later ones, in at most `rl.refill` rounds."""
        parts = [first]
        for extra in range(1, rl.refill + 1):
            scores = np.concatenate([found["score"] for _, _, found in parts])
            signal = np.ptp(scores.reshape(-1, group), axis=1) > 0
            if signal.sum() * group >= rl.batch_size:
                break
            rows, samples, end = draw(policy, drawn + extra, jax.random.fold_in(key, 1 + extra))
            parts.append((rows, devices.fetch(samples), end()))
        rows, samples, found = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        flat = np.ptp(found["score"].reshape(-1, group), axis=1) == 0
        groups = np.argsort(flat, kind="stable")[: rl.batch_size // group]
        kept = (groups[:, None] * group + np.arange(group)).ravel()
        batch = jax.tree.map(lambda x: x[kept], (rows, samples, found))
        return (*batch, drawn + len(parts))

    def iteration(carry, i):
        state, kl_coef, drawn = carry["state"], carry["kl_coef"], int(carry["drawn"])
        params, key = lora.join(base, state.params, cfg.lora), jax.random.fold_in(root, i)
        policy = algorithm.policy_of(params)
        rows, samples, end = draw(policy, drawn, key)
        if rl.refill:
            first = rows, devices.fetch(samples), end()
            rows, said, found, drawn = refilled(policy, drawn, key, first)
            samples = devices.put_batch(said)
            seen = algorithm.see(params, reference, samples)
        else:
            seen = algorithm.see(params, reference, samples)
            said, found, drawn = devices.fetch(samples), end(), drawn + 1
        scores = devices.put_batch(found.pop("score"))
        annotated = algorithm.join(params, reference, samples, seen, scores)
        state, metrics = algorithm.update(
            state, {"base": base}, kl_coef, annotated, jax.random.fold_in(key, 1)
        )
        if cfg.rollout.recompute_logprobs:
            own = annotated if isinstance(annotated, PolicyRollout) else annotated.samples
            gap = np.abs(devices.fetch(own.logprobs) - said.logprobs).max()
            metrics |= {"objective/sampler_gap": gap}
        tokens = jnp.asarray(said.tokens[:, -cfg.sample.length :])
        ended = np.any(is_stop(tokens, cfg.sample.stop) & said.mask, 1)
        metrics |= {"objective/eos_rate": ended.mean()} | {n: x.mean() for n, x in found.items()}
        if ground.judge is not None:
            judged = devices.fetch(held_out(judge_params, samples)).mean()
            metrics |= {"objective/held_out_score": judged, "objective/gold": judged}
        if world.gold:
            texts, prompts = ground.answers.texts(said), [world.prompts[row] for row in rows]
            metrics |= {"objective/gold": world.gold(prompts, texts).mean()}
        if rl.kl_target:
            kl_coef = kl.adapt(
                kl_coef, metrics["objective/kl"],
                samples=rl.batch_size, target=rl.kl_target, horizon=rl.kl_horizon,
            )  # fmt: skip
        return {"state": state, "kl_coef": kl_coef, "drawn": np.int32(drawn)}, metrics

    carry = {
        "state": stages.begun(devices, algorithm.trained, algorithm.tx),
        "kl_coef": devices.put(jnp.float32(rl.kl_coef)),
        "drawn": np.int32(0),  # batches of prompts that were sampled
    }
    carry = loop.iterate(
        ground.folder, algorithm.stage, carry, iteration,
        iterations=rl.iterations, save_every=rl.save_every, keep=rl.keep, best=rl.best, wandb=cfg.wandb,
    )  # fmt: skip
    trained, kl_coef = devices.host((carry["state"].params, carry["kl_coef"]))
    return lora.join(algorithm.base, trained, cfg.lora), kl_coef


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of a policy gradient without a critic."""

    pg: PolicyGradientConfig = policy_gradient.RLOO
    rl: RLConfig = RLConfig()


def main(name: str, cfg: Config):
    """Runs the experiment `name`: what is not yet in the run directory."""
    ground = grounds.lay(name, cfg, batch_sizes(cfg, cfg.pg))
    if ground is None:
        return
    params, _ = train(ground, with_policy_gradient(ground, name))
    outcome.conclude(ground, name.upper(), outcome.after(ground, params))
