"""Tokens of a response one by one as they are sampled, and the text that they write.

    stream = make_stream(networks.language_model(cfg), params, cfg.context)
    for piece in written(words, stream(ids, sample, key), stop=["\\n"]):
        print(piece.text, end="")

The functions and the noise are those of `sampling.py`: for one prompt, key, index, draw and settings, the
tokens are those of `sampling.make_sample`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.sampling import SampleConfig

LEAST = 32
"""Columns of the narrowest compiled prompt, and of the shortest compiled response."""
UNKNOWN = "\ufffd"
"""Character in the place of bytes that are none, or not yet."""


class TooLong(ValueError):
    """A prompt and its answer exceed the model's positions."""


class Token(NamedTuple):
    """A sampled token."""

    id: int
    logprob: float  # under the law that it was sampled from
    top: tuple[
        tuple[int, float], ...
    ]  # the likeliest ids under that law, with their log-probabilities
    stops: bool  # True for a token that ends the response


class Piece(NamedTuple):
    """Text that no later token changes, and the tokens since the piece before."""

    text: str
    tokens: tuple[Token, ...]
    finish: str  # "stop" or "length" in the last piece, otherwise empty


def make_stream(lm, params: Any, context: int) -> Callable[..., Iterator[Token]]:
    """`stream(ids, cfg, key, index=0, draw=0, top=0)`: the tokens of one response to a prompt's ids.

    `top` is the number of likeliest tokens that each token tells. Prompt and `cfg.length` must fit into
    `context` (`check_fits`); programs are compiled for a few widths.
    """
    prefill = jax.jit(lm.prefill_fn, static_argnums=3)
    decode = jax.jit(lm.decode_fn, donate_argnums=1)
    ready = jax.jit(lm.ready_fn)(params)

    def stream(ids, cfg: SampleConfig, key, index=0, draw=0, top=0) -> Iterator[Token]:
        columns, room = widths(len(ids), cfg.length, context)
        tokens, attention_mask = left_padded(ids, columns)
        keys = jax.random.fold_in(jax.random.fold_in(key, index), draw)[None]
        logits, cache = prefill(ready, tokens, attention_mask, room)
        law = replace(cfg, length=0)  # of which one token depends, and for which it is compiled
        for t in range(cfg.length):
            token, logprob, likeliest = _choose(law, top, keys, logits, t)
            logits, cache = decode(ready, cache, token)  # goes on while the token is read
            (id,), (logprob,), (names,), (values,) = map(
                np.ndarray.tolist, jax.device_get((token, logprob, *likeliest))
            )
            told = tuple(x for x in zip(names, values, strict=True) if x[1] > -np.inf)
            yield Token(id, logprob, told, id in cfg.stop)
            if id in cfg.stop:
                return

    return stream


@partial(jax.jit, static_argnums=(0, 1))
def _choose(cfg: SampleConfig, top: int, keys, logits, t):
    """A token [1], its log-probability [1], and ids and log-probabilities [1, top] of the likeliest."""
    token, logprob = sampling.choose(cfg, keys, logits, t)
    scaled = logits.astype(np.float32) / (cfg.temperature or 1.0)
    values, ids = jax.lax.top_k(
        jax.nn.log_softmax(sampling.truncate(scaled, cfg)), min(top, logits.shape[-1])
    )
    return token, logprob, (ids, values)


def widths(prompt: int, length: int, context: int) -> tuple[int, int]:
    """Compiled columns of a prompt and of a response that fit into the context: powers of two, or what is
    left."""
    power = lambda n: max(LEAST, 1 << (n - 1).bit_length())
    columns = min(power(prompt), context - length)
    return columns, min(power(length), context - columns)


def check_fits(prompt: int, length: int, context: int):
    """Raises TooLong where a prompt and a response of so many tokens exceed the model's positions."""
    if prompt + length > context:
        raise TooLong(
            f"the prompt has {prompt} tokens and the answer may have {length}, and the model has {context} "
            "positions for both: shorten one"
        )


def left_padded(ids: Sequence[int], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """One row of tokens and its attention mask, [1, columns] each."""
    tokens, mask = np.zeros((1, columns), np.int32), np.zeros((1, columns), bool)
    tokens[0, columns - len(ids) :], mask[0, columns - len(ids) :] = ids, True
    return tokens, mask


def written(words, tokens: Iterable[Token], stop: Sequence[str] = ()) -> Iterator[Piece]:
    """The text of the tokens, in pieces; it ends before the first of the `stop` strings.

    Bytes of a character that is not yet whole wait for the next token, and so does what may begin a stop
    string. The last piece alone may be empty.
    """
    ids, whole, given, waiting = [], "", "", []
    for token in tokens:
        waiting.append(token)
        if not token.stops:
            ids.append(token.id)
            whole = words.decode(ids)
        found = [at for at in map(whole.find, stop) if at >= 0]
        if found or token.stops:
            text = whole[: min(found, default=None)]
            yield Piece(text[len(given) :], tuple(waiting), "stop")
            return
        sure = whole[: len(whole) - _unsure(whole, stop)]
        if len(sure) > len(given):
            yield Piece(sure[len(given) :], tuple(waiting), "")
            given, waiting = sure, []
    yield Piece(whole[len(given) :], tuple(waiting), "length")


def _unsure(text: str, stop: Sequence[str]) -> int:
    """Number of characters at the end that another token may change, or that may begin a stop string."""
    sure = text.rstrip(UNKNOWN)
    begun = (n for x in stop for n in range(1, len(x)) if sure.endswith(x[:n]))
    return len(text) - len(sure) + max(begun, default=0)
