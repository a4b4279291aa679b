"""The loop of on-policy methods: sample, score, annotate, update."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rlhf_jax.algorithms import rollout
from rlhf_jax.algorithms.learner import Learner
from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.data.batching import rows_at
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.devices import memory
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.models import lora
from rlhf_jax.ops import kl
from rlhf_jax.pipeline import early_stop, held_out, keys, refill, scoring, stages, texts
from rlhf_jax.pipeline.prepare import Prepared
from rlhf_jax.runs import loop
from rlhf_jax.runs.laps import Laps


class OnPolicy(NamedTuple):
    """A learner compiled for the devices, and its initial parameters."""

    stage: str
    learner: Learner  # with compiled `annotate` and `update`; the update reads the frozen base
    base: Any  # frozen parameters beneath adapters; empty without adapters
    trained: Any  # trained parameters: adapters and heads, or all
    tx: Any  # the optimizer


class Drawn(NamedTuple):
    """Responses to a batch of prompts, in groups of adjacent rows."""

    rows: list[texts.Row]
    samples: Samples  # on the devices
    scores: Callable[[], dict[str, Any]]  # waits for a Python reward; "score" is on the devices


def make_draw(run: Prepared, group: int, scorer: scoring.RewardScorer) -> Callable:
    """`draw(policy, drawn, key) -> Drawn`: responses to the next batch of prompts after `drawn` batches."""
    rl, rows = run.cfg.rl, run.texts.rows
    sample = memory.announce_memory(
        "rollout", run.generator.sample, "a smaller batch or --sample.slots 32"
    )
    prompts = encode_prompts(run.tokenizer, [row.prompt for row in rows], run.lengths[0])
    n = rl.batch_size // group
    shared = n % run.devices.count == 0 and not run.texts.environment  # read once for its draws

    def draw(policy, drawn: int, key) -> Drawn:
        which = rows_at(len(rows), n, seed_of(run.cfg), drawn)
        read, which = which if shared else np.repeat(which, group), np.repeat(which, group)
        batch = Prompts(
            tokens=prompts.tokens[read],
            attention_mask=prompts.attention_mask[read],
            index=prompts.index[which],
            draw=np.arange(rl.batch_size, dtype=np.int32),  # a prompt may recur
        )
        asked = [rows[i] for i in which]
        samples = run.generator.play(sample, policy, batch, asked, key)
        return Drawn(asked, samples, lambda: scorer.score(asked, samples))

    return draw


def seed_of(cfg) -> int:
    """The seed of this loop's prompts and responses."""
    return cfg.seed if cfg.rl.seed is None else cfg.rl.seed


def train(run: Prepared, method: OnPolicy, reference, reward, held_out_reward=None):
    """(parameters on the devices, KL coefficient) after all iterations.

    Metrics and checkpoints go to the run directory. `reference` are the parameters of the SFT policy.
    `reward` is the reward model to maximise, or None with a Python reward alone. `held_out_reward` is only
    reported.
    """
    cfg, rl, devices, learner = run.cfg, run.cfg.rl, run.devices, method.learner
    scorer = scoring.RewardScorer(run, reward)
    measures = held_out.make_measures(run, held_out_reward)
    draw = make_draw(run, learner.group, scorer)
    evaluate = rl.eval_every and held_out.make_evaluate(run, learner, scorer, measures)
    with_rewards = devices.compile(
        partial(rollout.with_rewards, cfg=cfg.rollout), (P(DATA), P(DATA)), P(DATA)
    )
    rollouts, updates = (keys.key_of(seed_of(cfg), stage) for stage in ("rollout", "update"))
    base, reference = devices.share((method.base, reference))
    laps = Laps()

    def iteration(carry, i):
        lap, looked = laps.begin(), {}
        state, kl_coef, drawn = carry["state"], carry["kl_coef"], int(carry["drawn"])
        params, key = lora.join(base, state.params, cfg.lora), jax.random.fold_in(rollouts, i)
        policy = learner.policy_of(params)
        if rl.refill:
            batch, drawn = refill.with_signal(run, learner.group, draw, policy, drawn, key)
        else:
            batch, drawn = draw(policy, drawn, key), drawn + 1
        lap("sample", batch.samples)
        seen = learner.annotate(params, reference, batch.samples)  # while a Python reward is called
        lap("annotate", seen)
        scores = batch.scores()
        score = scores.pop("score")
        lap("score", score)
        rolled = with_rewards(seen, score)
        if evaluate and i % rl.eval_every == 0:  # on held-out prompts
            looked = evaluate(params, reference)
            if rl.patience:
                carry |= early_stop.after(carry, state.params, -held_out.reward_of(looked))
            lap("evaluate", rolled)
        watch = watched(run, measures, batch, rolled)
        state, metrics = learner.update(
            state, {"base": base}, kl_coef, rolled, jax.random.fold_in(updates, i)
        )
        lap("update", metrics)
        length = metrics["objective/length"]
        metrics |= looked | {name: x.mean() for name, x in scores.items()}
        metrics[loop.LATER] = lambda: watch() | lap.metrics(tokens=rl.batch_size * float(length))
        if rl.kl_target:
            kl_coef = kl.adapt(
                kl_coef, metrics["objective/kl"],
                samples=rl.batch_size, target=rl.kl_target, horizon=rl.kl_horizon,
            )  # fmt: skip
        return carry | {"state": state, "kl_coef": kl_coef, "drawn": np.int32(drawn)}, metrics

    def start():  # nothing here holds it, so that a resumed run has room for one state
        carry = {
            "state": stages.init_state_on(devices, method.trained, method.tx),
            "kl_coef": devices.put(jnp.float32(rl.kl_coef)),
            "drawn": np.int32(0),  # batches of prompts that were sampled
        }
        kept = early_stop.begin(devices.put(method.trained)) if rl.patience else {}
        return carry | kept

    carry = loop.iterate(
        run.folder, method.stage, start(), iteration,
        iterations=rl.iterations, save_every=rl.save_every, keep=rl.keep, best=rl.best,
        until=(lambda carry: carry["since"] >= rl.patience) if rl.patience else None,
    )  # fmt: skip
    trained = carry["best"] if rl.patience else carry["state"].params
    return lora.join(base, trained, cfg.lora), devices.host(carry["kl_coef"])


def watched(run: Prepared, measures: Callable, batch: Drawn, rolled) -> Callable[[], dict]:
    """A function that waits for metrics of a rollout that are reported and never trained on."""
    measured = measures(batch.rows, batch.samples)

    def wait():
        metrics = {f"objective/{x}": np.mean(y) for x, y in measured().items()}
        if run.cfg.rollout.recompute_logprobs:
            logprobs = run.devices.fetch((rolled.logprobs, batch.samples.logprobs))
            metrics["objective/sampler_gap"] = np.abs(np.subtract(*logprobs)).max()
        return metrics

    return wait
