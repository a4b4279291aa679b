"""A reward model alone, from comparisons or ratings: accuracy and baselines.

    python launch.py reward --data.comparisons FILES

splits the comparisons by prompt; trains a tokenizer, a language model of the chosen responses (or of
--data.corpus FILES, or given by --reference) and a reward model that starts from it; and prints how often
the reward model agrees with people on held-out pairs, and whether it beats length alone and a bag of
words. Takes a minute or two on two CPU cores for a few thousand pairs.

    python launch.py reward --data.ratings FILES

does so with rated responses: labels of 0 and 1, or any numbers.
"""

from dataclasses import dataclass, field

import numpy as np

from rlhf_jax.data.comparisons import encode_comparisons, identical
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.pipeline import agreement, lessons, people, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.runs import conclusion


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of a reward model."""

    data: texts.DataConfig = texts.DataConfig(held_out=0.2, vocab_size=4096)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(d_model=64, context=256))
    sft: stages.SFTConfig = stages.SFTConfig(steps=200, batch_size=32, eval_every=40)
    reward: stages.RewardConfig = stages.RewardConfig(epochs=1.0)

    def needs(self) -> texts.Needs:
        """The files that the method trains on."""
        return texts.Needs(("comparisons",), ("corpus", "ratings"))

    def _unread(self) -> dict[str, str]:
        own: dict[str, str] = dict.fromkeys(
            ("eval_draws", "text_features"), "no policy is evaluated"
        )
        own |= {"reward_model": "a reward model is trained", "policy": "no policy is trained"}
        return super()._unread() | settings.NO_ROLLOUT | own


order = 2  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("reward", cfg, {})
    if run is None:
        return
    reference, facts = stages.reference(run)
    feedback = people.compare(run, reference)
    assert feedback is not None
    reward, _ = stages.reward_models(run, reference, feedback)
    about = agreement.about_rewards(run, reward, feedback, words=True)
    extra: dict = {"train": len(feedback.train), "held out": len(feedback.held_out)}
    if lessons.is_rated(feedback.train):
        extra = {"ratings": extra}
    else:
        judged = encode_comparisons(run.tokenizer, feedback.held_out, *run.lengths)
        extra = {
            "pairs": extra | {"ties left out": run.texts.ties},
            "held-out pairs that are one text when cut to sample.length": int(
                np.sum(identical(judged))
            ),
        }
    conclusion.write(run.folder, about | extra | facts)
    conclusion.show(run.folder, conclusion.again(run.name))
