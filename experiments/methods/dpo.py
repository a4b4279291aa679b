"""DPO and its family: a policy from comparisons, without a reward model (Rafailov et al., 2023).

    python launch.py dpo                            # --preference.kind ipo, simpo, orpo or kto, too

Takes a minute after the shared stages; --start-from RUN copies these from a run. Gold goes from -0.11 to
0.70 at a KL of 1.4 (seed 0). A second pass over the comparisons, or three times the learning rate,
overfits: gold falls below the start, in responses that leave the grammar. With the same settings: IPO 0.48,
KTO 0.50, SimPO 0.30, ORPO 0.17 (KL 0.25).

DPO trains on all training comparisons, and no reward model is trained. With --reference FOLDER and
--data.comparisons FILES it needs nothing else, and reports its accuracy on held-out pairs and its KL.
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
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import people, results, settings, stages, texts
from rlhf_jax.pipeline.prepare import Prepared, prepare


@dataclass(frozen=True)
class DPOConfig(Settings):
    """The training loop."""

    _main = ("epochs", "batch_size")

    epochs: Positive = 1.0
    """Passes over the comparisons (1: Rafailov et al., 2023)."""
    batch_size: Count = 32
    """Pairs per gradient step; for kto, labelled responses instead, of which each pair has two."""
    eval_every: Count = 50
    """Steps between evaluations of the held-out accuracy, each with a checkpoint."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, warmup=20))

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of the dpo experiment."""

    preference: PreferenceConfig = PreferenceConfig()
    dpo: DPOConfig = DPOConfig()

    def needs(self) -> texts.Needs:
        """The files that the method trains on; without a corpus, SFT uses the chosen responses."""
        return texts.Needs(
            ("comparisons",), ("prompts",) if self.reference else ("corpus", "prompts")
        )

    def _unread(self) -> dict[str, str]:
        no_reward = dict.fromkeys(("reward", "reward_model"), "no reward model is trained")
        return super()._unread() | settings.NO_ROLLOUT | no_reward


order = 5  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs whatever the run directory lacks, and prints the results."""
    run = prepare("dpo", cfg, stages.parts("dpo", cfg.dpo))
    if run is None:
        return
    cfg, kind = run.cfg, run.cfg.preference.kind
    reference, facts = stages.reference(run)
    compared = people.compare(run, reference)
    assert compared is not None
    logprobs_of = make_logprobs_of(run)
    pairs = pairs_of(run, reference, compared.train, logprobs_of)
    held_out = pairs_of(run, reference, compared.held_out, logprobs_of)
    prompts = [c.prompt for c in compared.train]
    data = labelled(pairs, prompts, reference, logprobs_of) if kind == "kto" else pairs

    steps = max(1, round(cfg.dpo.epochs * len(jax.tree.leaves(data)[0]) / cfg.dpo.batch_size))
    tx = optimizer.make(cfg.dpo.optimizer, steps)
    right = lambda params: margins(params, held_out, logprobs_of, kind) > 0
    job = stages.Fit(
        stage="dpo",
        params=reference,
        make=lambda policy_fn: (kto if kind == "kto" else preference).make_train_step(
            policy_fn, tx, cfg.preference,
            microbatches=cfg.dpo.microbatches, axis_name=run.devices.axis_name,
        ),
        fn=run.lm.policy_fn,
        batch_at=lambda i: batch_at(data, cfg.dpo.batch_size, cfg.seed, i, run.devices.take),
        tx=tx,
        steps=steps,
        save_every=cfg.dpo.eval_every,
        key=jax.random.fold_in(run.key, 4),
        measure=lambda params: {"preference/held_out_accuracy": right(params).mean()},
    )  # fmt: skip
    params, _ = stages.fit(stages.place(run), job, cfg.lora)
    params = run.devices.host(params)

    found = margins(params, held_out, logprobs_of, kind)
    own = evaluate.accuracy(found, [c.group for c in compared.held_out])
    first = {"accuracy of the policy's own reward, held-out pairs": own._asdict()}
    said = results.respond(run, params)
    results.conclude(run, kind.upper(), reference, said, results.Judges(), first=first, facts=facts)


def make_logprobs_of(run: Prepared) -> Callable:
    """`logprobs_of(params, responses, bar="") -> [N]`: log pi(y | x) of each row, with a progress bar if
    named."""
    devices, size = run.devices, 4 * run.cfg.sft.batch_size
    fn = devices.compile(
        preference.make_reference_logprobs(run.lm.policy_fn), (P(), P(DATA)), P(DATA)
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


def pairs_of(run: Prepared, reference, compared, logprobs_of) -> PreferenceBatch:
    """Comparisons as arrays, with the SFT policy's log-probabilities, computed once for all steps."""
    pairs = encode_comparisons(run.tokenizer, compared, *run.lengths)
    both = (logprobs_of(reference, side, "reference") for side in pairs.sides)
    return PreferenceBatch(pairs, *both)


def labelled(pairs: PreferenceBatch, prompts, reference, logprobs_of) -> LabelledBatch:
    """Both sides of every pair as single responses for KTO: chosen ones are desirable, rejected ones are
    not.

    Rows of one prompt are adjacent, so a shift by half of all rows meets another prompt.
    """
    join = lambda chosen, rejected: np.concatenate([chosen, rejected])
    responses = jax.tree.map(join, *pairs.comparisons.sides)
    order = np.argsort(prompts * 2, kind="stable")
    desirable = np.arange(len(order)) < len(prompts)
    both = (responses, desirable, join(pairs.ref_chosen, pairs.ref_rejected))
    responses, desirable, ref_logprobs = jax.tree.map(lambda x: x[order], both)
    mismatched = jax.device_get(kto.mismatch(responses, len(order) // 2))
    return LabelledBatch(
        responses=responses,
        desirable=desirable,
        ref_logprobs=ref_logprobs,
        mismatched=mismatched,
        ref_mismatched=logprobs_of(reference, mismatched, "reference"),
        weight=np.ones(len(order), np.float32),
    )


def margins(params, pairs: PreferenceBatch, logprobs_of, kind: str) -> np.ndarray:
    """Margins by which `params` prefer the chosen response of each pair [N], up to a factor.

    The reward is log pi / pi_ref, or the mean log-probability per token for kinds without a reference.
    """
    chosen, rejected = (logprobs_of(params, side) for side in pairs.comparisons.sides)
    if kind in ("simpo", "orpo"):
        tokens = [side.mask.sum(axis=1) for side in pairs.comparisons.sides]
        return chosen / tokens[0] - rejected / tokens[1]
    return (chosen - pairs.ref_chosen) - (rejected - pairs.ref_rejected)
