"""Q-learning on logged responses (Snell et al., 2023, "Offline RL for natural language generation with
implicit language Q learning"; the transformer code of Abdulhai et al., 2023, "LMRL-Gym").

A state s_t is the prompt and everything before a token of the response, the action a_t is that token, and
s_{t+1} is everything before the response's next token, so states include the environment's tokens. With
twin Q heads Q_1 and Q_2, target heads Q'_1 and Q'_2, and V, zero after the last token, a step descends the
mean over the logged tokens of

    q             sum_k (Q_k(s_t, a_t) - y_t)^2 / 2,    y_t = r_t + gamma V(s_{t+1})
    value         |tau - 1(u_t < 0)| u_t^2 / 2,         u_t = min_k Q'_k(s_t, a_t) - V(s_t)
    conservative  -cql_coef sum_k log softmax(Q_k(s_t, .))(a_t)

without a gradient through y_t and Q', and then moves the target, Q' <- Q' + polyak (Q - Q'). V converges to
the expectile tau of Q over the logged actions: their mean at tau = 1/2, close to the best of them as tau
goes to 1, and never the value of an action that nobody took. Decoding perturbs the behaviour policy pi_b, a
frozen language model fine-tuned on the same log:

    log pi(a | s) = log pi_b(a | s) + beta (min_k Q'_k(s, a) - V(s)) - log Z(s)

Only the heads have a target; the trunk is shared, so Q' reads the current trunk.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax import train_step
from rlhf_jax.batches import LoggedBatch
from rlhf_jax.bounds import Inside, NonNegative, Settings, Share, Unit
from rlhf_jax.ops.advantages import gae


@dataclass(frozen=True)
class ILQLConfig(Settings):
    """Implicit language Q-learning; each default is a published value."""

    _main = ("beta",)

    gamma: Unit = 0.99
    """Discount factor (0.99: Snell et al., 2023, in code)."""
    lam: Unit = 0.0
    """Lambda of the returns that Q regresses on: one-step bootstraps at 0, the logged returns at 1
    (LMRL-Gym's Monte-Carlo baseline)."""
    tau: Inside = 0.7
    """Expectile of V (0.7 on Wordle, 0.6 on comments: Snell et al., 2023, in code)."""
    cql_coef: NonNegative = 0.01
    """Weight of the conservative term (0.01: LMRL-Gym; 1e-4 on Wordle, 0.25 on comments: Snell et al.,
    2023)."""
    polyak: Share = 0.005
    """Step size of the moving average of target heads (0.005: Snell et al., 2023, in code)."""
    beta: NonNegative = 16.0
    """Weight of Q - V in decoding, per unit of reward (16 on Wordle, 8 on comments: Snell et al., 2023)."""


class ILQLState(NamedTuple):
    """Training state: that of Q and V, and the target heads."""

    train: train_step.TrainState
    target: Any


def init_state(params, tx) -> ILQLState:
    """Initial state for training `params` {"q", "value", ...} with `tx`; the target is a copy of
    `params["q"]`."""
    return ILQLState(train_step.init_state(params, tx), jax.tree.map(jnp.copy, params["q"]))


def move_target(target, q, cfg: ILQLConfig):
    """Q' + polyak (Q - Q'), leaf by leaf.

    The heads must be float32 or wider: a difference Q - Q' smaller than 1 / (2 polyak) units in the last
    place of Q' moves nothing.
    """
    return jax.tree.map(lambda old, new: old + cfg.polyak * (new - old), target, q)


def expectile_loss(
    target: Float[Array, "*n"], values: Float[Array, "*n"], *, tau: float
) -> Float[Array, "*n"]:
    """|tau - 1(u < 0)| u^2 / 2 with u = target - values (Kostrikov et al., 2022, equation 5, halved)."""
    u = target - values
    return 0.5 * jnp.where(u < 0, 1.0 - tau, tau) * jnp.square(u)


def weights_of(batch: LoggedBatch):
    """Equal weights of all response tokens."""
    return batch.responses.mask


def loss(params, frozen, batch: LoggedBatch, weights, *, q_fn, cfg: ILQLConfig):
    """Mean over response tokens of the q, value and conservative losses defined in the module docstring.

    `frozen["target"]` are the target heads. `ilql/q` is the mean of min_k Q'_k over the logged tokens.
    """
    responses, mask = batch.responses, batch.responses.mask
    q, target_q, logprobs, values = q_fn(
        params, frozen["target"], responses.tokens, responses.attention_mask, last=mask.shape[1]
    )  # [K, B, T], and values [B, T]
    fixed = jax.lax.stop_gradient(values)
    _, returns = gae(batch.rewards, fixed, mask, gamma=cfg.gamma, lam=cfg.lam)  # y_t where lam = 0
    least = jax.lax.stop_gradient(jnp.min(target_q, axis=0))

    mean = lambda x: jnp.vdot(weights, x)
    metrics = {
        "ilql/q_loss": mean(0.5 * jnp.sum(jnp.square(q - returns[None]), axis=0)),
        "ilql/value_loss": mean(expectile_loss(least, values, tau=cfg.tau)),
        "ilql/conservative_loss": mean(-jnp.sum(logprobs, axis=0)),
        "ilql/q": mean(least),
        "ilql/value": mean(values),
    }
    total = metrics["ilql/q_loss"] + metrics["ilql/value_loss"]
    total += cfg.cql_coef * metrics["ilql/conservative_loss"]
    return total, {"ilql/loss": total} | metrics


def make_train_step(q_fn, tx, cfg: ILQLConfig, *, microbatches=1, axis_name=None):
    """`step(state: ILQLState, frozen, LoggedBatch) -> (state, metrics)`; `frozen` may be empty."""
    descend = train_step.make_train_step(
        partial(loss, q_fn=q_fn, cfg=cfg),
        weights_of,
        tx,
        microbatches=microbatches,
        axis_name=axis_name,
    )

    def step(state: ILQLState, frozen, batch: LoggedBatch):
        train, metrics = descend(state.train, frozen | {"target": state.target}, batch)
        return ILQLState(train, move_target(state.target, train.params["q"], cfg)), metrics

    return step


def guided_params(behaviour_params, state: ILQLState, cfg: ILQLConfig):
    """Parameters of the decoder `networks.guided`: pi_b, V with the target's Q, and beta."""
    return {
        "policy": behaviour_params,
        "q": state.train.params | {"q": state.target},
        "beta": jnp.float32(cfg.beta),
    }
