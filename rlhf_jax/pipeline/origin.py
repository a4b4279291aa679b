"""The policy that training starts from, where the setting `policy` names another than the reference.

Its architecture and tokenizer are compared with the reference's before any work, and its parameters are read
where training begins.
"""

import pathlib
from dataclasses import fields, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.data import tokenizer
from rlhf_jax.devices import dry_run
from rlhf_jax.devices.parallel import Devices
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.hub import huggingface, writing
from rlhf_jax.pipeline import checkpoints, pretrained
from rlhf_jax.runs import run as runs


class Origin(NamedTuple):
    """A policy that training may start from, without its parameters."""

    model: ModelConfig
    tokenizer: Any
    stops: tuple[int, ...]  # tokens that end its responses


def find(cfg) -> Origin:
    """The policy of the setting `policy`. Raises ValueError where that names none."""
    name = f'policy = "{cfg.policy}"'
    if not runs.is_run(cfg.policy):
        folder = huggingface.resolve(cfg.policy)
        _, model, config = huggingface.read_config(folder, **pretrained.kept(cfg))
        if huggingface.classifies(config):
            raise ValueError(f"{name} is a reward model: name a language model")
        words = tokenizer.load(pretrained.with_tokenizer(folder))
        return Origin(model, words, huggingface.stops_of(folder))
    folder = pathlib.Path(cfg.policy)
    of, stage = checkpoints.settings_of(folder), _stage(folder, name)
    words = tokenizer.load(of.tokenizer or folder / "tokenizer", bos=pretrained.begins(of))
    model = of.model
    if not pretrained.named(of):
        model = replace(model, vocab_size=tokenizer.size(words))
    if not checkpoints.is_policy(folder, stage):
        raise ValueError(f"{name} is a run whose stage {stage} trained no policy: name another run")
    return Origin(model, words, (*pretrained.stops(of, words), *of.sample.get("stop", ())))


def _stage(folder: pathlib.Path, name: str) -> str:
    """The finished stage of a run that is its method's own."""
    try:
        stage = checkpoints.own_stage(folder)
    except ValueError:
        raise ValueError(f"{name} is a run that trained no policy: name another run") from None
    if not runs.finished(folder, stage):
        raise ValueError(
            f"{name} is a run whose stage {stage} has not ended: start its command again until it has"
        )
    return stage


def check(cfg, words, is_settled: bool = False):
    """Raises ValueError where `policy` is given and is no policy, has another architecture or tokenizer than
    the model of `cfg`, or has too few positions.

    `words` may be None while the tokenizer is not yet trained, and `is_settled` is False while the
    positions of a model with random weights may still grow.
    """
    if not cfg.policy:
        return
    found = find(cfg)
    if words is not None:
        remedy = "name a policy with the tokenizer of its reference"
        pretrained.check_tokenizer(cfg, "policy", found.tokenizer, words, "reference", remedy)
    decided = pretrained.named(cfg) or is_settled
    free = set() if words is not None or decided else {"vocab_size"}
    if cfg.model.positions != "learned" or not decided:
        free |= {"context"}
    theirs, ours = (writing.explicit(x) for x in (found.model, cfg.model))
    for name in (x.name for x in fields(ModelConfig) if x.name not in free):
        if (own := getattr(theirs, name)) != getattr(ours, name):
            raise ValueError(
                f'policy = "{cfg.policy}" has {name} = {own}, and its reference {getattr(ours, name)}: name '
                "two models of one architecture"
            )
    lengths = cfg.data.prompt_length, cfg.sample.length
    pretrained.check_context(cfg, lengths, found.model.context, "the policy's")


def stops(cfg) -> tuple[int, ...]:
    """Tokens that end the responses of the setting `policy`, without which it would not know how to end."""
    return find(cfg).stops if cfg.policy else ()


def load(cfg, lm: networks.LanguageModel, devices: Devices):
    """Parameters of the setting `policy`, on the host and in the dtypes of `lm`."""
    if dry := dry_run.current():
        return devices.host(dry.loaded(lm.init))
    read = checkpoints.policy(cfg.policy, places=devices.places, **pretrained.kept(cfg))
    like = jax.eval_shape(lm.init, jax.random.key(0))
    cast = lambda x, like: np.asarray(x).astype(like.dtype, copy=False)
    return jax.tree.map(cast, devices.host(read), like)
