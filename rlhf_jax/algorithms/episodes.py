"""Episodes of several turns between a policy and an environment, in one record.

    column           prompt      turn    reply   turn    reply   padding
    attention_mask   0 1 1 1     1 1     1       1       1       0 0
    mask                         1 1     0       1       0       0 0
    rewards                      0 r     0       r       0       0 0

The record is an ordinary `Samples` whose mask has holes, so every algorithm accepts it. This file knows no
game: an environment is a function on arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rlhf_jax.batches import Prompts, Samples
from rlhf_jax.bounds import Count, Settings, Whole


@dataclass(frozen=True)
class EpisodeConfig(Settings):
    """Shape of an episode: T = turns (turn_length + reply_length) response columns."""

    turns: Count = 3
    """Maximum number of the policy's turns."""
    turn_length: Count = 2
    """Most tokens of a turn, its end token included: the sampler's `length`."""
    reply_length: Whole = 1
    """Most tokens of a reply."""
    pad: Whole = 0
    """Token id of the columns where nobody spoke, which are always masked."""


def play(
    sample_turn: Callable,
    respond: Callable,
    params: Any,
    prompts: Prompts,
    state: Any,
    rng: jax.Array,
    cfg: EpisodeConfig,
) -> tuple[Samples, Float[np.ndarray, "B T"]]:
    """One episode per row, and its rewards, each on the last token of the turn that earned it.

        sample_turn(params, Prompts, key) -> Samples [B, turn_length]       of `sampling.make_sample`
        respond(state, tokens, mask [B, turn_length])
            -> state, tokens, mask [B, reply_length], rewards [B], done [B]

    The prompt of every turn is the episode so far, left-padded to one width, P + T less one turn and reply,
    so `sample_turn` compiles once. The noise of a token depends on `rng`, the prompt's index, its draw, the
    turn and the position in it. A row that is done samples no more: its later `mask`s are all False, and
    the environment's answers to it are dropped. `ended` marks the rows that are done. Raises TypeError for
    integer rewards, and ValueError for columns that differ from the config's.
    """
    B, n = len(prompts.tokens), cfg.turn_length
    shape = B, cfg.turns, n + cfg.reply_length
    tokens = np.full(shape, cfg.pad, np.int32)
    real, mask = np.zeros(shape, bool), np.zeros(shape, bool)
    logprobs, rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    flat = lambda x: x.reshape(B, -1)
    alive, ended = np.ones(B, bool), np.zeros(B, bool)
    for turn in range(cfg.turns):
        before = _so_far(prompts, flat(tokens), flat(real), shape[2])
        said = sample_turn(params, before, jax.random.fold_in(rng, turn))
        _check("turn_length", n, np.shape(said.mask))
        spoken = np.asarray(said.mask) & alive[:, None]
        words = np.asarray(said.tokens)[:, -n:]
        state, reply, heard, earned, done = respond(state, words, spoken)
        _check("reply_length", cfg.reply_length, heard.shape)
        _check_floats(earned)

        real[:, turn] = np.concatenate([spoken, heard & alive[:, None]], axis=1)
        mask[:, turn, :n] = spoken
        both = np.concatenate([words, reply], axis=1)
        tokens[:, turn] = np.where(real[:, turn], both, cfg.pad)
        logprobs[:, turn, :n] = np.where(spoken, said.logprobs, 0.0)
        last = n - 1 - np.argmax(spoken[:, ::-1], axis=1)
        rewards[np.arange(B), turn, last] = np.where(alive, earned, 0.0)
        ended |= alive & done
        alive = alive & ~done
        if not alive.any():
            break

    order = np.argsort(~flat(real), axis=1, kind="stable")  # padding goes to the right end
    packed = lambda x: np.take_along_axis(flat(x), order, axis=1)
    samples = Samples(
        tokens=np.concatenate([prompts.tokens, packed(tokens)], axis=1),
        attention_mask=np.concatenate([prompts.attention_mask, packed(real)], axis=1),
        mask=packed(mask),
        logprobs=packed(logprobs),
        ended=ended,
    )
    return samples, packed(rewards)


def _so_far(prompts: Prompts, tokens, real, room: int) -> Prompts:
    """Prompts followed by the episode so far, left-padded; `room` columns of it are still empty."""
    tokens = np.concatenate([prompts.tokens, tokens], axis=1)
    real = np.concatenate([prompts.attention_mask, real], axis=1)
    order = np.argsort(real, axis=1, kind="stable")[:, room:]  # padding goes to the left end
    take = lambda x: np.take_along_axis(x, order, axis=1)
    return prompts._replace(tokens=take(tokens), attention_mask=take(real))


def _check(name: str, columns: int, shape):
    if shape[1] != columns:
        raise ValueError(
            f"episode.{name} = {columns} and {shape[1]} columns came: set it to {shape[1]}"
        )


def _check_floats(rewards):
    if not np.issubdtype(rewards.dtype, np.floating):
        raise TypeError(
            f"rewards are {rewards.dtype}, which cannot hold fractions: make them float32 at their source"
        )
