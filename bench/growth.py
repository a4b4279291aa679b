"""How speed, memory and compile time grow with rows, length and depth.

    python -m bench growth                       about three minutes on a core; --help names the shapes

A training step (SFT, on whole rows) and generation (prompts of 32 tokens), of a model of width `--d-model`.
Each line changes one measure of the middle shape. `needs` is what XLA says that the compiled program takes
beside its arguments; compile time is without a cache.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
import rich
from rich.table import Table

from bench.models import config
from bench.works import Shape
from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import sft
from rlhf_jax.batches import Prompts, Sequences
from rlhf_jax.bounds import Count, Settings
from rlhf_jax.devices import memory
from rlhf_jax.models import networks

VOCAB, PROMPT = 2048, 32


@dataclass(frozen=True)
class Config(Settings):
    """What is varied, and round which middle."""

    rows: tuple[Count, ...] = (2, 8, 32)
    length: tuple[Count, ...] = (64, 256, 1024)
    """Tokens of a row, or of a response."""
    depth: tuple[Count, ...] = (2, 8, 32)
    """Layers."""
    d_model: Count = 128
    scan_decode: bool = False
    """Decode through a scan over layers."""
    repeats: Count = 3
    """Runs of each, of which the fastest is told."""


@dataclass(frozen=True)
class Told:
    """One program."""

    compiled: float
    seconds: float
    needs: int


def measured(fn: Callable, args: tuple, repeats: int) -> Told:
    """Of a compiled function that changes nothing it is given."""
    began = time.perf_counter()
    program = fn.lower(*args).compile()
    compiled, took = time.perf_counter() - began, []
    for _ in range(repeats + 1):  # the first is not told
        began = time.perf_counter()
        jax.block_until_ready(program(*args))
        took.append(time.perf_counter() - began)
    return Told(compiled, min(took[1:]), memory.more(fn, *args))


def language_model(cfg: Config, depth: int, context: int):
    """Of the width that is asked for, and random parameters."""
    shape = Shape(depth, cfg.d_model, cfg.d_model // 32, 4 * cfg.d_model, VOCAB, context=context)
    lm = networks.language_model(replace(config(shape), scan_decode=cfg.scan_decode))
    return lm, jax.jit(lm.init)(jax.random.key(0))


def training(cfg: Config, rows: int, length: int, depth: int) -> Told:
    """A step on rows that are learned whole."""
    lm, params = language_model(cfg, depth, length)
    tx = optimizer.make(optimizer.OptimizerConfig(), 100)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (rows, length), np.int32)
    whole = np.ones(tokens.shape, bool)
    state = train_step.init_state(params, tx)
    args = state, {}, Sequences(tokens, whole, whole[:, 1:])
    return measured(jax.jit(sft.make_train_step(lm.policy_fn, tx)), args, cfg.repeats)


def generation(cfg: Config, rows: int, length: int, depth: int) -> Told:
    """Responses of full length."""
    lm, params = language_model(cfg, depth, PROMPT + length)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (rows, PROMPT), np.int32)
    index = np.arange(rows, dtype=np.int32)
    prompts = Prompts(tokens, np.ones(tokens.shape, bool), index, index)
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=length)))
    return measured(sample, (params, prompts, jax.random.key(0)), cfg.repeats)


def main(cfg: Config):
    """Prints the tables."""
    jax.config.update("jax_enable_compilation_cache", False)
    middle = {name: getattr(cfg, name)[len(getattr(cfg, name)) // 2] for name in MEASURES}
    title = f"{jax.devices()[0].device_kind}, width {cfg.d_model}, {time.strftime('%Y-%m-%d')}"
    for what, run in (("training", training), ("generation", generation)):
        table = Table(*MEASURES, "tokens/s", "needs MB", "compile s", title=f"{what}: {title}")
        shapes = [middle | {name: n} for name in MEASURES for n in getattr(cfg, name)]
        for shape in {tuple(x.values()): x for x in shapes}.values():
            told = run(cfg, **shape)
            rate = shape["rows"] * shape["length"] / told.seconds
            numbers = f"{rate:.0f}", f"{told.needs / 1e6:.1f}", f"{told.compiled:.1f}"
            table.add_row(*map(str, shape.values()), *numbers)
        rich.print(table)


MEASURES = [x.name for x in dataclasses.fields(Config) if x.name in ("rows", "length", "depth")]
