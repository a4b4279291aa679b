"""DPO and its family: a policy from comparisons, without a reward model (Rafailov et al., 2023).

    python launch.py dpo                            # --preference.kind ipo, simpo or orpo, too

A minute beyond the shared stages; --start-from RUN takes those from a run. Gold rises from -0.39 to 0.48 at
a KL of 1.5 (seed 0). A second pass over the comparisons overfits: gold falls to -2.08 at a KL of 6.9, in
responses that leave the grammar. With the same settings: IPO 0.34 (KL 0.7), ORPO 0.02 (0.2), and SimPO, which
nothing holds to the reference, -0.71 (2.6). KTO, which needs no pairs, is a method of its own.

It learns from all training comparisons, without a reward model. With --reference FOLDER and
--data.comparisons FILES it needs nothing else, and reports its accuracy on held-out pairs and its KL.
"""

from dataclasses import dataclass, field

import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import preference
from rlhf_jax.algorithms.preference import PreferenceConfig
from rlhf_jax.batches import PreferenceBatch
from rlhf_jax.bounds import Count, Positive, Settings, check_divides
from rlhf_jax.data.batching import batch_at
from rlhf_jax.data.comparisons import encode_comparisons
from rlhf_jax.evaluation import intervals
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import generation, keys, people, results, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare


@dataclass(frozen=True)
class DPOConfig(Settings):
    """The loop around the loss."""

    _main = ("epochs", "batch_size")
    _length = ("epochs",)

    epochs: Positive = 1.0
    """Passes over the comparisons (1: Rafailov et al., 2023)."""
    batch_size: Count = 32
    """Pairs in a step."""
    eval_every: Count = 50
    """Steps between evaluations of the held-out accuracy, each with a checkpoint."""
    microbatches: Count = 1
    """Parts of a batch, processed one after the other on each device to save memory."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, warmup=20))

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of the dpo experiment."""

    preference: PreferenceConfig = PreferenceConfig()
    dpo: DPOConfig = DPOConfig()

    def needs(self) -> texts.Needs:
        """The files that the method learns from; without a corpus SFT learns the chosen responses."""
        optional = ("prompts",) if self.reference else ("corpus", "prompts")
        return texts.Needs(("comparisons",), optional)

    def _unread(self) -> dict[str, str]:
        no_reward = dict.fromkeys(("reward", "reward_model"), "no reward model is trained")
        return super()._unread() | settings.NO_ROLLOUT | no_reward


order = 5  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("dpo", cfg, stages.parts("dpo", cfg.dpo))
    if run is None:
        return
    cfg, devices, kind = run.cfg, run.devices, run.cfg.preference.kind
    reference, facts = stages.reference(run)
    compared = people.compare(run, reference)
    assert compared is not None

    # 1. comparisons as arrays, with the reference's log-probabilities, which no step computes again
    of_responses = preference.make_reference_logprobs(run.lm.policy_fn)
    logprobs = generation.by_rows(devices, of_responses, 4 * cfg.sft.batch_size)

    def encode(comparisons):
        pairs = encode_comparisons(run.tokenizer, comparisons, *run.lengths)
        refs = (logprobs(reference, side, bar="reference") for side in pairs.sides)
        return PreferenceBatch(pairs, *refs)

    data, held_out = encode(compared.train), encode(compared.held_out)

    # 2. the loss of `preference.kind` on them
    def margins_of(params):
        chosen, rejected = (logprobs(params, side) for side in held_out.comparisons.sides)
        return preference.margins(held_out, chosen, rejected, kind)

    counts = held_out.comparisons.weight
    accuracy = lambda params: np.average(margins_of(params) > 0, weights=counts)
    steps = max(1, round(cfg.dpo.epochs * len(compared.train) / cfg.dpo.batch_size))
    tx = optimizer.make(cfg.dpo.optimizer, steps)
    job = stages.Fit(
        stage="dpo",
        start=lambda: run.start(reference),
        make=lambda policy_fn: preference.make_train_step(
            policy_fn, tx, cfg.preference,
            microbatches=cfg.dpo.microbatches, axis_name=devices.axis_name,
        ),
        fn=run.lm.policy_fn,
        batch_at=lambda i: batch_at(data, cfg.dpo.batch_size, cfg.seed, i, devices.take),
        tx=tx,
        steps=steps,
        save_every=cfg.dpo.eval_every,
        key=keys.adapters(cfg.seed, "policy"),
        measure=lambda params: {"preference/held_out_accuracy": accuracy(params)},
    )  # fmt: skip
    params, _ = stages.fit(stages.place(run), job, cfg.lora)

    # 3. the results
    own = intervals.accuracy(margins_of(params), [c.group for c in compared.held_out], counts)
    first = {"accuracy of the policy's own reward, held-out pairs": own._asdict()}
    said = results.respond(run, params)
    results.conclude(run, kind.upper(), reference, said, results.Judges(), first=first, facts=facts)
