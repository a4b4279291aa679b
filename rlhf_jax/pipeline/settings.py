"""Settings that all methods share, and `resolve`, which refuses those that cannot work."""

from dataclasses import dataclass, fields, replace
from typing import Any

from rlhf_jax.algorithms.rollout import RolloutConfig
from rlhf_jax.bounds import Count, Seed
from rlhf_jax.data import tokenizer
from rlhf_jax.devices import parallel
from rlhf_jax.models import networks
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.people.annotators import AnnotatorConfig
from rlhf_jax.pipeline import lengths, pretrained, stages, texts
from rlhf_jax.runs import metrics
from rlhf_jax.sampling import SampleConfig, check_on_policy
from rlhf_jax.tasks.task import Task

TASK = "reviews"
"""The task without `task`."""
OF_WORLD = ("data.reviews", "data.pairs", "annotators")
"""The settings that a generated task reads."""
OF_FILES = ("data.prompt_words", "data.fields", "data.corpus_fields", "data.prompts_fields")
"""The settings that files are read with."""


@dataclass(frozen=True)
class RunConfig(pretrained.Config):
    """Settings of a run, and of the stages that methods share."""

    _main = ("seed", "run", "start_from", "devices", "task", "reward_model", "eval_draws")
    _incidental = ("run", "start_from", "devices", "wandb")

    seed: Seed = 0
    """Seed of every random draw."""
    run: str = ""
    """Run directory; empty: runs/EXPERIMENT/HASH-OF-CONFIG."""
    start_from: str = ""
    """Run directory of any method with the same settings of the shared stages; its SFT and reward models are
    copied instead of trained."""
    devices: str = "auto"
    """Layout of devices: auto, device (the first one), pmap, or mesh, as mesh:data=-1,fsdp=2,tensor=2
    (-1: the devices that are left)."""
    wandb: bool = False
    """Log to Weights & Biases too."""
    task: str = ""
    """Generated task where no files are named: a name (reviews), or FILE.py with a TASK; empty: reviews."""
    reward_model: str = ""
    """Folder or hub name of a classifier of one label, with the policy's tokenizer, that is maximised in the
    place of a reward model trained here; comparisons then teach the held-out reward model alone."""
    data: texts.DataConfig = texts.DataConfig()
    annotators: AnnotatorConfig = AnnotatorConfig()
    model: ModelConfig = ModelConfig(d_model=64, context=64, positions="rotary")
    sft: stages.SFTConfig = stages.SFTConfig()
    reward: stages.RewardConfig = stages.RewardConfig()
    sample: SampleConfig = SampleConfig(length=0)
    rollout: RolloutConfig = RolloutConfig()
    eval_draws: Count = 4
    """Responses to each held-out prompt, before and after."""

    def needs(self) -> texts.Needs:
        """The files that the method learns from."""
        return texts.ALL

    def _conditions(self, at: str):
        super()._conditions(at)
        parallel.check_name(self.devices, f"{at}devices")
        check_on_policy(self.sample, f"{at}sample.")

    def _unread(self) -> dict[str, str]:
        if texts.has_files(self.data):
            unread, why = (*OF_WORLD, "task"), "files are read"
        else:
            unread, why = OF_FILES, "no files are read"
        missing = super()._unread() | dict.fromkeys(unread, why)
        known = self.needs().needed + self.needs().optional
        if "comparisons" not in known:
            missing["reward"] = missing["annotators"] = "no reward model is trained"
        if "comparisons" not in known and not texts.has_files(self.data):
            missing["data.pairs"] = "nothing learns from comparisons"
        missing["sample.pad"] = "the tokenizer decides it"
        if self.reference:
            of_sft = (f"sft.{x.name}" for x in fields(self.sft) if x.name != "batch_size")
            missing |= dict.fromkeys(of_sft, "a reference takes SFT's place")
        return missing


NO_ROLLOUT = {"rollout": "no rollout is trained on"}


def task_of(cfg: RunConfig) -> Task | None:
    """The generated task; None where files are read."""
    if texts.has_files(cfg.data):
        return None
    return texts.load_task(cfg.task or TASK)


def resolve(cfg: Any) -> Any:
    """The settings as they are used, as far as they can be known before texts are read.

    Nothing is written. Raises ValueError, by the name of the setting, for what cannot work.
    """
    if pretrained.named(cfg):
        cfg = replace(cfg, **pretrained.decided(cfg))
    task = task_of(cfg)
    cfg = cfg if task is None else with_defaults(cfg, task)
    lengths.check(cfg)
    networks.check_backend(cfg.model)
    if cfg.wandb:
        metrics.load_wandb()
    pretrained.check_adapters(cfg)
    words = None  # where the tokenizer is yet to be trained
    if cfg.tokenizer:
        words = tokenizer.load(cfg.tokenizer, bos=pretrained.begins(cfg))
        cfg, _ = pretrained.fitted(with_tokens(cfg, words), words)
    if cfg.reward_model:
        pretrained.scorer(cfg, words, (cfg.data.prompt_length, cfg.sample.length))
    if cfg.rollout.recompute_logprobs is None:
        differ = cfg.model.dtype != "float32"
        cfg = replace(cfg, rollout=replace(cfg.rollout, recompute_logprobs=differ))
    return cfg


def with_defaults(cfg: Any, task: Task) -> Any:
    """The settings with a task's own lengths in the place of zeros."""
    own = lengths.GENERATED | task.defaults
    return lengths.put(cfg, own["data.prompt_length"], own["sample.length"])


def with_tokens(cfg: Any, words) -> Any:
    """The settings with the tokens that the tokenizer decides: those that end a response, and padding.

    What sample.stop names ends a response too. Raises ValueError where that is no token.
    """
    own, last = pretrained.stops(cfg, words), max(words.get_vocab().values())
    stop = tuple(dict.fromkeys([*own, *cfg.sample.stop]))
    if max({*stop} - {*own}, default=0) > last:
        raise ValueError(f"sample.stop = {cfg.sample.stop}: the tokenizer's last token is {last}")
    if cfg.sample.pad not in (0, words.pad_token_id):
        raise ValueError(
            f"sample.pad = {cfg.sample.pad}: the tokenizer pads by {words.pad_token_id}"
        )
    return replace(cfg, sample=replace(cfg.sample, stop=stop, pad=words.pad_token_id))
