"""Content hashes of the files that a run learns from."""

import pathlib
import re

from rlhf_jax.data import sources
from rlhf_jax.models.hub import huggingface
from rlhf_jax.runs import manifest

DATA = "data.corpus", "data.comparisons", "data.ratings", "data.prompts"
"""The settings that name sources of rows."""
MODELS = "pretrained", "reference", "reward_model", "tokenizer"
"""The settings that name a model or tokenizer, by folder or hub name."""
CODE = "rl.reward", "task"
"""The settings that name a FILE.py:FUNCTION or a FILE.py."""
LARGE = 2 * 10**9  # bytes, beyond which a line says why nothing happens


def content(cfg) -> dict[str, dict[str, str]]:
    """The sha256 of each file that `cfg` names, by setting and file.

    For a data set these are its files on disk. For a model's folder these are the files that are read, and
    for an adapter also those of the model it adapts; for a model on the hub, the resolved revision.
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
    for setting in MODELS:
        if value := _setting(cfg, setting):
            folder = huggingface.resolve(value)
            folders = [folder] if setting == "tokenizer" else huggingface.chain(folder)
            found[setting] = {}
            for folder in dict.fromkeys(folders):
                found[setting] |= _model(folder, weights=setting != "tokenizer")
    return found


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
