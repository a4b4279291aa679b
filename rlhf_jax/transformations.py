"""Gradient transformations that optax lacks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class TFAdamState(NamedTuple):
    """First and second moments, and the number of updates."""

    count: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def scale_by_adam_tf_style(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with epsilon before the bias correction (Kingma and Ba, 2015, end of section 2):

        update = sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps)

    A gradient g smaller than eps / sqrt(1 - b2) moves less in the first steps than with optax's Adam.
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return TFAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        steps = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return steps, TFAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Gradients times min(1, `most` / their global norm).

    As optax's, whose division of every number XLA does not fuse with Adam: the gradient is written once more.
    """

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, most / optax.tree.norm(updates))
        return jax.tree.map(lambda x: x * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
