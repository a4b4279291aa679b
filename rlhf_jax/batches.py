"""The records that travel between the stages.

B rows, P prompt columns, T response columns, L = P + T. Prompts are left-padded and responses
right-padded, so every response starts in column P, and `tokens[:, -T:]` is the response whatever P is.
Batches are plain arrays, NumPy or JAX, and no field is ever absent: a new stage is a new record.

`attention_mask` is True for real tokens and False for padding. That of Sequences may hold integers instead,
where several sequences are packed into a row: 0 for padding, else the number of a token's segment. Tokens
with equal numbers see each other, and positions start again in each segment.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

# Records hold either kind. A static checker would ask of each use which, so it is told "any".
if TYPE_CHECKING:
    from typing import Any as Array
else:
    Array = jax.Array | np.ndarray


class Prompts(NamedTuple):
    """What is sampled from: left-padded prompts.

    `index` says which prompt a row is and `draw` which sample of it: together they own the row's keys.
    """

    tokens: Int[Array, "B P"]
    attention_mask: Bool[Array, "B P"]
    index: Int[Array, " B"]
    draw: Int[Array, " B"]


class Sequences(NamedTuple):
    """A prompt and a given response; `mask` marks the response's own tokens, its EOS included.

    A packed row holds several of both, and T = L - 1. `mask` is False on the first token of each segment,
    which nothing precedes. Fine-tuning takes such rows; preferences and rewards count a row as one response.
    """

    tokens: Int[Array, "B L"]
    attention_mask: Bool[Array, "B L"] | Int[Array, "B L"]
    mask: Bool[Array, "B T"]


Demonstrations = Sequences
"""What supervised fine-tuning learns from: prompts and the responses that people wrote."""


class Comparisons(NamedTuple):
    """Two responses to one prompt in each row; a person preferred the first.

    `weight` says how much each pair counts: 1, the confidence of a label, or 0 for a tie.
    """

    chosen: Sequences
    rejected: Sequences
    weight: Float[Array, " B"]

    @property
    def sides(self) -> tuple[Sequences, Sequences]:
        """The chosen responses and the rejected ones."""
        return self.chosen, self.rejected


class Samples(NamedTuple):
    """What a policy said, wherever it was sampled.

    `mask` marks the policy's own tokens, EOS included; holes are where the environment spoke.
    `logprobs` are those of the policy that sampled, at the temperature it sampled with. `ended` is True
    where a stop token ended the response, and False where its length did.
    """

    tokens: Int[Array, "B L"]
    attention_mask: Bool[Array, "B L"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    ended: Bool[Array, " B"]


class Rollout(NamedTuple):
    """Samples, and the numbers that reward, learner and reference give to their tokens.

    `logprobs` are the learner's own at the time of the rollout: those of the samples, unless they are
    recomputed because another engine drew them.
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
    """What the PPO loss reads."""

    samples: Samples
    logprobs: Float[Array, "B T"]
    ref_logprobs: Float[Array, "B T"]
    values: Float[Array, "B T"]
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]


class PolicyBatch(NamedTuple):
    """What the loss of a policy gradient reads; `importance` weighs the samples of another engine."""

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
    """Single responses that people found desirable or not, and the reference's log-probability of each.

    `mismatched` are the same prompts, each with the response to another one: what the reference point of
    KTO is estimated from. `weight` says how much each row counts.
    """

    responses: Sequences
    desirable: Bool[Array, " B"]
    ref_logprobs: Float[Array, " B"]
    mismatched: Sequences
    ref_mismatched: Float[Array, " B"]
    weight: Float[Array, " B"]


class LoggedBatch(NamedTuple):
    """Responses from a log, with the reward of each token of theirs (a score lies on the last)."""

    responses: Sequences
    rewards: Float[Array, "B T"]
