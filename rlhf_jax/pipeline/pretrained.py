"""Pretrained models: the settings that they decide, and checks that tokenizer, reward model and lengths
fit."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import jax

from rlhf_jax.bounds import Settings
from rlhf_jax.data import dialogues, tokenizer
from rlhf_jax.devices import dry_run
from rlhf_jax.models import lora, networks
from rlhf_jax.models.config import COMPUTED, ModelConfig
from rlhf_jax.models.hub import huggingface
from rlhf_jax.models.lora import LoraConfig


@dataclass(frozen=True)
class Config(Settings):
    """The pretrained model, tokenizer and adapters of a run."""

    _main = ("pretrained", "reference", "policy")

    pretrained: str = ""
    """Folder or hub name (NAME@REVISION) of a Hugging Face decoder that SFT starts from, tokenizer
    included. Empty: random weights, shaped by `model`."""
    reference: str = ""
    """Folder or hub name of the SFT policy; SFT is skipped."""
    policy: str = ""
    """Folder, hub name or finished run of a policy to start from; the SFT policy stays the reference."""
    tokenizer: str = ""
    """Folder or hub name of a transformers tokenizer; empty: the pretrained model's, or one trained on the
    corpus."""
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"
    """BOS before prompts. With tokenizer, as tokenizer(text) in transformers: Llama's and one trained here
    add BOS, GPT-2's and Pythia's do not. Dialogues follow their chat template."""
    lora: LoraConfig = LoraConfig()
    """Adapters of every model trained from existing weights; SFT has none where it starts from random
    weights."""

    def _conditions(self, at: str):
        named(self)  # which refuses two

    def _unread(self) -> dict[str, str]:
        """The model and tokenizer settings that a pretrained model decides."""
        missing = {}
        if self.tokenizer or named(self):
            missing["data.vocab_size"] = "no tokenizer is trained"
        if named(self):
            shape = (f"model.{x.name}" for x in fields(ModelConfig) if x.name not in COMPUTED)
            missing |= dict.fromkeys(shape, f'"{named(self)}" decides it')
        return missing


def kept(cfg) -> dict:
    """The model settings that no config.json decides."""
    return {x: getattr(cfg.model, x) for x in COMPUTED}


def named(cfg) -> str:
    """Folder or hub name of the policy's initial model; empty for random weights.

    Raises ValueError where two are given.
    """
    if cfg.reference and cfg.pretrained:
        raise ValueError(
            f'reference = "{cfg.reference}" and pretrained = "{cfg.pretrained}" are both given: name a '
            "reference to skip SFT, or a model to start it from"
        )
    return cfg.reference or cfg.pretrained


def decided(cfg) -> dict:
    """The settings that a pretrained model decides: its architecture, and the tokenizer unless one is set.

    Raises ValueError where the model is a reward model, or the tokenizer does not fit it.
    """
    folder = huggingface.resolve(named(cfg))
    _, model, config = huggingface.read_config(folder, **kept(cfg))
    if huggingface.classifies(config):
        raise ValueError(f'"{named(cfg)}" is a reward model, not a policy: give it as reward_model')
    words = cfg.tokenizer or str(with_tokenizer(folder))
    check_vocabulary(words, tokenizer.load(words), named(cfg), model)
    return {"model": model, "tokenizer": words}


def with_tokenizer(folder):
    """Folder of a model's tokenizer; an adapter without one uses that of the model it adapts."""
    places = huggingface.chain(folder)
    return next((x for x in places if (x / "tokenizer_config.json").exists()), places[-1])


def start(cfg, places: Callable | None = None):
    """Parameters of the pretrained model, read into the shardings of `places`; None without a pretrained
    model."""
    if not named(cfg):
        return None
    if dry := dry_run.current():
        return dry.loaded(networks.language_model(cfg.model).init)
    return huggingface.load(named(cfg), places=places, **kept(cfg)).params


def begins(cfg) -> bool | None:
    """True or False for prompts with or without BOS; None leaves it to the tokenizer."""
    own = None if cfg.tokenizer else True
    return {"always": True, "never": False}.get(cfg.bos, own)


def stops(cfg, words) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's EOS, then all others of the pretrained model, in order.

    They include the token with which the chat template ends an answer.
    """
    own = huggingface.stops_of(huggingface.resolve(named(cfg))) if named(cfg) else ()
    return tuple(dict.fromkeys([words.eos_token_id, *sorted({*own, *dialogues.ends(words)})]))


def positions(cfg, least: int) -> int:
    """Positions shared by all models of a run; a model with random weights grows to `least`."""
    own = cfg.model.context if named(cfg) else max(cfg.model.context, least)
    if not getattr(cfg, "reward_model", ""):
        return own
    return min(own, huggingface.read_config(huggingface.resolve(cfg.reward_model))[1].context)


def check_context(cfg, lengths: tuple[int, int], limit: int | None = None, whose="the model's"):
    """Raises ValueError where prompt and response, of `lengths`, exceed the model's positions."""
    limit = limit or cfg.model.context
    if sum(lengths) > limit:
        response = "sample.length" if hasattr(cfg, "sample") else "data.length"
        raise ValueError(
            f"data.prompt_length = {lengths[0]} and {response} = {lengths[1]} do not fit {whose} "
            f"{limit} positions: shorten one" + ("" if named(cfg) else ", or raise model.context")
        )


def check_vocabulary(name: str, words, model_name: str, model: ModelConfig):
    """Raises ValueError for a tokenizer that does not belong to the model.

    The signs are a token, other than padding, that the model cannot embed, or fewer than half of the tokens
    that it can.
    """
    ids = {id for token, id in words.get_vocab().items() if token != words.pad_token}
    if max(ids) >= model.vocab_size:
        raise ValueError(
            f'tokenizer "{name}" has token {max(ids)}, and the embedding of "{model_name}" ends at '
            f"{model.vocab_size - 1}: give the model's own tokenizer"
        )
    if len(ids) < model.vocab_size / 2:
        raise ValueError(
            f'tokenizer "{name}" has {len(ids)} tokens, and "{model_name}" embeds {model.vocab_size}: '
            "give the model's own tokenizer"
        )


def check_tokenizer(cfg, setting: str, theirs, words, whose: str, remedy: str):
    """Raises ValueError where the tokenizer of the model that `setting` names has other tokens than `words`,
    those of `whose` model, or another rule of BOS."""
    name = f'{setting} = "{getattr(cfg, setting)}"'
    vocabulary = lambda words: {k: v for k, v in words.get_vocab().items() if k != words.pad_token}
    if vocabulary(theirs) != vocabulary(words):
        raise ValueError(f"{name} has another tokenizer than the {whose}: {remedy}")
    starts = [bool(tokenizer.start_ids(x)) for x in (theirs, words)]
    if cfg.bos == "tokenizer" and starts[0] != starts[1]:
        raise ValueError(
            f"the tokenizer of {name} begins texts with{'' if starts[0] else 'out'} BOS, unlike the "
            f"{whose}'s: set bos to always or never"
        )


def fitted(cfg, words) -> tuple:
    """(settings, language model), with one embedding row per tokenizer id where the weights are random."""
    if not named(cfg):
        cfg = replace(cfg, model=replace(cfg.model, vocab_size=tokenizer.size(words)))
    return cfg, networks.language_model(cfg.model)


def check_adapters(cfg):
    """Raises ValueError where the model lacks a matrix to adapt."""
    if not cfg.lora.rank:
        return
    init = networks.language_model(cfg.model).init
    jax.eval_shape(lambda key: lora.split(key, init(key), cfg.lora), jax.random.key(0))


def scorer(cfg, words, lengths: tuple[int, int]) -> Callable:
    """`load(places)` of the reward model `cfg.reward_model`, which returns its function and its parameters
    in `places`.

    Raises ValueError, before anything is loaded, where the model is no reward model, has too few positions,
    or has another tokenizer than `words`, which may be None while it is not yet trained.
    """
    folder = huggingface.resolve(cfg.reward_model)
    _, model, config = huggingface.read_config(folder, **kept(cfg))
    if not huggingface.classifies(config):
        raise ValueError(
            f'reward_model = "{cfg.reward_model}" has architectures = {config.get("architectures")} '
            "in its config.json: name a model for sequence classification with one label"
        )
    check_context(cfg, lengths, model.context, "the reward model's")
    theirs = tokenizer.load(with_tokenizer(folder))
    if words:
        remedy = "call it from a Python function, which scores texts, and name that function as rl.reward"
        check_tokenizer(cfg, "reward_model", theirs, words, "policy", remedy)
        check_vocabulary(cfg.tokenizer, words, cfg.reward_model, model)
    lm = networks.language_model(model)
    network = networks.reward_model(lm)
    if dry := dry_run.current():
        return lambda places: (network.fn, dry.loaded(lambda key: network.init(key, lm.init(key))))
    return lambda places: (
        network.fn,
        huggingface.load(cfg.reward_model, places=places, **kept(cfg)).params,
    )
