"""Reuse of the shared stages of another run."""

import pathlib
import shutil
from typing import Any

from rlhf_jax.devices import hosts
from rlhf_jax.pipeline import inputs, texts
from rlhf_jax.runs import disk, identity, manifest, run

STAGES = ("sft", "reward", "held_out_reward")
"""The stages that methods share."""
PARTS = (
    *("seed", "pretrained", "reference", "reward_model", "lora", "tokenizer", "bos", "data"),
    *("task", "annotators", "model", "sft", "reward", "sample"),
)
"""The settings, and groups of settings, that shared stages read."""
COMPUTED = (
    *("model.attention", "model.remat", "model.scan_decode", "sft.microbatches"),
    *("reward.microbatches", "reward.save_every", "sample.slots", "sample.buckets"),
)
"""The settings that change order, memory and time of a computation, and not its result."""
DECIDED = "model.vocab_size", "sample.pad"
"""The settings that the tokenizer decides."""
OF_FILES = (
    *("prompt_words", "fields", "corpus_fields", "ratings_fields", "prompts_fields"),
    *("turns", "bad", "long"),
)
LENGTHS = "data.prompt_length", "sample.length"


def shared(settings: dict[str, Any], stages: tuple[str, ...] = STAGES) -> dict[str, Any]:
    """The settings, flattened by `identity.flat`, that determine the results of these stages."""
    files = [settings[f"data.{name}"] for name in texts.FILES]
    free = [*COMPUTED, *DECIDED]
    if any(files):
        free += ["task", "annotators", "data.demonstrations", "data.pairs"]
        free += [f"sample.{name}" for name in ("temperature", "stop")]
    else:
        free += [f"data.{name}" for name in OF_FILES]
    learns_rewards = (not any(files) or files[1] or files[2]) and stages != ("sft",)
    if not learns_rewards:
        free += ["reward"]
    adapted = settings["pretrained"] or learns_rewards  # one of these stages has adapters
    if not adapted or not settings["lora.rank"]:
        free += ["lora.alpha", "lora.matrices"] + ["lora.rank"] * (not adapted)
    if settings["reference"]:
        free += ["sft"]
    if settings["tokenizer"]:
        free += ["data.vocab_size"]
    if not any(files) or all(settings[name] for name in LENGTHS):
        # the model's positions limit no length taken from the data
        free += ["reward_model"] + ["model.context"] * (settings["model.positions"] == "rotary")
    reads = lambda name, parts: any(name == x or name.startswith(f"{x}.") for x in parts)
    return {n: x for n, x in settings.items() if reads(n, PARTS) and not reads(n, free)}


def check(start: pathlib.Path, cfg, default):
    """Raises ValueError where `start` is no run, has finished none of its shared stages, or trained them
    with other settings.

    A setting added since that run counts as its current default, from the config `default`.
    """
    if not (start / run.CONFIG).exists():
        raise ValueError(f'start_from = "{start}" holds no config.json: name the folder of a run')
    begun = run.read_config(start)
    theirs = identity.flat(disk.plain(default)) | identity.flat(begun["settings"])
    ours = identity.flat(disk.plain(cfg))
    whole = _whole(start) if texts.has_files(cfg.data) else ()
    if whole and all(ours[name] >= least for name, least in zip(LENGTHS, whole, strict=True)):
        theirs |= {name: ours[name] for name in LENGTHS}  # which adds columns that are masked
    stages = stages_of(start, cfg)
    names = {**shared(theirs, stages), **shared(ours, stages)}
    there, here = ({n: x[n] for n in names if n in x} for x in (theirs, ours))
    if changes := identity.differences(there, here):
        raise ValueError(
            f'start_from = "{start}" was trained with other settings ({identity.in_words(changes)}): '
            "give the same, or train from the start"
        )
    if not any(run.finished(start, stage) for stage in STAGES):
        raise ValueError(
            f'start_from = "{start}" has finished none of the shared stages ({", ".join(STAGES)}): start its '
            "command again until it has, or train from the start"
        )
    if "content" in begun and hosts.is_first():
        known = lambda content: {name: x for name, x in content.items() if name in names}
        changed = identity.changes_of(known(begun["content"]), known(inputs.content(cfg)))
        if changed:
            raise ValueError(
                f'start_from = "{start}" was trained on other file contents: {changed}. '
                "Restore the files, or train from the start"
            )


def _whole(start: pathlib.Path) -> tuple[int, ...]:
    """Prompt and answer lengths of a run from files; empty where they truncated any of these."""
    place = start / "lengths.json"
    if not place.exists():
        return ()
    told = disk.read_json(place)
    lines = [line for line in told["lines"] if not line.startswith("lengths")]
    return tuple(told["lengths"]) if all(": none of " in line for line in lines) else ()


def stages_of(start: pathlib.Path, cfg) -> tuple[str, ...]:
    """The shared stages that run `start` has finished and `cfg` trains."""
    own = STAGES if cfg.needs().halves else STAGES[:1]
    return tuple(stage for stage in own if run.finished(start, stage))


def copy(start: pathlib.Path, folder: pathlib.Path, cfg, *, checkpoints: bool = True):
    """Copies the finished shared stages of run `start` into `folder`; files that exist there are kept.

    Without `checkpoints` only what comes before and between these stages is copied.
    """
    (folder / "stages").mkdir(exist_ok=True)
    finished = stages_of(start, cfg)
    print(f"taken from {start}: {', '.join(finished)}", flush=True)
    both = [identity.flat(run.read_config(place)["settings"]) for place in (start, folder)]
    lengths = [[settings.get(name) for name in LENGTHS] for settings in both]
    names = [
        name + end
        for name in ("tokenizer", "lengths.json", "comparisons.jsonl")
        for end in (manifest.SUFFIX, "")
        if name != "lengths.json" or lengths[0] == lengths[1]
    ]
    names += [f"stages/{stage}" for stage in finished] * checkpoints
    for name in names:
        source, place = start / name, folder / name
        if source.exists() and not place.exists():
            partial = place.with_name(f".{place.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, partial)
            partial.replace(place)
