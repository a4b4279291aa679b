"""The models that are measured: random weights, Llama's form, float32, as a Hugging Face folder.

Made once; both sides read the same files. Beside each language model lies a classifier of one label, which
is its reward model. The tokenizer is for commands that want one; the works themselves are given tokens, none
of which pads or ends: config.json says so, or transformers would end responses at its own defaults.
"""

import pathlib
import shutil

import jax

from bench.works import Shape
from rlhf_jax.data import tokenizer
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import writing

MARKS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
TEXTS = ["It was a good film, and I would see it again.", "It was a bad film: the end is too long."]


def config(shape: Shape) -> ModelConfig:
    """The settings of the library; tunix takes 1e6 for the rotary base whatever a checkpoint says."""
    return ModelConfig(
        vocab_size=shape.vocab_size,
        context=shape.context,
        layers=shape.layers,
        d_model=shape.d_model,
        heads=shape.heads,
        d_mlp=shape.d_mlp,
        positions="rotary",
        rope_theta=1e6,
        norm="rmsnorm",
        activation="swiglu",
        bias=False,
        tied=shape.tied,
    )


def make(shape: Shape, folder: pathlib.Path):
    """Writes `folder`/policy and `folder`/reward, unless they are there."""
    if (folder / "reward" / "config.json").exists():
        return
    cfg, partial = config(shape), folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    lm, keys = networks.language_model(cfg), {"model_type": "llama"} | MARKS
    params = lm.init(jax.random.key(0))
    writing.save(partial / "policy", cfg, params, config=keys)
    reward = networks.reward_model(lm).init(jax.random.key(1), lm.init(jax.random.key(2)))
    writing.save(partial / "reward", cfg, reward, is_reward=True, config=keys)
    for name in ("policy", "reward"):
        tokenizer.train(TEXTS, shape.vocab_size, partial / name)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
