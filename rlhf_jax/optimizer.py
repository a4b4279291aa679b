"""Optax optimizers from settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import transformations
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
    adam = (
        transformations.scale_by_adam_tf_style(cfg.b1, cfg.b2, cfg.eps)
        if cfg.eps_placement == "tensorflow"
        else optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
    )
    parts = [transformations.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    parts.append(adam)
    if cfg.weight_decay:
        parts.append(optax.add_decayed_weights(cfg.weight_decay, matrices))
    tx = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    return Optimizer(
        lambda params: tx.init(wide(params)),
        lambda updates, state, params=None: tx.update(wide(updates), state, wide(params)),
        lambda state: schedule(state[-1].count),
    )
