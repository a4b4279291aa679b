"""Sampling responses to rows of prompts, and scoring them, on the devices in batches of one size."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from rich.progress import track

from rlhf_jax import sampling
from rlhf_jax.batches import Comparisons, Samples, Sequences
from rlhf_jax.data.batching import padded_batches
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.pipeline import turns
from rlhf_jax.pipeline.texts import Row, plain_row
from rlhf_jax.sampling import SampleConfig
from rlhf_jax.tasks.task import Environment


class Responses(NamedTuple):
    """Responses of a policy, as texts and as arrays on the host."""

    texts: list[str]
    samples: Samples


class Generator(NamedTuple):
    """Functions that sample from one model with any parameters."""

    sample: Callable  # compiled: (params, Prompts, key) -> Samples, of a response or a turn
    play: Callable  # (sample, params, Prompts on the host, [Row], key) -> Samples on the devices
    texts: Callable  # (Samples on the host) -> [response]
    generate: Callable  # (params, [Row], key) -> Responses


def make_generator(
    cfg: SampleConfig,
    devices: Devices,
    lm,
    words,
    prompt_length: int,
    batch_size: int,
    environment: Environment | None = None,
) -> Generator:
    """The generator of `lm`. Row n samples with index n, so equal prompts get different responses.

    With an `environment`, a response is an episode of several turns.
    """
    columns = Turns(*environment.columns(cfg.length)) if environment else Turns(cfg.length, 0)
    of_turn = replace(cfg, length=columns.turn)
    sample = devices.compile(sampling.make_sample(lm, of_turn), (P(), P(DATA), P()), P(DATA))
    if environment:
        converse = turns.make_play(cfg, devices, words, environment, columns)

    def play(sample, params, prompts, rows: Sequence[Row], key):
        if environment:
            return converse(sample, params, prompts, [plain_row(row) for row in rows], key)
        return sample(params, devices.put_batch(prompts), key)

    def texts(samples):
        if environment:
            return turns.transcripts(samples, words, columns, cfg.stop)
        said = zip(samples.tokens[:, -cfg.length :], samples.mask, strict=True)
        ids = [[t for t in row[mask] if t not in cfg.stop] for row, mask in said]
        return [text.strip() for text in words.batch_decode(ids)]

    def generate(params, rows: Sequence[Row], key):
        params = devices.share(params)
        encoded = encode_prompts(words, [row.prompt for row in rows], prompt_length)
        parts = []
        batches = padded_batches(encoded, batch_size)
        total = -(-len(rows) // batch_size)
        for batch, real in track(batches, "responses", total=total, transient=True):
            asked = [rows[i] for i in batch.index]
            samples = devices.fetch(play(sample, params, batch, asked, key))
            parts.append(jax.tree.map(lambda x, real=real: x[real], samples))
        samples = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Responses(texts(samples), samples)

    return Generator(sample, play, texts, generate)


def rows_of(devices: Devices, n: int, most: int = 256) -> int:
    """Rows per batch of an evaluation of `n` rows: `n` or `most`, rounded up to a multiple of the devices."""
    return -(-min(n, most) // devices.count) * devices.count


@functools.cache
def compiled(compile: Callable, fn: Callable) -> Callable:
    """`fn(params, tokens, attention_mask)` on records with rows, compiled once per function."""
    score = lambda params, x: fn(params, x.tokens, x.attention_mask)
    score.__name__ = "score"
    return compile(score, (P(), P(DATA)), P(DATA))


def make_score(devices: Devices, fn, params) -> Callable:
    """`score(records)`: `fn(params, tokens, attention_mask)` of records with rows, all on the devices."""
    return functools.partial(compiled(devices.compile, fn), devices.share(params))


def score(devices: Devices, fn, params, sequences: Sequences | Samples) -> np.ndarray:
    """`fn(params, tokens, attention_mask)`, such as a reward, of every row [N, ...]."""
    return by_batches(devices, make_score(devices, fn, params), sequences)


def by_batches(devices: Devices, run: Callable, records, rows: int = 0, bar: str = ""):
    """Results of `run(batch on the devices)` for all rows of a tree of arrays, as NumPy arrays.

    Batches have `rows` rows (0: as `rows_of`); a progress bar named `bar` shows them.
    """
    n, parts = len(jax.tree.leaves(records)[0]), []
    rows = rows or rows_of(devices, n)
    batches, total = padded_batches(records, rows), -(-n // rows)
    for batch, real in track(batches, bar, total=total, transient=True, disable=not bar):
        got = devices.fetch(run(devices.put_batch(batch)))
        parts.append(jax.tree.map(lambda x, real=real: x[real], got))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def by_rows(devices: Devices, fn: Callable, rows: int) -> Callable:
    """`measure(params, records, bar="")`: `fn(params, records)`, compiled, for all records, by batches of
    `rows` rows."""
    compiled = devices.compile(fn, (P(), P(DATA)), P(DATA))

    def measure(params, records, bar: str = ""):
        of_params = functools.partial(compiled, devices.share(params))
        return by_batches(devices, of_params, records, rows, bar)

    return measure


def both_scores(devices: Devices, fn, params, comparisons: Comparisons) -> np.ndarray:
    """Rewards of both sides of every pair [N, 2], chosen first."""
    return np.stack([score(devices, fn, params, side) for side in comparisons.sides], axis=1)
