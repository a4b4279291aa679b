"""A reward model alone, from comparisons: accuracy, calibration, baselines.

    python launch.py reward --data.comparisons FILES

splits the comparisons by prompt; trains a tokenizer, a language model of the chosen responses (or of
--data.corpus FILES, or given by --reference) and a reward model that starts from it; and prints how often
the reward model agrees with people on held-out pairs. Takes a minute or two on two CPU cores for a few
thousand pairs.
"""

from dataclasses import dataclass, field

import numpy as np

from rlhf_jax.data.comparisons import encode_comparisons, identical
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import people, results, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of a reward model."""

    data: texts.DataConfig = texts.DataConfig(held_out=0.2, vocab_size=4096)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(d_model=64, context=256))
    sft: stages.SFTConfig = stages.SFTConfig(steps=200, batch_size=32, eval_every=40)
    reward: stages.RewardConfig = stages.RewardConfig(epochs=1.0)

    def needs(self) -> texts.Needs:
        """The files that the method trains on."""
        return texts.Needs(("comparisons",), ("corpus",))

    def _unread(self) -> dict[str, str]:
        own = {"reward_model": "a reward model is trained", "eval_draws": "no policy is evaluated"}
        return super()._unread() | settings.NO_ROLLOUT | own


order = 2  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("reward", cfg, {})
    if run is None:
        return
    reference, facts = stages.reference(run)
    pairs = people.compare(run, reference)
    assert pairs is not None
    reward, _ = stages.reward_models(run, reference, pairs)
    judged = encode_comparisons(run.tokenizer, pairs.held_out, *run.lengths)
    counts = {"train": len(pairs.train), "held out": len(pairs.held_out)}
    extra = {
        "pairs": counts | {"ties left out": run.texts.ties},
        "held-out pairs that are one text when cut to sample.length": int(
            np.sum(identical(judged))
        ),
    }
    results.write(run.folder, results.about_rewards(run, reward, pairs) | extra | facts)
    results.show(run.folder, results.again(run.name))
