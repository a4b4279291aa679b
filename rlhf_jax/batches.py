"""The records that travel between the stages.

B rows, P prompt columns, T response columns, L = P + T. Prompts are left-padded and responses right-padded,
so every response starts in column P, and `tokens[:, -T:]` is the response for any P. Batches are plain
arrays, NumPy or JAX, and no field is optional: a new stage gets a new record.

`attention_mask` is True for real tokens and False for padding. That of Sequences may hold integers instead,
where several sequences are packed into a row: 0 for padding, else the number of a token's segment. Tokens
with equal numbers see each other, and positions start again in each segment.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

# Records hold either kind. A static checker would ask of each use which, so it is told "any".
if TYPE_CHECKING:
    from typing import Any as Array
else:
    Array = jax.Array | np.ndarray


class Prompts(NamedTuple):
    """Left-padded prompts to sample from.

    `index` identifies a row's prompt and `draw` its sample of that prompt; together they determine the
    row's keys. Where N < B, each row of tokens is the prompt of B / N adjacent rows, and is read once.
    """

    tokens: Int[Array, "N P"]
    attention_mask: Bool[Array, "N P"]
    index: Int[Array, " B"]
    draw: Int[Array, " B"]


class Sequences(NamedTuple):
    """Prompts with given responses; `mask` marks the response's own tokens, its EOS included.

    Where earlier answers in prompts are learned too, T = L - 1. So it is in a packed row, which holds
    several of both: its `mask` is False on the first token of each segment, which no token precedes.
    Fine-tuning accepts such rows; preferences and rewards count a row as one response.
    """

    tokens: Int[Array, "B L"]
    attention_mask: Bool[Array, "B L"] | Int[Array, "B L"]
    mask: Bool[Array, "B T"]


Demonstrations = Sequences
"""Data of supervised fine-tuning: prompts and the responses that people wrote."""


class Comparisons(NamedTuple):
    """Two responses to each prompt, of which a person preferred the first.

    `weight` of a pair: 1, how much it counts beside the others, or 0 for a tie that teaches nothing.
    `probability` that the first is the better one: 1 for a label, less where people were of two minds.
    """

    chosen: Sequences
    rejected: Sequences
    weight: Float[Array, " B"]
    probability: Float[Array, " B"]

    @property
    def sides(self) -> tuple[Sequences, Sequences]:
        """The chosen and the rejected responses."""
        return self.chosen, self.rejected

    def expected(self, won: Shaped[Array, " B"], lost: Shaped[Array, " B"]) -> Float[Array, " B"]:
        """probability won + (1 - probability) lost, the mean of a value `won` where the first response is the
        better one and `lost` where the second is."""
        return self.probability * won + (1.0 - self.probability) * lost


class Rankings(NamedTuple):
    """K responses to each prompt with their ranks, 0 for the best; equal ranks are ties.

    The arrays of `responses` are [B, K, ...]. A prompt with fewer responses has rank -1 in the columns that
    are left, and a copy of one of its responses there. `weight` is the weight of each prompt.
    """

    responses: Sequences
    rank: Int[Array, "B K"]
    weight: Float[Array, " B"]


class Ratings(NamedTuple):
    """Single responses and their scores: from 0 to 1 as probabilities of a good label, or standardised.

    `weight` is the weight of each row.
    """

    responses: Sequences
    score: Float[Array, " B"]
    weight: Float[Array, " B"]


class Samples(NamedTuple):
    """Responses sampled from a policy, by any engine.

    `mask` marks the policy's own tokens, EOS included; its holes are the environment's tokens. `logprobs`
    are those of the sampling policy at its sampling temperature. `ended` is True where a stop token ended
    the response, and False where the response reached its maximum length.
    """

    tokens: Int[Array, "B L"]
    attention_mask: Bool[Array, "B L"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    ended: Bool[Array, " B"]


class Rollout(NamedTuple):
    """Samples with their per-token rewards and log-probabilities under learner and reference.

    `logprobs` are the learner's at the time of the rollout: those of the samples, or recomputed where
    another engine sampled. All three are zero where `samples.mask` is False.
    """

    samples: Samples
    rewards: Float[Array, "B T"]
    logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]


class PPORollout(NamedTuple):
    """A Rollout with the critic's values."""

    samples: Samples
    rewards: Float[Array, "B T"]
    logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]
    values: Float[Array, "B T"]


class PPOBatch(NamedTuple):
    """Batch of the PPO loss."""

    samples: Samples
    logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]
    values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


class PolicyBatch(NamedTuple):
    """Batch of the policy gradient loss; `importance` weighs the samples of another engine."""

    samples: Samples
    logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    importance: Float[Array, "B T"]


class PreferenceBatch(NamedTuple):
    """Comparisons, and the reference's log-probability of each whole response."""

    comparisons: Comparisons
    ref_chosen: Float[Array, " B"]
    ref_rejected: Float[Array, " B"]


class LabelledBatch(NamedTuple):
    """Single responses labelled desirable or undesirable, and the reference's log-probability of each.

    `mismatched` holds each prompt with the response to another one, from which KTO estimates its reference
    point. `weight` is the weight of each row.
    """

    responses: Sequences
    desirable: Bool[Array, " B"]
    ref_logprobs: Float[Array, " B"]
    mismatched: Sequences
    ref_mismatched: Float[Array, " B"]
    weight: Float[Array, " B"]


class LoggedBatch(NamedTuple):
    """Logged responses with per-token rewards; a score lies on the last token."""

    responses: Sequences
    rewards: Float[Array, "B T"]
