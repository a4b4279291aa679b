"""Supervised fine-tuning alone: a language model of the corpus.

    python launch.py sft --data.corpus FILES

prints its held-out loss, and its responses to held-out prompts beside the demonstrations. `export` writes
the policy, and --reference starts any other method from it.
"""

from dataclasses import dataclass

import numpy as np

from rlhf_jax.pipeline import results, settings, stages, texts
from rlhf_jax.pipeline.prepare import prepare
from rlhf_jax.runs import conclusion


@dataclass(frozen=True)
class Config(settings.RunConfig):
    """Settings of supervised fine-tuning."""

    def needs(self) -> texts.Needs:
        """The files that the method trains on."""
        return texts.Needs(("corpus",))

    def _conditions(self, at: str):
        super()._conditions(at)
        if self.reference:
            raise ValueError(
                f'{at}reference = "{self.reference}" would skip SFT: give it as pretrained, to start from it'
            )

    def _unread(self) -> dict[str, str]:
        own = {"reward_model": "nothing is maximised", "policy": "SFT starts from pretrained"}
        return super()._unread() | settings.NO_ROLLOUT | own


order = 1  # position in the launcher's list
config = Config()


def main(cfg: Config):
    """Runs the missing stages of the experiment, and prints its results."""
    run = prepare("sft", cfg, {})
    if run is None:
        return
    params, facts = stages.reference(run)
    written = run.texts.corpus_held_out
    known = {row.prompt: row for row in run.texts.rows_held_out}  # of a task, with columns
    asked = [known.get(prompt) or texts.Row(prompt, {}, "") for prompt, _ in written]
    asked = asked[: 8 * run.cfg.sft.batch_size]
    said = results.respond(run, params, rows=asked)
    if run.texts.task:
        gold = results.golds(run, asked, said)
        own = run.texts.task.gold(
            [texts.plain_row(x) for x in asked], [x for _, x in written][: len(asked)]
        )
        facts["gold of responses"] = float(np.mean(gold))
        facts["gold of demonstrations"] = float(np.mean(own))
    rows = [
        {"method": "SFT", "prompt": row.prompt, "before": theirs, "after": ours}
        for row, (_, theirs), ours in zip(asked, written, said.texts, strict=False)
    ]
    conclusion.write(run.folder, facts, samples=rows)
    conclusion.show(run.folder, conclusion.again(run.name))
