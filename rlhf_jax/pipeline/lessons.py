"""The arrays and the training step by which a reward model learns from each kind of feedback."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy

from rlhf_jax.algorithms import plackett_luce, pointwise, reward_model
from rlhf_jax.algorithms.reward_model import RewardLossConfig
from rlhf_jax.data.comparisons import Comparison, encode_comparisons, encode_rankings
from rlhf_jax.data.ratings import Rating, Scale, encode_ratings, scale_of
from rlhf_jax.pipeline.texts import Feedback

if TYPE_CHECKING:
    from rlhf_jax.pipeline.prepare import Prepared


class Lesson(NamedTuple):
    """A reward model's training on one kind of feedback."""

    encode: Callable[
        [Sequence[Any]], Any
    ]  # feedback -> a record of arrays, with a weight for each row
    make: Callable  # make(reward_fn, tx, microbatches=, axis_name=) -> step(state, frozen, record)
    start: float = 0.0  # initial bias of the rewards
    scale: Scale | None = None  # of ratings


def lesson(run: "Prepared", items: Sequence[Comparison | Rating]) -> Lesson:
    """The lesson of this feedback: Bradley-Terry for pairs, Plackett-Luce where some of them come from ranks,
    and a pointwise loss for ratings.

    Rewards of labels start at the log-odds of their mean, because the bias has no gradient.
    """
    prompt, length, turns = run.lengths
    if is_rated(items):
        scores, weights = np.array([(x.score, x.weight) for x in items if isinstance(x, Rating)]).T
        scale, mean = scale_of(scores, weights), np.average(scores, weights=weights)
        return Lesson(
            encode=lambda items: encode_ratings(run.tokenizer, items, prompt, length, scale),
            make=partial(pointwise.make_train_step, kind=scale.kind),
            start=float(scipy.special.logit(mean)) if scale.kind == "binary" else 0.0,
            scale=scale,
        )
    encode = encode_rankings if is_ranked(items) else partial(encode_comparisons, turns=turns)
    of_pairs = partial(reward_model.make_train_step, cfg=run.cfg.reward.loss)
    return Lesson(
        encode=lambda items: encode(run.tokenizer, items, prompt, length),
        make=plackett_luce.make_train_step if is_ranked(items) else of_pairs,
    )


def is_rated(items: Sequence[Comparison | Rating]) -> bool:
    """True for ratings."""
    return any(isinstance(x, Rating) for x in items)


def is_ranked(items: Sequence[Comparison | Rating]) -> bool:
    """True for comparisons of which some come from ranks."""
    return any(isinstance(x, Comparison) and x.ranking for x in items)


def check(cfg: Any, feedback: Feedback | None):
    """Raises ValueError where terms of the loss of pairs are set, and whole rankings are learned from."""
    if feedback and is_ranked(feedback.train) and cfg.reward.loss != RewardLossConfig():
        raise ValueError(
            "reward.loss adds terms to the loss of pairs, and data.comparisons has ranks, which are learned "
            "from as a whole: leave reward.loss out"
        )
