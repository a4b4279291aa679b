"""Episodes of a policy on the devices with a task's environment, which answers in texts on the host."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rlhf_jax.algorithms import episodes
from rlhf_jax.algorithms.episodes import EpisodeConfig
from rlhf_jax.batches import Samples
from rlhf_jax.data.transcripts import Turns, decode_lines, encode_lines, transcript_of
from rlhf_jax.devices.parallel import Devices
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks.task import Environment, Row, one_line

Episode = tuple[Row, list[str]]
"""The row of an episode, and its lines so far."""


def respond(
    state: list[Episode],
    tokens,
    mask,
    *,
    environment: Environment,
    words,
    most: int,
    stop: Sequence[int],
):
    """(state, replies and their mask [B, most], rewards of zero [B], done [B]), as `episodes.play` needs.

    `tokens` and `mask` [B, n] are the turns, `words` is the tokenizer, and `stop` are the tokens that end a
    turn. Rows without a token are over already, and are not answered. Raises ValueError for a reply of more
    than `most` tokens.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    turns = decode_lines(words, [tokens[row][mask[row]].tolist() for row in rows], stop)
    replies, done = [], np.ones(len(state), bool)
    state = list(state)
    for row, turn in zip(rows, turns, strict=True):
        asked, lines = state[row]
        reply, done[row] = environment.reply(asked, [*lines, turn])
        replies.append(one_line(reply))
        state[row] = asked, [*lines, turn, replies[-1]]
    said = np.zeros((len(state), most), np.int32)
    heard = np.zeros((len(state), most), bool)
    for row, ids in zip(rows, encode_lines(words, replies, most), strict=True):
        said[row, : len(ids)], heard[row, : len(ids)] = ids, True
    return state, said, heard, np.zeros(len(state), np.float32), done


def make_play(
    cfg: SampleConfig, devices: Devices, words, environment: Environment, columns: Turns
) -> Callable:
    """`play(sample, params, prompts, rows, key) -> Samples` on the devices, of one episode a row.

    `sample` is compiled and draws one turn; prompts are on the host.
    """
    shape = EpisodeConfig(
        turns=environment.turns, turn_length=columns.turn, reply_length=columns.reply, pad=cfg.pad
    )
    answer = partial(
        respond, environment=environment, words=words, most=columns.reply, stop=cfg.stop
    )

    def play(sample, params, prompts, rows, key) -> Samples:
        turn = lambda params, before, key: devices.fetch(
            sample(params, devices.put_batch(before), key)
        )
        begun = [(row, []) for row in rows]
        samples, _ = episodes.play(turn, answer, params, prompts, begun, key, shape)
        return devices.put_batch(samples)

    return play


def transcripts(samples: Samples, words, columns: Turns, stop: Sequence[int]) -> list[str]:
    """The transcript of each episode, from arrays on the host."""
    T = samples.mask.shape[1]
    every = zip(samples.tokens[:, -T:], samples.attention_mask[:, -T:], samples.mask, strict=True)
    return [
        transcript_of(words, tokens[real].tolist(), own[real].tolist(), columns.turn, stop)
        for tokens, real, own in every
    ]
