"""DPO and its family: a policy from comparisons, without a reward model (Rafailov et al., 2023).

    python launch.py dpo                            # --preference.kind ipo, simpo, orpo or kto, too

A minute beyond the shared stages; --start-from RUN takes those from a run. Gold goes from -0.11 to 0.70 at
a KL of 1.4 (seed 0). A second pass over the comparisons, or three times the learning rate,
overfits: gold falls below the start, in responses that leave the grammar. With the same settings: IPO 0.48,
KTO 0.50, SimPO 0.30, ORPO 0.17 (KL 0.25).

It learns from all training comparisons, those that teach the held-out judge too: gold alone is a fair judge
of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from rich.progress import track

from rlhf_jax import optimizer
from rlhf_jax.algorithms import kto, preference
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import LabelledBatch, PreferenceBatch, Sequences
from rlhf_jax.bounds import Count, Positive, Settings, check_divides
from rlhf_jax.data.batching import batch_at, padded_batches
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.devices.parallel import DATA
from rlhf_jax.evaluation import evaluate
from rlhf_jax.models import lora
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import ground as grounds
from rlhf_jax.pipeline import outcome, rl, stages
from rlhf_jax.pipeline.ground import Ground
from rlhf_jax.runs import loop


@dataclass(frozen=True)
class DPOConfig(Settings):
    """The loop round the loss."""

    _main = ("epochs", "batch_size")

    epochs: Positive = 1.0
    """Passes over the comparisons (1: Rafailov et al., 2023)."""
    batch_size: Count = 32
    """Pairs a step; for "kto", labelled responses, two a pair."""
    eval_every: Count = 50
    """Steps between held-out accuracies (and checkpoints)."""
    microbatches: Count = 1
    """Parts that a batch is cut into, on each device, to save memory."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, warmup=20))

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(grounds.Config):
    """Settings of the dpo experiment."""

    preference: PreferenceConfig = PreferenceConfig()
    dpo: DPOConfig = DPOConfig()

    def _unread(self) -> dict[str, str]:
        return super()._unread() | grounds.NO_ROLLOUT


order = 5  # of the launcher's list
config = Config()


def main(cfg: Config):
    """Runs what is not yet in the run directory, and prints what came of it."""
    ground = grounds.lay("dpo", cfg, stages.parts("dpo", cfg.dpo))
    if ground is None:
        return
    cfg, devices, kind = ground.cfg, ground.devices, ground.cfg.preference.kind
    logprobs_of = make_logprobs_of(ground)
    pairs = pairs_of(ground, ground.pairs, logprobs_of)
    held_out = pairs_of(ground, ground.pairs_held_out, logprobs_of)
    data = labelled(pairs, logprobs_of, ground) if kind == "kto" else pairs
    rows = len(jax.tree.leaves(data)[0])
    steps = max(1, round(cfg.dpo.epochs * rows / cfg.dpo.batch_size))
    tx = optimizer.make(cfg.dpo.optimizer, steps)
    make = lambda policy_fn: (kto if kind == "kto" else preference).make_train_step(
        policy_fn, tx, cfg.preference,
        microbatches=cfg.dpo.microbatches, axis_name=devices.axis_name,
    )  # fmt: skip
    step = stages.compile_step(devices, "dpo", lora.over_base(make, ground.lm.policy_fn, cfg.lora))
    base, trained = rl.split(ground, ground.reference)
    frozen = {"base": devices.share(base)}
    whole = lambda trained: lora.join(base, trained, cfg.lora)

    def body(state, i):
        batch = batch_at(data, cfg.dpo.batch_size, cfg.seed, i, devices.take)
        state, metrics = step(state, frozen, batch)
        if (i + 1) % cfg.dpo.eval_every == 0 or i + 1 == steps:
            right = margins(whole(state.params), held_out, logprobs_of, kind) > 0
            metrics |= {"preference/held_out_accuracy": right.mean()}
        return state, metrics

    state = loop.iterate(
        ground.folder, "dpo", stages.begun(devices, trained, tx), body,
        iterations=steps, save_every=cfg.dpo.eval_every, unit="steps", wandb=cfg.wandb,
    )  # fmt: skip
    params = whole(devices.host(state.params))
    found = margins(params, held_out, logprobs_of, kind)
    own = evaluate.accuracy(found, [c.group for c in ground.pairs_held_out])
    extra = {"accuracy of the policy's own reward, held-out pairs": own._asdict()}
    outcome.conclude(ground, kind.upper(), outcome.after(ground, params), extra=extra)


def make_logprobs_of(ground: Ground) -> Callable:
    """`logprobs_of(params, responses, bar="") -> [N]`: log pi(y | x) of each row, under a bar."""
    devices, size = ground.devices, 4 * ground.cfg.sft.batch_size
    fn = devices.compile(
        preference.make_reference_logprobs(ground.lm.policy_fn), (P(), P(DATA)), P(DATA)
    )

    def logprobs_of(params, responses: Sequences, bar: str = "") -> np.ndarray:
        params, total = devices.share(params), -(-len(responses.mask) // size)
        batches = track(
            padded_batches(responses, size), bar, total=total, transient=True, disable=not bar
        )
        return np.concatenate(
            [devices.fetch(fn(params, devices.put_batch(batch)))[real] for batch, real in batches]
        )

    return logprobs_of


def pairs_of(ground: Ground, compared, logprobs_of) -> PreferenceBatch:
    """Comparisons as arrays, with what the SFT policy says of them: it is asked once, and never in a step."""
    pairs = encode_comparisons(ground.words, compared, *ground.lengths)
    reference = (logprobs_of(ground.reference, side, "reference") for side in pairs.sides)
    return PreferenceBatch(pairs, *reference)


def labelled(pairs: PreferenceBatch, logprobs_of, ground: Ground) -> LabelledBatch:
    """Both sides of every pair as responses of their own, for KTO: chosen are desirable, rejected are not.

    Rows of one prompt stand together, so that a shift by half of all rows meets another prompt.
    """
    join = lambda chosen, rejected: np.concatenate([chosen, rejected])
    responses = jax.tree.map(join, *pairs.comparisons.sides)
    order = np.argsort([c.prompt for c in ground.pairs] * 2, kind="stable")
    desirable = np.arange(len(order)) < len(ground.pairs)
    both = (responses, desirable, join(pairs.ref_chosen, pairs.ref_rejected))
    responses, desirable, reference = jax.tree.map(lambda x: x[order], both)
    mismatched = jax.device_get(kto.mismatch(responses, len(order) // 2))
    return LabelledBatch(
        responses=responses,
        desirable=desirable,
        ref_logprobs=reference,
        mismatched=mismatched,
        ref_mismatched=logprobs_of(ground.reference, mismatched, "reference"),
        weight=np.ones(len(order), np.float32),
    )


def margins(params, pairs: PreferenceBatch, logprobs_of, kind: str) -> np.ndarray:
    """By how much `params` hold the chosen response of each pair for better [N], up to a factor.

    The reward is log pi / pi_ref, or for kinds without a reference the mean of a token's log-probability.
    """
    chosen, rejected = (logprobs_of(params, side) for side in pairs.comparisons.sides)
    if kind in ("simpo", "orpo"):
        tokens = [side.mask.sum(axis=1) for side in pairs.comparisons.sides]
        return chosen / tokens[0] - rejected / tokens[1]
    return (chosen - pairs.ref_chosen) - (rejected - pairs.ref_rejected)
