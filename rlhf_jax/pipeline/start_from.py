"""The shared stages of another run, in the place of training them again."""

import pathlib
import shutil

from rlhf_jax.devices import hosts
from rlhf_jax.pipeline import inputs
from rlhf_jax.runs import manifest, run

SHARED = (
    "seed",
    "pretrained",
    "reference",
    "reward_model",
    "lora",
    "tokenizer",
    "bos",
    "data",
    "annotators",
    "model",
    "sft",
    "reward",
    "sample",
)
"""The settings that decide what the shared stages end with."""
STAGES = ("sft", "reward", "judge")
"""The shared stages."""


def check(start: pathlib.Path, cfg, default):
    """Raises ValueError where `start` is no run, or its shared stages were trained with other settings or
    none of them to its end.

    A setting that `start` is older than stood at what is its default now: `default` is a config of defaults.
    """
    if not (start / "config.json").exists():
        raise ValueError(f'start_from = "{start}" holds no config.json: name the folder of a run')
    begun, ours = run.read_config(start), run.plain(cfg)
    theirs = over(run.plain(default), begun["settings"])
    other = [name for name in SHARED if theirs[name] != ours[name]]
    if other:
        raise ValueError(
            f'start_from = "{start}" was trained with other settings of {", ".join(other)}: '
            "give the same, or train from the start"
        )
    if not any(run.finished(start, stage) for stage in STAGES):
        raise ValueError(
            f'start_from = "{start}" has finished none of the shared stages ({", ".join(STAGES)}): start its '
            "command again until it has, or train from the start"
        )
    if "content" in begun and hosts.is_first():
        of_code = lambda content: {k: x for k, x in content.items() if k not in inputs.CODE}
        changed = run.changes_of(of_code(begun["content"]), of_code(inputs.content(cfg)))
        if changed:
            raise ValueError(
                f'start_from = "{start}" was trained on other content: {changed}. '
                "Put back what it was trained on, or train from the start"
            )


def over(old: dict, new: dict) -> dict:
    """`new`, and what `old` has beside it, at any depth."""
    both = lambda name: isinstance(old.get(name), dict) and isinstance(new[name], dict)
    return old | {name: over(old[name], x) if both(name) else x for name, x in new.items()}


def copy(start: pathlib.Path, folder: pathlib.Path):
    """The finished shared stages of run `start`, in `folder`; what stands there already is left."""
    (folder / "stages").mkdir(exist_ok=True)
    finished = [stage for stage in STAGES if run.finished(start, stage)]
    print(f"taken from {start}: {', '.join(finished)}", flush=True)
    names = [
        name + end
        for name in ("tokenizer", "lengths.json", "comparisons.jsonl")
        for end in (manifest.SUFFIX, "")
    ]
    names += [f"stages/{stage}" for stage in finished]
    for name in names:
        source, place = start / name, folder / name
        if source.exists() and not place.exists():
            partial = place.with_name(f".{place.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, partial)
            partial.replace(place)
