"""Policy gradients without a critic: other responses are the baseline of each response.

One loss serves all methods. With R a response's return, and the mean set by `aggregate`,

    A = (R - baseline) / scale,    loss = mean w max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

    REINFORCE   R - mean of all others        rho of the response   Williams (1992), Ahmadian et al. (2024)
    RLOO        R - mean of others in group   rho of the response   Kool et al. (2019), Ahmadian et al. (2024)
    GRPO        (R - mean) / std of group     rho of each token     Shao et al. (2024)
    DR_GRPO     R - mean of group             rho of each token     Liu et al. (2025)
    DAPO        (R - mean) / std of group     rho of each token     Yu et al. (2025)
    GSPO        (R - mean) / std of group     their geometric mean  Zheng et al. (2025)

                aggregate   clip          group  minibatches  KL           else
    REINFORCE   sequences   none              1            1  in reward
    RLOO        sequences   none              4            1  in reward
    GRPO        sequences   .2, .2           64            1  k3 in loss
    DR_GRPO     constant    .2, .2            8            1  none
    DAPO        tokens      .2, .28          16           16  none         flat groups masked, overlong shaped
    GSPO        sequences   3e-4, 4e-4       16            4  none         (its group is not published)

REINFORCE and RLOO, with the KL in the reward, maximise E[score] - kl_coef KL, whose optimum is pi* ~ pi_ref
exp(score / kl_coef). So does every other method with kl_in_reward = "k1", because R is constant at that
optimum. GRPO's own k3 in the loss has another optimum.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax import epochs, train_step
from rlhf_jax.algorithms.learner import Learner, policy_alone
from rlhf_jax.algorithms.rollout import RolloutConfig, make_annotate, objective_metrics
from rlhf_jax.batches import PolicyBatch, Rollout
from rlhf_jax.bounds import Count, NonNegative, Settings, Unit
from rlhf_jax.ops import kl, losses
from rlhf_jax.ops.advantages import on_last_token
from rlhf_jax.ops.logprobs import ratio_of
from rlhf_jax.ops.reduce import gather, normalise, psum, share

# Added to deviations (1e-6: tunix and verl; 1e-4: TRL); returns closer than this count as equal
EPSILON = 1e-6


METRICS = (
    *(
        "advantage_std",
        "sampler_kl",
        "importance",
        "importance_capped",
        "flat_groups",
        "kl_loss",
        "loss",
    ),
    *("policy_loss", "entropy", "approx_kl", "clipfrac", "ratio", "steps"),
)
"""The metrics of an update, as `pg/NAME`."""


@dataclass(frozen=True)
class PolicyGradientConfig(Settings):
    """Policy gradients without a critic; the defaults are RLOO's."""

    _main = ("group",)

    epochs: Count = 1
    """Passes over one rollout, each in a fresh order (1: all methods, as published)."""
    minibatches: Count = 1
    """Gradient steps per pass, on equal parts of the global batch (1: on-policy; DAPO: 16; GSPO: 4)."""
    microbatches: Count = 1
    """Microbatches per device and gradient step, to save memory; the result does not change."""
    group: Count = 4
    """Draws of one prompt, in adjacent rows as `data.prompts.repeat_draws` makes them (RLOO: 2 or 4)."""
    baseline: Literal["none", "batch", "group", "leave_one_out"] = "leave_one_out"
    """Mean return of all other rows (batch), of the whole group (GRPO), or of the other rows in the group
    (leave_one_out: RLOO)."""
    scale: Literal["none", "group_std", "batch_std"] = "none"
    """Divide advantages by the group's unbiased standard deviation (GRPO) or by the batch's (REINFORCE++:
    Hu et al., 2025)."""
    ratio: Literal["token", "sequence", "sequence_mean"] = "sequence"
    """Probability ratio of each token (GRPO), of the response (RLOO), or its geometric mean per token
    (GSPO)."""
    clip_low: NonNegative = 0.0
    """Lower clip range: for negative advantages, ratios under 1 - clip_low get no gradient; 0: no limit."""
    clip_high: NonNegative = 0.0
    """Upper clip range: for positive advantages, ratios over 1 + clip_high get no gradient (DAPO: larger
    than clip_low); 0: no limit."""
    aggregate: Literal["tokens", "sequences", "constant"] = "sequences"
    """Mean over all tokens (DAPO), over responses of token means (GRPO), or over responses of token sums /
    T (constant: Dr. GRPO). Responses whose tokens are all masked do not count; TRL divides by all rows."""
    kl_in_reward: Literal["none", "k1"] = "k1"
    """Subtract kl_coef times the response's log-ratio from its return (Ahmadian et al., 2024)."""
    kl_in_loss: Literal["none", "k1", "k2", "k3"] = "none"
    """KL estimator of the penalty in the loss (GRPO: k3 per token; on-policy, k2 of the whole response also
    reaches pi*)."""
    kl_level: Literal["token", "sequence"] = "sequence"
    """Estimate kl_in_loss from the log-ratio of each token, or of the whole response."""
    kl_corrected: bool = False
    """Multiply kl_in_loss by the ratio, which makes the gradient of k3 unbiased (DeepSeek-V3.2, 2025)."""
    importance_cap: NonNegative = 0.0
    """Cap of the importance weight (learner's / engine's probability) of samples from another engine
    (truncated importance sampling: Espeholt et al., 2018; 2: Yao et al., 2025); 0: no weights."""
    importance_level: Literal["token", "sequence"] = "token"
    """Importance weight of each token (Yao et al., 2025), or of the response, which is unbiased except for
    the cap."""
    mask_flat_groups: bool = False
    """Mask groups whose scores are identical (dynamic sampling of DAPO at a fixed shape)."""
    mask_truncated: bool = False
    """Mask responses that never ended (overlong filtering of DAPO)."""
    overlong: Unit = 0.0
    """Last share of T over which the return falls linearly by up to 1 (DAPO: 0.2, 4096 of 20480 tokens); 0:
    off."""
    kl_stop: NonNegative = 0.0
    """Skip the remaining steps of a rollout once a minibatch's approximate KL exceeds this, in nats per
    token; 0: never."""

    def _conditions(self, at: str):
        if self.group == 1:
            for name, alone in [
                ("baseline", self.baseline in ("group", "leave_one_out")),
                ("scale", self.scale == "group_std"),
                ("mask_flat_groups", self.mask_flat_groups),
            ]:
                if alone:
                    raise ValueError(
                        f"{at}{name} = {getattr(self, name)!r} compares several draws of a prompt, "
                        f"and {at}group = 1: use 2 or more"
                    )
        if "none" not in (self.kl_in_reward, self.kl_in_loss):
            raise ValueError(
                f'{at}kl_in_loss = "{self.kl_in_loss}" beside {at}kl_in_reward = '
                f'"{self.kl_in_reward}" would count the penalty twice: set one of them to "none"'
            )
        if self.kl_corrected and self.kl_in_loss == "none":
            raise ValueError(
                f'{at}kl_corrected = True needs a penalty, and {at}kl_in_loss = "none": set that too'
            )
        if self.ratio != "token" and self.aggregate != "sequences":
            raise ValueError(
                f'{at}aggregate = "{self.aggregate}" would weigh a response by its length, and {at}ratio '
                f'= "{self.ratio}" counts it once: use aggregate = "sequences"'
            )
        if self.ratio == "sequence" and self.kl_in_loss != "none" and self.kl_level == "token":
            raise ValueError(
                f'{at}kl_level = "token" averages over tokens, unlike {at}ratio = "sequence", so kl_coef '
                'would have another meaning: use kl_level = "sequence"'
            )

    def _unread(self) -> dict[str, str]:
        missing = {}
        if self.kl_in_loss == "none":
            missing["kl_level"] = 'kl_in_loss is "none"'
        if not self.importance_cap:
            missing["importance_level"] = "importance_cap = 0 turns importance weights off"
        return missing


RLOO = PolicyGradientConfig()
REINFORCE = PolicyGradientConfig(group=1, baseline="batch")
GRPO = PolicyGradientConfig(
    group=64,
    baseline="group",
    scale="group_std",
    ratio="token",
    clip_low=0.2,
    clip_high=0.2,
    kl_in_reward="none",
    kl_in_loss="k3",
    kl_level="token",
)
DR_GRPO = PolicyGradientConfig(
    group=8,
    baseline="group",
    ratio="token",
    clip_low=0.2,
    clip_high=0.2,
    aggregate="constant",
    kl_in_reward="none",
)
DAPO = PolicyGradientConfig(
    minibatches=16,
    group=16,
    baseline="group",
    scale="group_std",
    ratio="token",
    clip_low=0.2,
    clip_high=0.28,
    aggregate="tokens",
    kl_in_reward="none",
    mask_flat_groups=True,
    overlong=0.2,
)
GSPO = PolicyGradientConfig(
    minibatches=4,
    group=16,
    baseline="group",
    scale="group_std",
    ratio="sequence_mean",
    clip_low=3e-4,
    clip_high=4e-4,
    kl_in_reward="none",
)


def advantages_of(returns: Float[Array, " B"], cfg: PolicyGradientConfig) -> Float[Array, " B"]:
    """(R - baseline) / scale for every row of the global batch, groups in adjacent rows.

    Raises ValueError when the groups do not divide the rows.
    """
    rows, k = len(returns), cfg.group
    if rows % k:
        raise ValueError(
            f"pg.group = {k} does not divide the {rows} rows of a rollout: choose a divisor"
        )

    def centred(x):  # differences first: equal returns are exactly zero then, and not a rounding
        x = x - x[..., :1]
        return x - jnp.mean(x, axis=-1, keepdims=True)

    within = centred(returns.reshape(-1, k))  # [B / k, k]
    advantages = {
        "none": lambda: returns,
        "batch": lambda: centred(returns) * rows / max(rows - 1, 1),
        "group": lambda: within,
        "leave_one_out": lambda: within * k / (k - 1),  # R less the mean of the others
    }[cfg.baseline]()
    advantages = advantages.reshape(-1, k)
    if cfg.scale == "group_std":
        advantages /= jnp.std(within, axis=1, ddof=1, keepdims=True) + EPSILON
    if cfg.scale == "batch_std":
        advantages /= jnp.std(advantages, ddof=1) + EPSILON
    return advantages.reshape(-1)


def prepare(rollout: Rollout, kl_coef, cfg: PolicyGradientConfig, *, axis_name=None):
    """(PolicyBatch, metrics), with one advantage per response on each of its tokens.

    A return is the sum of a row's rewards, less kl_coef log(policy / reference) of the whole response and
    the overlong penalty. Groups are compared on the global batch. Responses excluded from learning lose
    their `mask` after that comparison.
    """
    samples, mask, T = rollout.samples, rollout.samples.mask, rollout.samples.mask.shape[1]
    on_tokens = lambda x: jnp.where(mask, x[:, None], 0.0)  # [B] -> [B, T]
    tokens = normalise(mask, axis_name)
    mean_token = lambda x: psum(jnp.vdot(tokens, jnp.where(mask, x, 0.0)), axis_name)

    rewards = rollout.rewards
    if cfg.kl_in_reward == "k1":
        d = kl.k1(rollout.logprobs, rollout.ref_logprobs)
        rewards = rewards - kl_coef * jnp.where(mask, d, 0.0)
    if cfg.overlong:
        left = T - jnp.sum(mask, axis=1)
        rewards = rewards - on_last_token(jnp.maximum(1.0 - left / (cfg.overlong * T), 0.0), mask)
    total = lambda x: gather(jnp.sum(jnp.where(mask, x, 0.0), axis=1), axis_name)  # all rows
    advantages = advantages_of(total(rewards), cfg)  # all rows, on every device
    mine = share(jnp.arange(len(advantages)), axis_name)
    metrics = objective_metrics(rollout, rewards, kl_coef, axis_name=axis_name) | {
        "pg/advantage_std": jnp.std(advantages),
        "pg/sampler_kl": mean_token(kl.k3(samples.logprobs, rollout.logprobs)),
    }

    importance = jnp.ones(mask.shape)
    if cfg.importance_cap:
        log_weights = jnp.where(mask, rollout.logprobs - samples.logprobs, 0.0)
        if cfg.importance_level == "sequence":
            log_weights = on_tokens(jnp.sum(log_weights, axis=1))
        weights = ratio_of(log_weights)
        importance = jnp.minimum(weights, cfg.importance_cap)
        metrics["pg/importance"] = mean_token(weights)
        metrics["pg/importance_capped"] = mean_token(weights > cfg.importance_cap)

    learned = mask
    if cfg.group > 1:
        scores = total(rollout.rewards).reshape(-1, cfg.group)
        flat = jnp.max(scores, axis=1) - jnp.min(scores, axis=1) <= EPSILON
        metrics["pg/flat_groups"] = jnp.mean(flat.astype(jnp.float32))
        if cfg.mask_flat_groups:
            learned = learned & ~jnp.repeat(flat, cfg.group)[mine, None]
    if cfg.mask_truncated:
        learned = learned & samples.ended[:, None]
    batch = PolicyBatch(
        samples=samples._replace(mask=learned),
        logprobs=rollout.logprobs,
        ref_logprobs=rollout.ref_logprobs,
        advantages=on_tokens(advantages[mine]),
        importance=importance,
    )
    return batch, metrics


def weights_of(batch: PolicyBatch, cfg: PolicyGradientConfig):
    """Weight of each token [B, T] and of each response [B]."""
    mask = batch.samples.mask
    lengths = jnp.sum(mask, axis=1, keepdims=True)
    tokens = mask / jnp.maximum(lengths, 1) if cfg.aggregate == "sequences" else mask
    return {"tokens": tokens, "rows": jnp.any(mask, axis=1)}


def loss(params, frozen, batch: PolicyBatch, weights, *, policy_fn, cfg: PolicyGradientConfig):
    """The clipped surrogate times its importance weight, plus kl_coef times the penalty in the loss.

    Only `kl_in_loss` reads `frozen["kl_coef"]`. Quantities of a whole response are repeated on all its
    tokens.
    """
    samples, mask, T = batch.samples, batch.samples.mask, batch.samples.mask.shape[1]
    new_logprobs, entropy = policy_fn(params, samples.tokens, samples.attention_mask, last=T)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    of_response = lambda x: jnp.where(mask, jnp.sum(x, axis=1, keepdims=True), 0.0)
    d = jnp.where(mask, new_logprobs - batch.logprobs, 0.0)  # ratio 1 where nothing was said
    log_ratio = d if cfg.ratio == "token" else of_response(d)
    if cfg.ratio == "sequence_mean":
        log_ratio /= lengths
    policy_loss, clipped = losses.clipped_surrogate(
        log_ratio,
        jnp.zeros_like(d),
        batch.advantages,
        clip=cfg.clip_low or math.inf,
        clip_high=cfg.clip_high or math.inf,
    )

    mean_token = lambda x: jnp.vdot(weights["tokens"], x.astype(jnp.float32))
    mean = mean_token
    if cfg.aggregate == "constant":
        mean = lambda x: jnp.vdot(weights["rows"], jnp.sum(jnp.where(mask, x, 0.0), axis=1)) / T
    policy_loss = mean(batch.importance * policy_loss)
    total, metrics = policy_loss, {}
    if cfg.kl_in_loss != "none":
        said = (jnp.where(mask, x, 0.0) for x in (new_logprobs, batch.ref_logprobs, batch.logprobs))
        new, ref, old = map(of_response, said) if cfg.kl_level == "sequence" else said
        if cfg.kl_corrected:
            penalty = kl.corrected(cfg.kl_in_loss, new, ref, old)
        else:
            penalty = kl.ESTIMATORS[cfg.kl_in_loss](new, ref)
        if cfg.kl_level == "sequence" and cfg.ratio != "sequence":
            penalty /= lengths  # shared by its tokens, as the gradient of its advantage is
        metrics["pg/kl_loss"] = mean(penalty)
        total += frozen["kl_coef"] * metrics["pg/kl_loss"]
    return total, metrics | {
        "pg/loss": total,
        "pg/policy_loss": policy_loss,
        "pg/entropy": mean_token(entropy),
        "pg/approx_kl": mean_token(0.5 * jnp.square(d)),
        "pg/clipfrac": mean_token(clipped),
        "pg/ratio": mean_token(ratio_of(log_ratio)),
    }


def make_update(policy_fn, tx, cfg: PolicyGradientConfig, *, axis_name=None):
    """`update(state, frozen, kl_coef, rollout, rng) -> (state, metrics)`: all epochs over one Rollout.

    Metrics are means over the steps taken (`pg/steps` of them); `train/skipped` is a count. Raises
    ValueError when the groups or the minibatches do not divide the rollout.
    """
    step = train_step.make_train_step(
        partial(loss, policy_fn=policy_fn, cfg=cfg),
        partial(weights_of, cfg=cfg),
        tx,
        microbatches=cfg.microbatches,
        axis_name=axis_name,
    )
    return epochs.make_update(
        step,
        partial(prepare, cfg=cfg, axis_name=axis_name),
        area="pg",
        epochs=cfg.epochs,
        minibatches=cfg.minibatches,
        kl_stop=cfg.kl_stop,
        axis_name=axis_name,
    )


def make_learner(
    policy_fn, tx, cfg: PolicyGradientConfig, rollout_cfg: RolloutConfig, *, axis_name=None
) -> Learner:
    """A policy gradient as a Learner; its parameters are the policy's."""
    return Learner(
        area="pg",
        init=policy_alone,
        policy_of=lambda params: params,
        annotate=make_annotate(policy_fn, rollout_cfg),
        update=make_update(policy_fn, tx, cfg, axis_name=axis_name),
        group=cfg.group,
    )
