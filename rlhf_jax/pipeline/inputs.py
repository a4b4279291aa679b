"""Content hashes of the files that a run learns from."""

import pathlib
import re
from collections.abc import Callable

from rlhf_jax.data import sources
from rlhf_jax.models.hub import huggingface
from rlhf_jax.runs import identity, manifest, run

DATA = "data.corpus", "data.comparisons", "data.ratings", "data.prompts"
"""The settings that name sources of rows."""
MODELS = "pretrained", "reference", "policy", "reward_model", "tokenizer"
"""The settings that name a model or tokenizer, by folder or hub name."""
CODE = "rl.reward", "task"
"""The settings that name a FILE.py:FUNCTION or a FILE.py."""
LARGE = 2 * 10**9  # bytes, beyond which a line says why nothing happens


def content(cfg) -> dict[str, dict[str, str]]:
    """The sha256 of each file that `cfg` names, by setting and file.

    For a data set these are its files on disk. For a model's folder these are the files that are read, and
    for an adapter also those of the model it adapts; for a model on the hub, the resolved revision; for a
    run, the manifests of its checkpoints, and the models beneath its adapters.
    """
    found = {}
    for setting in DATA:
        if value := _setting(cfg, setting):
            found[setting] = _hashes(map(pathlib.Path, sources.files(value)))
    for setting in CODE:
        if value := _setting(cfg, setting):
            file = value.rpartition(":")[0] or value
            if file.endswith(".py"):  # a name is a task of the library
                found[setting] = _hashes([pathlib.Path(file).expanduser()])
    return found | _models(lambda setting: _setting(cfg, setting))


def _models(value_of: Callable[[str], str]) -> dict[str, dict[str, str]]:
    """The sha256 of the files of each model or tokenizer that a setting of `MODELS` names."""
    found = {}
    for setting in MODELS:
        if not (value := value_of(setting)):
            continue
        if setting == "policy" and run.is_run(value):
            found[setting] = _run(pathlib.Path(value))
            continue
        folder = huggingface.resolve(value)
        folders = [folder] if setting == "tokenizer" else huggingface.chain(folder)
        found[setting] = {}
        for folder in dict.fromkeys(folders):
            found[setting] |= _model(folder, weights=setting != "tokenizer")
    return found


def _run(folder: pathlib.Path) -> dict[str, str]:
    """The sha256 of the manifests of a run's checkpoints, which hold those of all their files, and of the
    models that its adapters stand over."""
    settings = identity.flat(run.read_config(folder)["settings"])
    beneath = _models(lambda name: settings.get(name, "") if settings.get("lora.rank") else "")
    found = _hashes(sorted(folder.glob(f"stages/*/*{manifest.SUFFIX}")))
    return found | {path: digest for files in beneath.values() for path, digest in files.items()}


def _model(folder: pathlib.Path, weights: bool) -> dict[str, str]:
    revision = folder.resolve().name
    if folder.resolve().parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", revision):
        return {"revision of the hub": revision}  # its cache names files by their hashes
    kinds = [kind for kind in huggingface.PATTERNS if weights or kind != "*.safetensors"]
    return _hashes(sorted({path for kind in kinds for path in folder.glob(kind)}))


def _hashes(paths) -> dict[str, str]:
    paths = list(paths)
    size = sum(path.stat().st_size for path in paths)
    if size > LARGE:
        print(f"hashing {size / 1e9:.0f} GB of {paths[0].parent}, to know it again", flush=True)
    return {str(path): manifest.sha256(path) for path in paths}


def _setting(cfg, name: str) -> str:
    for part in name.split("."):
        cfg = getattr(cfg, part, "")
    return cfg
