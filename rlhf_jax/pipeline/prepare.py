"""Start of every run: settings are checked, texts are read, and the run gets its directory."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from rlhf_jax.data import dialogues
from rlhf_jax.data.transcripts import Turns
from rlhf_jax.devices import dry_run, hosts, parallel
from rlhf_jax.devices.parallel import Devices
from rlhf_jax.models import networks
from rlhf_jax.pipeline import (
    generation,
    inputs,
    lengths,
    lessons,
    long_texts,
    origin,
    plan,
    pretrained,
    reading,
    reuse,
    scoring,
    settings,
    stages,
    texts,
)
from rlhf_jax.rewards.scorer import Scorer
from rlhf_jax.runs import conclusion, profiling, tracker
from rlhf_jax.runs import run as runs


class Prepared(NamedTuple):
    """A run with its directory, and everything its stages share except parameters."""

    name: str  # name of the experiment
    cfg: Any  # settings of the experiment, resolved
    folder: pathlib.Path
    devices: Devices
    texts: texts.Texts
    tokenizer: Any
    lm: networks.LanguageModel
    generator: generation.Generator
    scorer: Scorer | None  # the Python reward
    load_reward: Callable | None  # load_reward(places) -> function and parameters of `reward_model`
    load_policy: Callable | None = None  # load_policy() -> parameters of `policy`, read once

    @property
    def lengths(self) -> tuple[int, int, Turns | None]:
        """Columns of a prompt and of a response, and of its turns where it is a transcript."""
        length, environment = self.cfg.sample.length, self.texts.environment
        turns = Turns(*environment.columns(length)) if environment else None
        return self.cfg.data.prompt_length, length, turns

    def start(self, reference):
        """Parameters that a policy starts from: those of the setting `policy`, or the reference's."""
        return self.load_policy() if self.load_policy else reference


def prepare(name: str, cfg: Any, batch_sizes: dict[str, int]) -> Prepared | None:
    """The run of experiment `name`; for a finished run, its results are shown and None is returned.

    `batch_sizes` are the method's own batch sizes, which must divide over the devices. Every refusal that
    is possible comes before the run directory exists. The settings in effect are recorded in config.json,
    under "used".
    """
    cfg = settings.resolve(cfg)
    sizes = stages.parts("sft", cfg.sft) | stages.parts("reward", cfg.reward)
    devices = plan.layout(parallel.choose(cfg.devices, sizes | batch_sizes, cfg.model.cuts))
    chat, task = dialogues.template(cfg.tokenizer), settings.task_of(cfg)
    read = reading.read(cfg.data, task, cfg.seed, chat, cfg.needs())
    lessons.check(cfg, read.pairs)
    scorer = scoring.python_reward(cfg, read)
    folder = opened(name, cfg)
    if folder is None:
        return None
    begins = pretrained.begins(cfg)
    words = stages.read_tokenizer(folder, cfg.tokenizer, read.said, cfg.data.vocab_size, begins)
    if task is None:
        cfg = lengths.settled(cfg, folder, words, lambda: long_texts.of_files(read))
        if cfg.data.long == "bad":
            read = long_texts.without(cfg, words, read)
    cfg, lm = pretrained.fitted(settings.with_tokens(cfg, words), words)
    origin.check(cfg, words, is_settled=True)
    columns = cfg.data.prompt_length, cfg.sample.length
    runs.record(folder, "used", cfg)
    if cfg.wandb and not dry_run.current():
        tracker.start(folder)
    if cfg.profile:
        profiling.ask(folder, cfg.profile)
    run = Prepared(
        name=name,
        cfg=cfg,
        folder=folder,
        devices=devices,
        texts=read,
        tokenizer=words,
        lm=lm,
        generator=generation.make_generator(
            cfg.sample, devices, lm, words, columns[0], cfg.sft.batch_size * 4, read.environment
        ),
        scorer=scorer,
        load_reward=pretrained.scorer(cfg, words, columns) if cfg.reward_model else None,
        load_policy=functools.cache(lambda: origin.load(cfg, lm, devices)) if cfg.policy else None,
    )
    return plan.begun(run)


def opened(name: str, cfg: Any) -> pathlib.Path | None:
    """The run directory, with stages copied from `start_from`; None for a finished run."""
    start = pathlib.Path(cfg.start_from) if cfg.start_from else None
    if start:
        reuse.check(start, cfg, settings.RunConfig())
    if dry_run.current():
        return plan.opened(name, cfg, start)
    folder = runs.open_run(name, cfg, cfg.run, content=lambda: inputs.content(cfg))
    if conclusion.is_finished(folder, conclusion.again(name)):
        return None
    if start:
        hosts.once(lambda: False, lambda: reuse.copy(start, folder, cfg))
    return folder
