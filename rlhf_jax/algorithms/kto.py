"""KTO: a policy from single responses labelled desirable or undesirable (Ethayarajh et al., 2024).

The reward is DPO's, beta log pi(y|x) / pi_ref(y|x). The loss pushes each response to its label's side of a
reference point: the policy's KL to the reference, estimated from prompts paired with the responses to other
prompts.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax import train_step
from rlhf_jax.algorithms.preference import response_logprobs
from rlhf_jax.batches import LabelledBatch, Sequences
from rlhf_jax.bounds import Positive, Settings
from rlhf_jax.ops.reduce import normalise, psum


@dataclass(frozen=True)
class KTOConfig(Settings):
    """Coefficients of KTO's loss."""

    beta: Positive = 0.1
    """Weight of the implied KL (0.1: Ethayarajh et al., 2024)."""
    desirable_weight: Positive = 1.0
    """Weight of the loss on desirable responses (1: Ethayarajh et al., 2024)."""
    undesirable_weight: Positive = 1.0
    """Weight of the loss on undesirable responses (1: Ethayarajh et al., 2024); with unbalanced labels,
    choose it so that both sides weigh about the same."""


def kto_loss(
    logprobs: Float[Array, "*n"],
    ref_logprobs: Float[Array, "*n"],
    desirable: Bool[Array, "*n"],
    z_ref: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """lambda (1 - sigmoid(m)), and the margin m by which the reward lies on its label's side of the
    reference point.

    m = beta (r - z_ref) for a desirable response and beta (z_ref - r) for an undesirable one, with r = log
    pi(y) / pi_ref(y) from sums of log-probabilities and lambda the label's weight (Ethayarajh et al.,
    2024).
    """
    above = beta * (logprobs - ref_logprobs - z_ref)
    margin = jnp.where(desirable, above, -above)
    scale = jnp.where(desirable, desirable_weight, undesirable_weight)
    return scale * jax.nn.sigmoid(-margin), margin


def mismatch(responses: Sequences, shift: int = 1) -> Sequences:
    """Each prompt with the response `shift` rows further down, cyclically.

    These are the mismatched pairs (x_i, y_j) of `LabelledBatch` (Ethayarajh et al., 2024). Where rows of
    one prompt are adjacent, `shift` must step over them.
    """
    T = responses.mask.shape[1]
    roll = lambda x: jnp.roll(x, -shift, axis=0)
    join = lambda x: jnp.concatenate([x[:, :-T], roll(x[:, -T:])], axis=1)
    return Sequences(
        tokens=join(responses.tokens),
        attention_mask=join(responses.attention_mask),
        mask=roll(responses.mask),
    )


def weights_of(batch: LabelledBatch):
    """The weight of each response, over the batch and, for the metrics, among responses with the same
    label."""
    return {
        "all": batch.weight,
        "desirable": jnp.where(batch.desirable, batch.weight, 0.0),
        "undesirable": jnp.where(batch.desirable, 0.0, batch.weight),
    }


def reference_point(params, batch: LabelledBatch, *, policy_fn, axis_name=None) -> Float[Array, ""]:
    """KTO's z_ref: max(0, mean of log pi(y_j | x_i) / pi_ref(y_j | x_i)) over the global batch of
    mismatched pairs, with the current parameters (Ethayarajh et al., 2024)."""
    weights = normalise(batch.weight, axis_name)
    logprobs = response_logprobs(params, batch.mismatched, policy_fn=policy_fn)
    kl = psum(jnp.vdot(weights, logprobs - batch.ref_mismatched), axis_name)
    return jnp.maximum(kl, 0.0)


def loss(params, frozen, batch: LabelledBatch, weights, *, policy_fn, cfg: KTOConfig):
    """Mean over responses of KTO's loss; `frozen["z_ref"]` is the reference point, without a gradient.

    `preference/accuracy` is the share of responses whose reward lies on its label's side of it.
    """
    logprobs = response_logprobs(params, batch.responses, policy_fn=policy_fn)
    unreduced, margin = kto_loss(
        logprobs,
        batch.ref_logprobs,
        batch.desirable,
        frozen["z_ref"],
        beta=cfg.beta,
        desirable_weight=cfg.desirable_weight,
        undesirable_weight=cfg.undesirable_weight,
    )
    total = jnp.vdot(weights["all"], unreduced)
    rewards = cfg.beta * (logprobs - batch.ref_logprobs)
    sides = weights["desirable"], weights["undesirable"]
    return total, {
        "preference/loss": total,
        "preference/accuracy": jnp.vdot(weights["all"], (margin > 0).astype(jnp.float32)),
        "preference/margin": jnp.vdot(sides[0] - sides[1], rewards),
        "preference/chosen_logprob": jnp.vdot(sides[0], logprobs),
        "preference/rejected_logprob": jnp.vdot(sides[1], logprobs),
    }


def make_train_step(policy_fn, tx, cfg: KTOConfig, *, microbatches=1, axis_name=None):
    """`step(state, frozen, LabelledBatch) -> (state, metrics)`, which estimates the reference point first;
    `frozen` may be empty."""
    step = train_step.make_train_step(
        partial(loss, policy_fn=policy_fn, cfg=cfg),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )

    def kto_step(state, frozen, batch: LabelledBatch):
        z_ref = reference_point(state.params, batch, policy_fn=policy_fn, axis_name=axis_name)
        state, metrics = step(state, frozen | {"z_ref": z_ref}, batch)
        return state, metrics | {"preference/z_ref": z_ref}

    return kto_step
