"""Held-out prompts that the policy answers while it is trained: metrics, and a few of its texts."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rlhf_jax.data.batching import padded_batches
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.evaluation import diversity
from rlhf_jax.pipeline import generation, keys, texts
from rlhf_jax.pipeline.scoring import Reward, RewardScorer
from rlhf_jax.runs import loop

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared

SHOWN = 8  # prompts whose responses are kept


def reward_of(metrics: dict[str, Any]) -> np.float32:
    """The metric by which a run may stop early: the held-out reward model's score, or else the maximised
    reward."""
    return metrics.get("eval/held_out_score", metrics["eval/score"])


def make_measures(run: "Prepared", held_out_reward: Reward | None) -> Callable:
    """`measures(rows, samples)() -> {name: [B]}`: numbers of each response, never trained on.

    The first call gives the devices their part, and the second waits for it.
    """
    devices, task = run.devices, run.texts.task
    score = generation.make_score(devices, *held_out_reward) if held_out_reward else None

    def measures(rows: Sequence[texts.Row], samples) -> Callable[[], dict[str, np.ndarray]]:
        scores = {"held_out_score": score(samples)} if score else {}

        def wait():
            said = devices.fetch(samples)
            found = {"eos_rate": said.ended} | devices.fetch(scores)
            if task is not None:
                plain = [texts.plain_row(row) for row in rows]
                found["gold"] = task.gold(plain, run.generator.texts(said))
            return found

        return wait

    return measures


def make_evaluate(
    run: "Prepared", learner, scorer: RewardScorer, measures: Callable
) -> Callable[[Any, Any], dict[str, Any]]:
    """`evaluate(params, reference) -> metrics` of a policy's responses to held-out prompts.

    The prompts are the first `rl.batch_size` ones, in one batch of the rollouts' size, and the noise is that
    of every call: only the policy differs. Metrics are means, `eval/NAME`, and under `loop.SAMPLES` the first
    responses with the numbers of each.
    """
    cfg, devices, rows = run.cfg, run.devices, run.texts.rows_held_out[: run.cfg.rl.batch_size]
    prompts = encode_prompts(run.tokenizer, [row.prompt for row in rows], run.lengths[0])
    batch, real = next(padded_batches(prompts, cfg.rl.batch_size))
    asked = [rows[i] for i in batch.index]
    key = keys.key_of(cfg.seed, "eval")

    def evaluate(params, reference) -> dict[str, Any]:
        policy = learner.policy_of(params)
        samples = run.generator.play(run.generator.sample, policy, batch, asked, key)
        rolled = learner.annotate(params, reference, samples)
        scores = scorer.score(asked, samples)
        rolled = devices.fetch(rolled)
        found = (
            scores
            | {"score": devices.fetch(scores["score"])}
            | {
                "kl": (rolled.logprobs - rolled.ref_logprobs).sum(1),  # zero outside the mask
                "length": rolled.samples.mask.sum(1),
            }
        )
        found = jax.tree.map(lambda x: np.asarray(x)[real], found | measures(asked, samples)())
        said = run.generator.texts(rolled.samples)[: len(rows)]
        metrics = {f"eval/{name}": np.float32(x.mean()) for name, x in found.items()}
        metrics["eval/distinct_2"] = np.float32(diversity.distinct(said, 2))
        told = ("score", "gold", "held_out_score", "kl", "length")
        shown = [
            {"prompt": row.prompt, "response": text}
            | {name: float(found[name][i]) for name in told if name in found}
            for i, (row, text) in enumerate(zip(rows[:SHOWN], said, strict=False))
        ]
        return metrics | {loop.SAMPLES: shown}

    return evaluate
