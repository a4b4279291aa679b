"""Settings shared by all methods, and `resolve`, which refuses those that cannot work."""

from dataclasses import dataclass, fields, replace
from typing import Any

from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.bounds import Count, Seed, Whole
from rlhf_jax.data import tokenizer
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.pipeline import lengths, origin, pretrained, stages, texts
from rlhf_jax.rewards import features
from rlhf_jax.runs import tracker
from rlhf_jax.sampling import SampleConfig, check_on_policy
from rlhf_jax.tasks.task import Task

TASK = "reviews"
"""The task used where `task` is empty."""
OF_WORLD = ("data.demonstrations", "data.pairs", "annotators")
"""The settings that only a generated task reads."""
OF_FILES = (
    *("data.prompt_words", "data.fields", "data.bad", "data.long", "data.turns"),
    *(f"data.{name}_fields" for name in ("corpus", "ratings", "prompts")),
)
"""The settings that only data files need."""


@dataclass(frozen=True)
class RunConfig(pretrained.Config):
    """Settings of a run and of the stages that methods share."""

    _main = ("seed", "run", "start_from", "devices", "task", "reward_model", "eval_draws")
    _incidental = ("run", "start_from", "devices", "wandb", "profile")

    seed: Seed = 0
    """Seed of every random draw."""
    run: str = ""
    """Run directory; empty: runs/EXPERIMENT/HASH-OF-CONFIG."""
    start_from: str = ""
    """Run directory of any method; its SFT policy and reward models are copied instead of trained. Refused
    where the settings of these stages differ."""
    devices: str = "auto"
    """Device layout: auto, device (the first one), pmap, or a mesh such as mesh:data=-1,fsdp=2,tensor=2
    (-1: all remaining devices)."""
    wandb: bool = False
    """Log to Weights & Biases in addition to the run directory; WANDB_PROJECT names the project."""
    profile: Whole = 0
    """Iterations of each stage, after the first two, of which a trace is written, which
    https://ui.perfetto.dev draws; 0: no trace."""
    task: str = ""
    """Task that generates the data, by name (reviews) or as a FILE.py that defines TASK; empty: reviews.
    Refused together with data files, to which the task that an experiment sets itself gives way."""
    reward_model: str = ""
    """Folder or hub name of a one-label sequence classifier with the policy's tokenizer, maximised instead
    of a reward model trained here. Comparisons then train only the held-out reward model."""
    data: texts.DataConfig = texts.DataConfig()
    annotators: AnnotatorConfig = AnnotatorConfig()
    model: ModelConfig = ModelConfig(d_model=64, context=64, positions="rotary")
    sft: stages.SFTConfig = stages.SFTConfig()
    reward: stages.RewardConfig = stages.RewardConfig()
    sample: SampleConfig = SampleConfig(length=0)
    rollout: RolloutConfig = RolloutConfig()
    eval_draws: Count = 4
    """Responses sampled for each held-out prompt, from the policy before and after training."""
    text_features: bool = False
    """Report length in words, repetition, distinct pairs of words, sentences and readability of these
    responses, which show what a policy exploits. Needs the extra [spacy]."""

    def needs(self) -> texts.Needs:
        """The files that the method learns from."""
        return texts.ALL

    def _conditions(self, at: str):
        super()._conditions(at)
        parallel.check_name(self.devices, f"{at}devices")
        check_on_policy(self.sample, f"{at}sample.")
        stages.check_packing(self.sft, self.model, at)

    def _unread(self) -> dict[str, str]:
        if texts.has_files(self.data):
            unread, why = (*OF_WORLD, "task"), "data files are given"
        else:
            unread, why = OF_FILES, "no data files are given"
        missing = super()._unread() | dict.fromkeys(unread, why)
        known = self.needs().needed + self.needs().optional
        if "comparisons" not in known:
            missing["reward"] = missing["annotators"] = "no reward model is trained"
        if "comparisons" not in known and not texts.has_files(self.data):
            missing["data.pairs"] = "nothing is trained on comparisons"
        if self.data.ratings:
            missing["reward.loss"] = "ratings are learned from one by one"
        if self.reference:
            of_sft = (f"sft.{x.name}" for x in fields(self.sft) if x.name != "batch_size")
            missing |= dict.fromkeys(of_sft, "a reference replaces SFT")
        return missing


NO_ROLLOUT = {"rollout": "no rollout is trained on"}


def task_of(cfg: RunConfig) -> Task | None:
    """The generated task; None where files are given."""
    if texts.has_files(cfg.data):
        return None
    return texts.load_task(cfg.task or TASK)


def resolve(cfg: Any) -> Any:
    """The settings in effect, as far as they are known before texts are read.

    Writes nothing. Raises ValueError, naming the setting, for what cannot work.
    """
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    task = task_of(cfg)
    cfg = cfg if task is None else with_defaults(cfg, task)
    lengths.check(cfg)
    networks.check_backend(cfg.model)
    if cfg.wandb:
        tracker.load()
    if cfg.text_features:
        features.read([])  # which needs spaCy
    pretrained.check_adapters(cfg)
    words = None  # the tokenizer is not trained yet
    if cfg.tokenizer:
        words = tokenizer.load(cfg.tokenizer, bos=pretrained.begins(cfg))
        cfg, _ = pretrained.fitted(with_tokens(cfg, words), words)
    origin.check(cfg, words)
    if cfg.reward_model:
        pretrained.scorer(cfg, words, (cfg.data.prompt_length, cfg.sample.length))
    if cfg.rollout.recompute_logprobs is None:
        differ = cfg.model.dtype != "float32"
        cfg = replace(cfg, rollout=replace(cfg.rollout, recompute_logprobs=differ))
    return cfg


def with_defaults(cfg: Any, task: Task) -> Any:
    """The settings with a task's own lengths in place of zeros."""
    own = lengths.GENERATED | task.defaults
    if task.environment:
        own["sample.length"] = task.environment.length
        task.environment.columns(cfg.sample.length)  # refuses a length that holds no whole turns
    return lengths.put(cfg, own["data.prompt_length"], own["sample.length"])


def with_tokens(cfg: Any, words) -> Any:
    """The settings with the tokenizer's stop and padding tokens.

    The tokens of sample.stop are kept as further stop tokens. Raises ValueError where one is not in the
    vocabulary.
    """
    own = (*pretrained.stops(cfg, words), *origin.stops(cfg))
    last = max(words.get_vocab().values())
    stop = tuple(dict.fromkeys([*own, *cfg.sample.stop]))
    if max({*stop} - {*own}, default=0) > last:
        raise ValueError(
            f"sample.stop = {cfg.sample.stop} has an id beyond the tokenizer's last token, {last}: "
            "name ids of its tokens"
        )
    if cfg.sample.pad not in (0, words.pad_token_id):
        raise ValueError(
            f"sample.pad = {cfg.sample.pad}: the tokenizer pads by {words.pad_token_id}"
        )
    return replace(cfg, sample=replace(cfg.sample, stop=stop, pad=words.pad_token_id))
