"""Sampling responses to texts, and scoring rows, on the devices in batches of one size."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from rich.progress import track

from rlhf_jax import sampling
from rlhf_jax.batches import Comparisons, Samples, Sequences
from rlhf_jax.data.batching import padded_batches
from rlhf_jax.data.prompts import encode_prompts
from rlhf_jax.devices.parallel import DATA, Devices
from rlhf_jax.sampling import SampleConfig


class Responses(NamedTuple):
    """Responses of a policy, as texts and as arrays on the host."""

    texts: list[str]
    samples: Samples


class Generator(NamedTuple):
    """Functions that sample from one model with any parameters."""

    sample: Callable  # (params, Prompts on the devices, key) -> Samples on the devices
    texts: Callable  # (Samples on the host) -> [response]
    generate: Callable  # (params, [prompt], key) -> Responses


def make_generator(cfg: SampleConfig, devices: Devices, lm, words, prompt_length, batch_size):
    """The generator of `lm`. Row n samples with index n, so equal prompts get different responses."""
    sample = devices.compile(sampling.make_sample(lm, cfg), (P(), P(DATA), P()), P(DATA))

    def texts(samples):
        said = zip(samples.tokens[:, -cfg.length :], samples.mask, strict=True)
        ids = [[t for t in row[mask] if t not in cfg.stop] for row, mask in said]
        return [text.strip() for text in words.batch_decode(ids)]

    def generate(params, prompts, key):
        params = devices.share(params)
        encoded = encode_prompts(words, prompts, prompt_length)
        parts = []
        batches = padded_batches(encoded, batch_size)
        total = -(-len(prompts) // batch_size)
        for batch, real in track(batches, "responses", total=total, transient=True):
            samples = devices.fetch(sample(params, devices.put_batch(batch), key))
            parts.append(jax.tree.map(lambda x, real=real: x[real], samples))
        samples = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        return Responses(texts(samples), samples)

    return Generator(sample, texts, generate)


def rows_of(devices: Devices, n: int, most: int = 256) -> int:
    """Rows per batch of an evaluation of `n` rows: `n` or `most`, rounded up to a multiple of the devices."""
    return -(-min(n, most) // devices.count) * devices.count


@functools.cache
def compiled(compile: Callable, fn: Callable) -> Callable:
    """`fn(params, tokens, attention_mask)` on records with rows, compiled once per function."""
    of_record = lambda params, x: fn(params, x.tokens, x.attention_mask)
    return compile(of_record, (P(), P(DATA)), P(DATA))


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


def both_scores(devices: Devices, fn, params, comparisons: Comparisons) -> np.ndarray:
    """Rewards of both sides of every pair [N, 2], chosen first."""
    return np.stack([score(devices, fn, params, side) for side in comparisons.sides], axis=1)
