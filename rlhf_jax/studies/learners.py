"""Training of a study's policies: PPO, RLOO and GRPO on a reward, DPO and SFT on comparisons.

All results have a leading axis of seeds [S, ...], and `Devices.each` maps over it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax import optimizer, train_step
from rlhf_jax.algorithms import policy_gradient, ppo, preference, rollout, sft
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import PreferenceBatch, Samples
from rlhf_jax.bounds import Count, NonNegative, Positive, Settings
from rlhf_jax.data.batching import rows_at
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import networks
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline.scoring import Reward
from rlhf_jax.studies import context as contexts
from rlhf_jax.studies.context import Seed, StudyContext
from rlhf_jax.studies.proxies import comparisons
from rlhf_jax.studies.trees import (
    in_chunks,
    pad_list_to_devices,
    pad_to_devices,
    rows_of_seeds,
    tree_index,
)

MethodName = Literal["ppo", "rloo", "grpo", "dpo", "sft"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
ON_POLICY = METHODS[:3]
EPOCHS = {"ppo": 2, "rloo": 1, "grpo": 2}  # updates of a rollout
GROUP = {"ppo": 1, "rloo": 4, "grpo": 8}  # responses to a prompt


@dataclass(frozen=True)
class Method(Settings):
    """Training method of a policy, and its settings."""

    name: MethodName
    """Method: ppo, rloo, grpo, dpo, or sft on the chosen responses."""
    lr: Positive = 1e-3
    """Peak learning rate; it falls linearly to zero."""
    strength: NonNegative = 0.05
    """Strength of the tie to the reference: the KL coefficient, DPO's beta, or 1 / the passes of SFT."""
    iterations: Count = 100
    """Rollouts of an on-policy method."""
    batch_size: Count = 128
    """Responses in a rollout; for methods on comparisons, pairs in a step."""
    epochs: Positive = 1.0
    """Passes of DPO over the comparisons."""

    def _conditions(self, at: str):
        group = GROUP.get(self.name, 1)
        if self.batch_size % group:
            raise ValueError(
                f"{at}batch_size = {self.batch_size}: {self.name} draws {group} responses to each prompt, "
                f"so it must be a multiple of {group}"
            )
        if self.name not in ON_POLICY and not self.strength:
            raise ValueError(f"{at}strength = {self.strength}: {self.name} needs it above 0")


class Trained(NamedTuple):
    """Trained policies [S], and curves of their training: arrays [S, iterations] by name."""

    params: Any
    curves: dict[str, np.ndarray]


def on_policy(
    context: StudyContext,
    method: Method,
    seeds: Sequence[Seed],
    *,
    kind: str,
    reward: Reward | None = None,
) -> Trained:
    """Policies trained on a reward, whose parameters are [S], or without one on gold of `kind`.

    The curves are of the rollouts, each drawn from the policy of its iteration: the KL to the reference
    (nats a response), gold, proxy (the training score) and length.
    """
    devices, S, group = context.devices, len(seeds), GROUP[method.name]
    seeds = pad_list_to_devices(devices, seeds)
    start, policy_of, learn = _compiled(
        devices.each, method.name, context.lm, method.lr, method.iterations,
        rollout.RolloutConfig(missing_eos_penalty=1.0 if reward else 0.0),
    )  # fmt: skip
    reference, strength = devices.share((context.reference, np.float32(method.strength)))
    root = contexts.keys(devices, [seed.policy for seed in seeds], stage=3)
    state = start(root, reference)
    if reward:
        rewards = devices.put_batch(pad_to_devices(devices, reward.params))
        score = contexts.make_score(devices.each, reward.fn)

    def rows_of(i):
        """Prompts of iteration i for each seed [S, B], with `group` adjacent draws of each."""
        n = method.batch_size // group
        return np.stack(
            [np.repeat(rows_at(len(context.prompts), n, seed.policy, i), group) for seed in seeds]
        )

    curves = {"kl": [], "gold": [], "proxy": [], "length": []}
    for i in range(method.iterations):
        rows, rng = rows_of(i), _fold_in(devices.each)(root, np.int32(i))
        draw = np.broadcast_to(np.arange(method.batch_size, dtype=np.int32), rows.shape)
        prompts = devices.put_batch(tree_index(context.encoded, rows)._replace(draw=draw))
        samples = context.sample(policy_of(state.params), prompts, rng)
        if reward:  # while the devices work, the host computes gold
            scores = score(rewards, samples.tokens, samples.attention_mask)
            state, metrics = learn(state, reference, strength, samples, scores, rng)
        golds = gold_of_seeds(context, kind, rows, devices.fetch(samples))
        if not reward:
            scores = devices.put_batch(golds.astype(np.float32))
            state, metrics = learn(state, reference, strength, samples, scores, rng)
        curves["gold"].append(golds.mean(axis=1))
        curves["proxy"].append(devices.fetch(scores).mean(axis=1))
        metrics = devices.fetch(metrics)
        curves["kl"].append(metrics["objective/kl"])
        curves["length"].append(metrics["objective/length"])
    curves = {name: np.stack(x, axis=1, dtype=float)[:S] for name, x in curves.items()}
    return Trained(tree_index(devices.fetch(policy_of(state.params)), slice(S)), curves)


@cache
def _fold_in(each):
    return each(jax.random.fold_in, (P(DATA), P()))


@cache
def _compiled(each: Callable, name, policy, lr, iterations, cfg):
    """Initial states of the seeds, the policy's part of their parameters, and one update of each."""
    tx = optimizer.make(OptimizerConfig(lr=lr), iterations * EPOCHS[name])
    learner = _learner(name, policy, tx, cfg)
    begin = lambda _, reference: train_step.init_state(learner.init(reference), tx)

    def learn(state, reference, kl_coef, samples, scores, rng):
        seen = learner.annotate(state.params, reference, samples)
        return learner.update(state, {}, kl_coef, rollout.with_rewards(seen, scores, cfg), rng)

    specs = P(DATA), P(), P(), P(DATA), P(DATA), P(DATA)
    return each(begin, (P(DATA), P())), learner.policy_of, each(learn, specs, 0)


def _learner(name, policy, tx, cfg) -> Learner:
    """The learner of the method `name` for a language model."""
    epochs = EPOCHS[name]
    if name == "ppo":
        critic = networks.actor_critic(policy)
        return ppo.make_learner(policy.policy_fn, critic, tx, ppo.PPOConfig(epochs=epochs), cfg)
    preset = {"rloo": policy_gradient.RLOO, "grpo": policy_gradient.GRPO}[name]
    preset = replace(preset, group=GROUP[name], epochs=epochs)
    return policy_gradient.make_learner(policy.policy_fn, tx, preset, cfg)


def gold_of_seeds(
    context: StudyContext, kind: str, rows: np.ndarray, samples: Samples
) -> np.ndarray:
    """Gold scores [S, B] of samples [S, B, ...] to the prompts numbered `rows` [S, B]."""
    S, B = rows.shape
    flat = jax.tree.map(lambda x: x.reshape(S * B, *x.shape[2:]), samples)
    prompts = [context.prompts[row] for row in rows.ravel()]
    return contexts.gold(context, kind, prompts, flat).reshape(S, B)


def from_comparisons(
    context: StudyContext, method: Method, seeds: Sequence[Seed], *, kind: str, pairs: int
) -> Trained:
    """Policies trained on the comparisons of each data seed: DPO on both sides, SFT on the chosen one."""
    policy, devices, S = context.lm, context.devices, len(seeds)
    data = pad_to_devices(devices, comparisons(context, kind, pairs, seeds))
    seeds = pad_list_to_devices(devices, seeds)
    reference = devices.share(context.reference)
    batch_size = min(method.batch_size, pairs)
    passes = 1 / method.strength if method.name == "sft" else method.epochs
    steps = max(1, round(passes * pairs / batch_size))
    tx = optimizer.make(OptimizerConfig(lr=method.lr, warmup=min(20, steps // 5)), steps)
    if method.name == "dpo":
        ref = devices.each(preference.make_reference_logprobs(policy.policy_fn), (P(), P(DATA)))
        sides = [devices.fetch(ref(reference, devices.put_batch(side))) for side in data.sides]
        data = PreferenceBatch(data, *sides)
        cfg = PreferenceConfig(beta=method.strength)
        step = preference.make_train_step(policy.policy_fn, tx, cfg)
    else:
        data = data.chosen
        step = sft.make_train_step(policy.policy_fn, tx)
    step = devices.each(step, (P(DATA), P(), P(DATA)), 0)
    rng = contexts.keys(devices, [seed.policy for seed in seeds], stage=3)
    start = devices.each(lambda _, params: train_step.init_state(params, tx), (P(DATA), P()))
    state = start(rng, reference)
    losses = []
    for i in range(steps):
        rows = np.stack([rows_at(pairs, batch_size, seed.policy, i) for seed in seeds])
        state, metrics = step(state, {}, devices.put_batch(rows_of_seeds(data, rows)))
        losses.append(metrics["preference/loss" if method.name == "dpo" else "sft/loss"])
    curves = {"loss": np.stack([devices.fetch(loss) for loss in losses], axis=1)[:S]}
    return Trained(tree_index(devices.fetch(state.params), slice(S)), curves)


@cache
def _make_logprobs(each: Callable, policy_fn):
    """(params, tokens [S, N, L], attention_mask) -> log-probabilities [S, N, T], on the devices."""
    fn = lambda params, tokens, mask: policy_fn(params, tokens, mask, last=contexts.LENGTH)[0]
    return each(fn, (P(), P(DATA), P(DATA)))


def log_probabilities(context: StudyContext, params, samples: Samples) -> np.ndarray:
    """log pi(y | x) of each response [S, N] under one policy of the study's policy size."""
    devices, (S, N) = context.devices, samples.tokens.shape[:2]
    fn = _make_logprobs(devices.each, context.lm.policy_fn)
    params = devices.share(params)
    both = pad_to_devices(devices, (samples.tokens, samples.attention_mask))
    part = lambda rows: fn(params, *devices.put_batch(tuple(x[:, rows] for x in both)))
    return np.where(samples.mask, in_chunks(devices, part, S, N), 0.0).sum(axis=2)


def sample_held_out(
    context: StudyContext, params, seeds: Sequence[Seed], *, kind: str, draws: int = 8
) -> tuple[Samples, np.ndarray, np.ndarray]:
    """Draws `draws` responses of policies [S] to each held-out prompt: (samples, gold, log-ratio) [S, N]."""
    cfg, S = context.cfg, len(seeds)
    every = np.arange(len(context.held_out)).reshape(-1, cfg.pool_draws)[:, :draws].ravel()
    prompts = tree_index(context.held_out_encoded, every)
    samples = contexts.respond(context, params, prompts, [seed.policy for seed in seeds], stage=4)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)
    texts = [context.held_out[row] for row in every] * S
    golds = contexts.gold(context, kind, texts, flat).reshape(S, -1)
    ratio = samples.logprobs.sum(axis=2) - log_probabilities(context, context.reference, samples)
    return samples, golds, ratio
