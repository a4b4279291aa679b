"""Optax optimizers from settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.bounds import Decay, NonNegative, Positive, Settings, Whole


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """Adam with warm-up, decay and clipping."""

    _main = ("lr",)

    lr: Positive = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after warm-up: constant, or decaying to zero one step after the last."""
    warmup: Whole = 0
    """Steps in which the learning rate rises linearly from zero."""
    b1: Decay = 0.9
    """Adam's decay rate of the first moment."""
    b2: Decay = 0.999
    """Adam's decay rate of the second moment."""
    eps: Positive = 1e-5
    """Adam's epsilon (1e-5: Ziegler et al., 2019)."""
    eps_placement: Literal["optax", "tensorflow"] = "optax"
    """Adam's epsilon after bias correction (optax, PyTorch), or before it (TensorFlow), which makes early
    steps smaller."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay (AdamW) of matrices; vectors have none."""
    clip: NonNegative = 1.0
    """Largest global norm of a gradient; 0: no clipping."""


class Optimizer(NamedTuple):
    """An optax.GradientTransformation that knows its learning rate."""

    init: optax.TransformInitFn
    update: optax.TransformUpdateFn
    rate: Callable  # (its state) -> the learning rate of the next step


def scale_by_adam(
    b1: float, b2: float, eps: float, placement: str = "optax"
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba, 2015), with epsilon after the bias correction, or before it ("tensorflow"; end of
    section 2):

        update = m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps)
        update = sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps)

    With the second, a gradient smaller than eps / sqrt(1 - b2) moves less in the first steps. The new moments
    are written before the updates are computed from them, so that donated ones are not copied first.
    """

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        of_mu, of_nu = 1 - b1**count, 1 - b2**count
        if placement == "tensorflow":
            of_mu, of_nu = of_mu / jnp.sqrt(of_nu), 1.0
        steps = jax.tree.map(lambda m, v: m / of_mu / (jnp.sqrt(v / of_nu) + eps), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def matrices(params):
    """True for parameters with weight decay: all but vectors, which are recognised by name where layers are
    stacked."""
    name = lambda path: getattr(path[-1], "key", "") if path else ""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim > 1 and name(path) not in ("bias", "scale"), params
    )


def wide(tree):
    """The tree with float32 in the place of narrower dtypes."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, "float32")), tree)


def make(cfg: OptimizerConfig, steps: int) -> Optimizer:
    """The optimizer of a run of `steps` gradient steps; its state and arithmetic are float32, even where
    parameters have a narrower dtype."""
    decay = max(steps - cfg.warmup, 1)
    after = {
        "constant": optax.constant_schedule(cfg.lr),
        "linear": optax.linear_schedule(cfg.lr, 0.0, decay),
        "cosine": optax.cosine_decay_schedule(cfg.lr, decay),
    }[cfg.schedule]
    # step n of a warm-up of w runs at lr (n + 1) / (w + 1): a first step of zero would teach nothing
    if cfg.warmup:
        warm = optax.linear_schedule(cfg.lr / (cfg.warmup + 1), cfg.lr, cfg.warmup)
    schedule = optax.join_schedules([warm, after], [cfg.warmup]) if cfg.warmup else after
    parts = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    parts.append(scale_by_adam(cfg.b1, cfg.b2, cfg.eps, cfg.eps_placement))
    if cfg.weight_decay:
        parts.append(optax.add_decayed_weights(cfg.weight_decay, matrices))
    tx = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    return Optimizer(
        lambda params: tx.init(wide(params)),
        lambda updates, state, params=None: tx.update(wide(updates), state, wide(params)),
        lambda state: schedule(state[-1].count),
    )
