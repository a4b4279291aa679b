"""A GPU or TPU: how near a training step comes to its matrix products, and decoding to its memory.

    python -m bench accelerator --attention cudnn        Qwen2.5's shape of 0.5B parameters, in bfloat16
    python -m bench accelerator --attention cudnn --model 1.5B --rows 8 --peer .bench/transformers
    XLA_FLAGS=--xla_gpu_enable_command_buffer=+WHILE python -m bench accelerator --only decoding

In one run: the rate of a product of square matrices, the rate at which an array is copied (read and
written), an SFT step on rows of `--length` tokens, decoding of `--batch` rows, and a PPO iteration of as
many, with four models of the shape. Work is counted as in `bench/works.py`: what cannot be left out, so that
what is computed twice (remat) counts once. A token of decoding reads every weight and the whole cache once.
With `--peer`, torch and transformers do the same before us (`bench/sides/torch_accelerator.py`).
"""

import json
import pathlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich
from rich.table import Table

from rlhf_jax import optimizer, sampling, train_step
from rlhf_jax.algorithms import ppo, rollout, sft
from rlhf_jax.batches import Prompts, Sequences
from rlhf_jax.bounds import Count, Settings
from rlhf_jax.devices import memory
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig

QWEN = ModelConfig(
    vocab_size=151_936, layers=24, d_model=896, heads=14, kv_heads=2, d_mlp=4864,
    positions="rotary", rope_theta=1e6, norm="rmsnorm", activation="swiglu", bias=False, qkv_bias=True,
    tied=True, dtype="bfloat16", remat=True,
)  # fmt: skip
MODELS = {
    "trial": replace(QWEN, vocab_size=512, layers=2, d_model=64, heads=2, d_mlp=128),
    "0.5B": QWEN,
    "1.5B": replace(QWEN, layers=28, d_model=1536, heads=12, d_mlp=8960),
}
WORKS = ("training", "decoding", "ppo")


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the measurement."""

    model: str = "0.5B"
    """0.5B, 1.5B, or trial, which any machine can run."""
    attention: Literal["xla", "cudnn"] = "xla"
    """What attends in the training step; cudnn wants an NVIDIA GPU."""
    rows: Count = 8
    """Rows of a training step, of"""
    length: Count = 2048
    """tokens each."""
    batch: Count = 64
    """Rows that are decoded at once, after prompts of"""
    prompt: Count = 512
    """tokens, for"""
    response: Count = 256
    """tokens."""
    square: Count = 8192
    """Width of the matrices, and root of the array, whose rates are measured."""
    repeats: Count = 5
    """Runs of each, of which the median is told."""
    only: tuple[str, ...] = WORKS
    """Some of training, decoding, ppo."""
    peer: str = ""
    """Folder of an environment made with bench/requirements-transformers.txt; empty: ours alone."""

    def _conditions(self, at: str):
        for name, given, known in (("model", (self.model,), MODELS), ("only", self.only, WORKS)):
            for x in given:
                if x not in known:
                    raise ValueError(f"{name} = {x!r}: use {', '.join(known)}")


def seconds(fn: Callable, args: tuple, repeats: int) -> float:
    """Of one call, when it is warm."""
    return in_turn(lambda _: fn(*args), None, repeats)


def in_turn(fn: Callable, state, repeats: int) -> float:
    """Of one call of `state = fn(state)`, when it is warm: the median."""
    took = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        state = jax.block_until_ready(fn(state))
        took.append(time.perf_counter() - began)
    return float(np.median(took[2:]))


def prompts_of(cfg: Config, model: ModelConfig) -> Prompts:
    """Random ones, without padding."""
    shape, index = (cfg.batch, cfg.prompt), np.arange(cfg.batch, dtype=np.int32)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape, np.int32)
    return jax.device_put(Prompts(tokens, np.ones(shape, bool), index, index))


def matrix_rate(cfg: Config) -> float:
    """Operations a second of a product in bfloat16."""
    x = jnp.ones((cfg.square, cfg.square), jnp.bfloat16)
    return 2 * cfg.square**3 / seconds(jax.jit(jnp.dot), (x, x), cfg.repeats)


def copy_rate(cfg: Config) -> float:
    """Bytes a second, read and written."""
    x = jnp.ones((4 * cfg.square, cfg.square), jnp.bfloat16)
    return 2 * x.nbytes / seconds(jax.jit(lambda x: -x), (x,), cfg.repeats)


def weights(model: ModelConfig) -> int:
    """Of the matrices that a token passes, the unembedding among them."""
    width = model.head_dim or model.d_model // model.heads
    attention = 2 * model.d_model * width * (model.heads + (model.kv_heads or model.heads))
    block = attention + 3 * model.d_model * model.d_mlp
    return model.layers * block + model.vocab_size * model.d_model


def training(cfg: Config, model: ModelConfig) -> tuple[float, float, int]:
    """(seconds of a step, its operations, bytes that it needs beside its state)."""
    lm = networks.language_model(model)
    tx = optimizer.make(optimizer.OptimizerConfig(), 100)
    begin = lambda key: train_step.init_state(lm.init(key), tx)
    state = jax.jit(begin)(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(
        0, model.vocab_size, (cfg.rows, cfg.length), np.int32
    )
    batch = jax.device_put(Sequences(tokens, tokens >= 0, tokens[:, 1:] >= 0))
    step = jax.jit(sft.make_train_step(lm.policy_fn, tx), donate_argnums=0)
    needs = memory.more(step, state, {}, batch)
    took = in_turn(lambda state: step(state, {}, batch)[0], state, cfg.repeats)
    count = cfg.rows * cfg.length
    seen = 4 * model.layers * model.d_model * count * (cfg.length + 1) / 2
    return took, 3 * (2 * weights(model) * count + seen), needs


def decoding(cfg: Config, model: ModelConfig) -> tuple[float, float]:
    """(seconds of a token of all rows, bytes that it reads)."""
    lm = networks.language_model(replace(model, remat=False))
    cast = lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), lm.init(key))
    params, prompts = jax.jit(cast)(jax.random.key(0)), prompts_of(cfg, model)
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=cfg.response)))
    prefill = jax.jit(lambda p, x: lm.prefill_fn(p, x.tokens, x.attention_mask, cfg.response))
    whole = seconds(sample, (params, prompts, jax.random.key(0)), cfg.repeats)
    token = (whole - seconds(prefill, (params, prompts), cfg.repeats)) / cfg.response
    width = model.head_dim or model.d_model // model.heads
    columns = cfg.prompt + cfg.response
    cache = 2 * model.layers * cfg.batch * (model.kv_heads or model.heads) * width * columns
    return token, 2.0 * (weights(model) + cache)


def ppo_iteration(cfg: Config, model: ModelConfig) -> float:
    """Seconds of sampling, a pass of policy, reference, reward model and critic, and four epochs."""
    lm = networks.language_model(model)
    critic, judge = networks.actor_critic(lm), networks.reward_model(lm)
    tx = optimizer.make(optimizer.OptimizerConfig(lr=1e-5, schedule="constant"), 1)
    reference = jax.jit(lm.init)(jax.random.key(0))
    judge_params = jax.tree.map(jnp.copy, judge.init(jax.random.key(1), reference))
    start = jax.tree.map(jnp.copy, critic.init(reference, judge_params))
    state = train_step.init_state(start, tx)
    sample = jax.jit(sampling.make_sample(lm, sampling.SampleConfig(length=cfg.response)))
    as_learned = rollout.RolloutConfig(missing_eos_penalty=0.0, recompute_logprobs=True)
    annotate = jax.jit(rollout.make_annotate_with_values(lm.policy_fn, critic.fn, as_learned))
    score = jax.jit(lambda params, x: judge.fn(params, x.tokens, x.attention_mask))
    own = ppo.PPOConfig(microbatches=max(1, cfg.batch // cfg.rows))
    update = jax.jit(ppo.make_update(critic.fn, tx, own), donate_argnums=0)
    prompts = prompts_of(cfg, model)

    def iteration(state):
        key = jax.random.fold_in(jax.random.key(0), state.step)
        samples = sample(state.params["policy"], prompts, key)
        seen, scores = annotate(state.params, reference, samples), score(judge_params, samples)
        batch = rollout.with_rewards(seen, scores, as_learned)
        return update(state, {}, jnp.float32(0.04), batch, key)[0]

    return in_turn(iteration, state, cfg.repeats)


def of_peer(cfg: Config, model: ModelConfig) -> dict[str, float]:
    """Seconds of what the peer did, which has the accelerator to itself.

    Raises ValueError, with the command that makes it, where its environment is missing.
    """
    python = pathlib.Path(cfg.peer).absolute() / "bin" / "python"
    if not python.exists():
        raise ValueError(
            f"peer = {cfg.peer!r} has no bin/python: python -m venv {cfg.peer} && "
            f"{cfg.peer}/bin/pip install -r bench/requirements-transformers.txt"
        )
    shape = dict(
        vocab_size=model.vocab_size, hidden_size=model.d_model, num_hidden_layers=model.layers,
        num_attention_heads=model.heads, num_key_value_heads=model.kv_heads,
        intermediate_size=model.d_mlp, max_position_embeddings=model.context,
        tie_word_embeddings=model.tied,
    )  # fmt: skip
    names = ("rows", "length", "batch", "prompt", "response", "repeats", "only")
    asked = {"shape": shape, "remat": model.remat} | {name: getattr(cfg, name) for name in names}
    command = [str(python), "-m", "bench.sides.torch_accelerator", json.dumps(asked)]
    root = pathlib.Path(__file__).resolve().parent.parent
    said = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def main(cfg: Config):
    """Prints the table; the peer comes first, before JAX takes the accelerator's memory."""
    context = max(cfg.length, cfg.prompt + cfg.response)
    model = replace(MODELS[cfg.model], context=context, attention=cfg.attention)
    peer = of_peer(cfg, model) if cfg.peer else {}
    beside = lambda name, took: f"{peer[name] / took:.2f}" if name in peer else ""
    kind, products, copies = jax.devices()[0].device_kind, matrix_rate(cfg), copy_rate(cfg)
    title = f"{cfg.model}, bfloat16, {kind}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"
    table = Table(
        "work", "measured", "of the rate", "target", "times the peer's speed", title=title
    )
    table.add_row("matrix product", f"{products / 1e12:.4g} TFLOP/s")
    table.add_row("copy", f"{copies / 1e12:.4g} TB/s")
    if "training" in cfg.only:
        took, work, needs = training(cfg, model)
        said = f"{took * 1000:.4g} ms, {cfg.rows * cfg.length / took:.0f} tokens/s, {needs / 1e9:.2f} GB"
        rate = f"{work / took / products:.0%}"
        table.add_row("training step", said, rate, "50%", beside("training", took))
    if "decoding" in cfg.only:
        took, read = decoding(cfg, model)
        said = f"{took * 1000:.4g} ms, {cfg.batch / took:.0f} tokens/s"
        table.add_row(
            "decoding", said, f"{read / took / copies:.0%}", "70%", beside("decoding", took)
        )
    if "ppo" in cfg.only:
        took = ppo_iteration(cfg, model)
        table.add_row("PPO iteration", f"{took:.3g} s", "", "", beside("ppo", took))
    rich.print(table)
