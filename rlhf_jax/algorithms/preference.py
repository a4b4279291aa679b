"""A policy from comparisons, without a reward model: DPO and its family.

Each kind defines an implicit reward of a response y to a prompt x from the policy's own probabilities, and
fits this reward to people's choices. With log pi(y|x) a sum over the |y| tokens of the response:

    dpo     beta log pi(y|x) / pi_ref(y|x)   Rafailov et al., 2023 (with label smoothing: Mitchell, 2023)
    ipo     the same                         Azar et al., 2023
    simpo   beta log pi(y|x) / |y|           Meng et al., 2024
    orpo    log odds of p, log p = log pi(y|x) / |y|   Hong et al., 2024

Trained on all comparisons that Bradley-Terry annotators would make of the reference's responses, only dpo
converges to pi* ~ pi_ref exp(r / beta). The others have optima of their own, which their tests state.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax import train_step
from rlhf_jax.batches import Comparisons, PreferenceBatch, Samples, Sequences
from rlhf_jax.bounds import Bound, NonNegative, Positive, Settings
from rlhf_jax.ops.losses import pairwise_loss

DEFAULTS: dict[str, dict[str, float]] = {  # the settings that each kind reads
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "ipo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "orpo": {"beta": 0.1},
}


METRICS = ("loss", "accuracy", "margin", "chosen_logprob", "rejected_logprob", "sft_loss")
"""The metrics of a step, as `preference/NAME`."""


@dataclass(frozen=True)
class PreferenceConfig(Settings):
    """Preference loss and its coefficients; None takes the value in `DEFAULTS`."""

    _main = ("kind", "beta")

    kind: Literal["dpo", "ipo", "simpo", "orpo"] = "dpo"
    """Loss of pairs."""
    beta: Positive | None = None
    """Weight of the implied KL (dpo: 0.1, as published; ipo: tau = 0.1, our choice), of the reward
    (simpo: 2, Meng et al., 2024, on Llama 3), or of the odds-ratio term (orpo: lambda = 0.1, Hong et al.,
    2024)."""
    label_smoothing: Annotated[float, Bound(ge=0, lt=0.5)] | None = None
    """For dpo: assumed probability that a label is wrong (cDPO: Mitchell, 2023; 0: Rafailov et al., 2023)."""
    gamma: NonNegative | None = None
    """For simpo: target margin of the chosen reward over the rejected one (1: Meng et al., 2024, on Llama
    3)."""

    def _conditions(self, at: str):
        for name in dict.fromkeys(name for of in DEFAULTS.values() for name in of):
            if getattr(self, name) is not None and name not in DEFAULTS[self.kind]:
                readers = " or ".join(kind for kind in DEFAULTS if name in DEFAULTS[kind])
                raise ValueError(
                    f'{at}{name} = {getattr(self, name)} has no effect with {at}kind = "{self.kind}": '
                    f"leave it out, or use {readers}"
                )


def settings(cfg: PreferenceConfig) -> dict[str, float]:
    """Keyword arguments of the loss of `cfg.kind`: the value of each of its settings, or the default of its
    paper."""
    given = {name: getattr(cfg, name) for name in DEFAULTS[cfg.kind]}
    return DEFAULTS[cfg.kind] | {name: value for name, value in given.items() if value is not None}


# --- the losses of pairs: each returns (losses, reward of the chosen less reward of the rejected response)


def dpo_loss(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    ref_chosen: Float[Array, "*n"],
    ref_rejected: Float[Array, "*n"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """-log sigmoid(m), m = beta [log pi(y_w) / pi_ref(y_w) - log pi(y_l) / pi_ref(y_l)] (Rafailov et al.,
    2023, equation 7), from sums of log-probabilities.

    With `label_smoothing` e, (1 - e) f(m) + e f(-m) (Mitchell, 2023): where y_w wins with probability p,
    the optimal m is logit((1 - e) p + e (1 - p)).
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    loss = pairwise_loss(margin, jnp.zeros_like(margin), label_smoothing=label_smoothing)
    return loss, margin


def ipo_loss(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    ref_chosen: Float[Array, "*n"],
    ref_rejected: Float[Array, "*n"],
    *,
    beta: float,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """(h - 1 / (2 beta))^2, h = log pi(y_w) / pi_ref(y_w) - log pi(y_l) / pi_ref(y_l) (Azar et al., 2023,
    equation 17, whose tau is beta), from sums of log-probabilities as in the paper. TRL uses means over
    each response's tokens, so beta has another meaning there.

    On all pairs of responses drawn from pi_ref, the optimum is pi ~ pi_ref exp(E_y'[p(y > y')] / beta).
    """
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return jnp.square(h - 1.0 / (2.0 * beta)), beta * h


def simpo_loss(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    chosen_length: Int[Array, "*n"],
    rejected_length: Int[Array, "*n"],
    *,
    beta: float,
    gamma: float,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """-log sigmoid(m - gamma), m = beta [log pi(y_w) / |y_w| - log pi(y_l) / |y_l|] (Meng et al., 2024,
    equation 6), from sums of log-probabilities; no reference."""
    margin = beta * (per_token(chosen, chosen_length) - per_token(rejected, rejected_length))
    return pairwise_loss(margin, jnp.zeros_like(margin), margin=gamma), margin


def orpo_loss(
    chosen: Float[Array, "*n"],
    rejected: Float[Array, "*n"],
    chosen_length: Int[Array, "*n"],
    rejected_length: Int[Array, "*n"],
    *,
    beta: float,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """-log pi(y_w) / |y_w| - beta log sigmoid(m), m = log odds(y_w) - log odds(y_l) (Hong et al., 2024,
    equations 4 to 7, whose lambda is beta), from sums of log-probabilities; no reference.

    odds(y) = p / (1 - p) with log p = log pi(y) / |y|. Both terms are losses: each falls as pi(y_w) rises.
    """

    def log_odds(logprob):
        logprob = jnp.minimum(logprob, -1e-6)  # the odds of certainty are infinite
        return logprob - jnp.log(-jnp.expm1(logprob))

    chosen, rejected = per_token(chosen, chosen_length), per_token(rejected, rejected_length)
    margin = log_odds(chosen) - log_odds(rejected)
    return -chosen - beta * jax.nn.log_sigmoid(margin), margin


LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss, "simpo": simpo_loss, "orpo": orpo_loss}


def per_token(logprobs: Float[Array, "*n"], lengths: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Mean log-probability per token; zero for a response without tokens."""
    return logprobs / jnp.maximum(lengths, 1)


# --- preparation: the reference's log-probabilities, and pairs of samples


def response_logprobs(params, responses: Sequences, *, policy_fn):
    """log pi(y | x) of each whole response [B]: the sum over its own tokens, without the prompt's."""
    logprobs, _ = policy_fn(
        params, responses.tokens, responses.attention_mask, last=responses.mask.shape[1]
    )
    return jnp.sum(jnp.where(responses.mask, logprobs, 0.0), axis=1)


def make_reference_logprobs(policy_fn):
    """`reference(ref_params, Sequences) -> [B]`, to run once over a data set whose records keep the
    numbers.

    Training then needs the reference's parameters no more.
    """
    return partial(response_logprobs, policy_fn=policy_fn)


def pick_pairs(samples: Samples, scores, k: int) -> Comparisons:
    """Pairs [B / k] of the best and the worst of every `k` rows, for online DPO.

    Rows k i to k i + k - 1 are draws of one prompt, with scores [B] of a reward model (Guo et al., 2024,
    with k = 2). A pair has weight 1, or 0 where all k scores are equal and no response is preferred. Raises
    ValueError where k < 2 or k does not divide the rows.
    """
    if k < 2 or len(scores) % k:
        raise ValueError(
            f"k = {k} draws of a prompt must be 2 or more and divide the {len(scores)} samples: "
            "draw each prompt k times, in adjacent rows"
        )
    group = lambda x: x.reshape(-1, k, *x.shape[1:])
    one_each = jax.vmap(lambda rows, choice: rows[choice])

    def pick(choice):  # [B / k]: the index in each group
        rows = Sequences(samples.tokens, samples.attention_mask, samples.mask)
        return jax.tree.map(lambda x: one_each(group(x), choice), rows)

    groups = group(scores)
    return Comparisons(
        chosen=pick(jnp.argmax(groups, axis=1)),
        rejected=pick(jnp.argmin(groups, axis=1)),
        weight=(jnp.max(groups, axis=1) > jnp.min(groups, axis=1)).astype(jnp.float32),
        probability=jnp.ones(len(groups), jnp.float32),
    )


# --- the step on pairs


def weights_of(batch: PreferenceBatch):
    """The weight of each pair."""
    return batch.comparisons.weight


def loss(params, frozen, batch: PreferenceBatch, weights, *, policy_fn, cfg: PreferenceConfig):
    """Mean over pairs of the loss of `cfg.kind`; the margin is the reward of the chosen response less the
    rejected one's.

    A pair whose first response is the better one with probability p has p times its loss and 1 - p times that
    of the pair turned round, and counts so in `preference/accuracy`.
    """
    del frozen
    pairs = batch.comparisons
    # One pass for both sides, pair by pair and not side by side: a sharded B stays where it is
    both = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *pairs.sides)
    sides = lambda x: x.reshape(-1, 2).T  # [2 B] -> chosen [B], rejected [B]
    chosen, rejected = sides(response_logprobs(params, both, policy_fn=policy_fn))
    lengths = sides(jnp.sum(both.mask, axis=1))
    against = (batch.ref_chosen, batch.ref_rejected) if cfg.kind in ("dpo", "ipo") else lengths
    of = partial(LOSSES[cfg.kind], **settings(cfg))
    won, margin = of(chosen, rejected, *against)
    lost, _ = of(rejected, chosen, *against[::-1])
    unreduced = pairs.expected(won, lost)
    mean = lambda x: jnp.vdot(weights, x)
    metrics = {
        "preference/loss": mean(unreduced),
        "preference/accuracy": mean(pairs.expected(margin > 0, margin < 0)),
        "preference/margin": mean(margin),
        "preference/chosen_logprob": mean(chosen),
        "preference/rejected_logprob": mean(rejected),
    }
    if cfg.kind == "orpo":
        nats = -per_token(chosen, lengths[0]), -per_token(rejected, lengths[1])
        metrics["preference/sft_loss"] = mean(pairs.expected(*nats))
    return metrics["preference/loss"], metrics


def make_train_step(policy_fn, tx, cfg: PreferenceConfig, *, microbatches=1, axis_name=None):
    """`step(state, frozen, PreferenceBatch) -> (state, metrics)`; `frozen` may be empty."""
    return train_step.make_train_step(
        partial(loss, policy_fn=policy_fn, cfg=cfg),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )


def margins(pairs: PreferenceBatch, chosen, rejected, kind: str):
    """Implicit reward of chosen over rejected responses [N], up to a factor, from their log-probabilities.

    The reward is log pi / pi_ref, or for kinds without a reference the mean log-probability of a token.
    """
    if kind in ("simpo", "orpo"):
        tokens = [side.mask.sum(axis=1) for side in pairs.comparisons.sides]
        return chosen / tokens[0] - rejected / tokens[1]
    return (chosen - pairs.ref_chosen) - (rejected - pairs.ref_rejected)
