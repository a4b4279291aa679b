"""KTO: a policy from responses that are good or bad, without a reward model (Ethayarajh et al., 2024).

    python launch.py kto --data.ratings LOG         # from rated responses: labels of 0 and 1, or any numbers
    python launch.py kto                            # from comparisons, whose responses it takes one by one

A minute beyond the shared stages; --start-from RUN takes those from a run. From the comparisons of the
generated task, gold rises from -0.39 to 0.83 at a KL of 2.5 (seed 0). A rating that is no label is good where
it is at least as high as the mean. Where one label is rare, --kto.desirable-weight or
--kto.undesirable-weight makes both sides weigh about the same.

With --reference FOLDER and --data.ratings FILES it needs nothing else, and reports how often its own reward
is higher for a good held-out response than for a bad one, and its KL.
"""

from dataclasses import dataclass, field

import jax
import numpy as np

from rlhf_jax import optimizer
from rlhf_jax.algorithms import kto, preference
from rlhf_jax.batches import LabelledBatch
from rlhf_jax.bounds import Count, Positive, check_divides
from rlhf_jax.data.batching import batch_at
from rlhf_jax.data.labels import labelled
from rlhf_jax.evaluation import ratings
from rlhf_jax.optimizer import OptimizerConfig
from rlhf_jax.pipeline import generation, keys, people, results, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare


@dataclass(frozen=True)
class KTOConfig(kto.KTOConfig):
    """The loss, and the loop around it."""

    _main = ("epochs", "batch_size", "beta")
    _length = ("epochs",)

    epochs: Positive = 1.0
    """Passes over the labelled responses (1: Ethayarajh et al., 2024)."""
    batch_size: Count = 32
    """Labelled responses in a step."""
    eval_every: Count = 50
    """Steps between evaluations on held-out responses, each with a checkpoint."""
    microbatches: Count = 1
    """Parts of a batch, processed one after the other on each device to save memory."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=3e-4, warmup=20))

    def _conditions(self, at: str):
        check_divides(f"{at}microbatches", self.microbatches, f"{at}batch_size", self.batch_size)


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of the kto experiment."""

    kto: KTOConfig = KTOConfig()

    def needs(self) -> texts.Needs:
        """The files that the method learns from; without a corpus SFT learns the better responses."""
        optional = ("prompts",) if self.reference else ("corpus", "prompts")
        return texts.Needs(("comparisons",), (*optional, "ratings"))

    def _unread(self) -> dict[str, str]:
        no_reward = dict.fromkeys(("reward", "reward_model"), "no reward model is trained")
        return super()._unread() | settings.NO_ROLLOUT | no_reward


order = 6  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("kto", cfg, stages.parts("kto", cfg.kto))
    if run is None:
        return
    cfg, devices = run.cfg, run.devices
    reference, facts = stages.reference(run)
    feedback = people.compare(run, reference)
    assert feedback is not None

    # 1. labelled responses as arrays, with the reference's log-probabilities, which no step computes again
    train, held_out = (labelled(x, feedback.train) for x in (feedback.train, feedback.held_out))
    said, judged = (
        stages.demonstrations(run.tokenizer, [x[:2] for x in rows], run.lengths)
        for rows in (train, held_out)
    )
    of_responses = preference.make_reference_logprobs(run.lm.policy_fn)
    logprobs = generation.by_rows(devices, of_responses, 4 * cfg.sft.batch_size)
    # rows of one prompt stand together, so half of all rows further down stands another prompt
    mismatched = jax.device_get(kto.mismatch(said, len(train) // 2))
    data = LabelledBatch(
        responses=said,
        desirable=np.array([x.desirable for x in train]),
        ref_logprobs=logprobs(reference, said, bar="reference"),
        mismatched=mismatched,
        ref_mismatched=logprobs(reference, mismatched, bar="reference"),
        weight=np.array([x.weight for x in train], np.float32),
    )

    # 2. the loss on them, and how the policy's own reward ranks held-out responses
    ref_judged = logprobs(reference, judged)
    rewards = lambda params: logprobs(params, judged) - ref_judged
    good, counts = np.array([(x.desirable, x.weight) for x in held_out], float).T
    steps = max(1, round(cfg.kto.epochs * len(train) / cfg.kto.batch_size))
    tx = optimizer.make(cfg.kto.optimizer, steps)
    job = stages.Fit(
        stage="kto",
        start=lambda: run.start(reference),
        make=lambda policy_fn: kto.make_train_step(
            policy_fn, tx, cfg.kto,
            microbatches=cfg.kto.microbatches, axis_name=devices.axis_name,
        ),
        fn=run.lm.policy_fn,
        batch_at=lambda i: batch_at(data, cfg.kto.batch_size, cfg.seed, i, devices.take),
        tx=tx,
        steps=steps,
        save_every=cfg.kto.eval_every,
        key=keys.adapters(cfg.seed, "policy"),
        measure=lambda params: {
            "preference/held_out_auc": np.float32(ratings.auc(rewards(params), good, counts))
        },
    )  # fmt: skip
    params, _ = stages.fit(stages.place(run), job, cfg.lora)

    # 3. the results
    own = {"policy": rewards(params)}
    own, _ = ratings.compared(ratings.auc, own, good, [x.group for x in held_out], counts=counts)
    first = {"AUC of the policy's own reward, held-out responses": own["policy"]._asdict()}
    respond = results.respond(run, params)
    results.conclude(run, "KTO", reference, respond, results.Judges(), first=first, facts=facts)
