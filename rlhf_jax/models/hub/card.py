"""The model card of an export: one page, README.md, written from the run's own config.json and results.json.

Settings, command and results are those of the run; nothing is measured for the page. Folders of the machine
are shortened to their names, and the license is left to whoever publishes the model.
"""

import os
import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import huggingface_hub

FILE = "README.md"
SHOWN = (
    *("seed", "pretrained", "reference", "policy", "reward_model", "task"),
    *("data.corpus", "data.comparisons", "data.ratings", "data.prompts", "data.held_out"),
    *("model.layers", "model.d_model", "model.dtype", "model.param_dtype"),
    *("lora.rank", "sft.steps", "sft.batch_size", "reward.epochs", "preference.kind"),
    *("rl.reward", "rl.iterations", "rl.batch_size", "rl.kl_coef", "rl.optimizer.lr"),
    *("sample.length", "sample.temperature"),
)
"""The settings that a card shows, where the run has them and they are not empty."""
REWARDS = "reward accuracy", "reward AUC", "reward correlation", "reward calibration"
ABOUT = {"sft": ("SFT",), "reward": REWARDS, "held_out_reward": ()}
"""Beginnings of the names of results about the stages that methods share."""
USE = {
    "policy": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r})
prompt = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, do_sample=True, top_k=0, max_new_tokens={length})[0]))""",
    "reward model": """# training added score_bias to this score (config.json, or an adapter's metadata)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForSequenceClassification.from_pretrained({name!r})
print(model(**tokenizer("prompt response", return_tensors="pt")).logits)""",
}


class Export(NamedTuple):
    """An exported stage of a run, as far as its card tells of it."""

    name: str  # USER/NAME on the hub, or the folder's name
    stage: str
    is_reward: bool
    is_adapter: bool = False
    is_best: bool = False  # the checkpoint with the highest rl.best, and not the last one
    base: str = ""  # the model beneath, by hub name or folder; empty: random weights


def text(export: Export, config: dict[str, Any], results: dict[str, Any]) -> str:
    """The card of an export of the run with this config.json and results.json (empty where it has none)."""
    settings = dict(_flat(config.get("used") or config["settings"]))
    kind = "reward model" if export.is_reward else "policy"
    parts = [
        f"---\n{_metadata(export, config['experiment'], settings)}\n---",
        f"# {export.name.rpartition('/')[2]}",
        _about(export, kind, config, settings),
        f"## Use\n\n```python\n{_use(export, kind, settings)}\n```",
        f"## Training\n\n{_training(config, settings)}",
        f"## Results\n\n{_results(export, results)}",
        f"## Limits\n\n{_limits(results, settings)}",
    ]
    return "\n\n".join(parts) + "\n"


def on_hub(name: str) -> str:
    """The repository of that name on the hub, without its revision; empty for a folder of the machine."""
    repository = name.partition("@")[0]
    is_repository = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository) and not os.path.isdir(name)
    return repository if is_repository else ""


def datasets(settings: dict[str, Any]) -> list[str]:
    """Data sets of the hub among the sources of a run's rows."""
    sources = [str(value) for name, value in settings.items() if name.startswith("data.")]
    found = [name for x in sources for name in re.findall(r"\bhf:([\w.-]+(?:/[\w.-]+)?)", x)]
    return [name for name in dict.fromkeys(found) if not os.path.isdir(name)]


def plain(value: Any) -> str:
    """A setting as text, with paths of the machine shortened to their last name."""
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    words = re.split(r"([,:=])", str(value))
    short = lambda word: os.path.basename(word.rstrip("/")) if word.startswith(("/", "~")) else word
    return "".join(map(short, words))


def _metadata(export: Export, experiment: str, settings: dict[str, Any]) -> str:
    base = on_hub(export.base)
    task = "text-classification" if export.is_reward else "text-generation"
    more: dict[str, Any] = (
        {"base_model_relation": "adapter" if export.is_adapter else "finetune"} if base else {}
    )
    data = huggingface_hub.ModelCardData(
        library_name="peft" if export.is_adapter else "transformers",
        pipeline_tag=task,
        base_model=base or None,
        datasets=datasets(settings) or None,
        tags=["rlhf_jax", "rlhf", experiment.replace("_", "-")],
        **more,
    )
    return data.to_yaml()


def _about(export: Export, kind: str, config: dict[str, Any], settings: dict[str, Any]) -> str:
    base = f"`{plain(export.base)}`" if export.base else "random weights"
    what = f"Adapters (PEFT) of a {kind} over {base}" if export.is_adapter else f"A {kind}"
    start = "" if export.is_adapter else f" that began as {base} and was"
    stage = f"stage `{export.stage}` of the experiment `{config['experiment']}`"
    which = "the checkpoint with the highest `rl.best`" if export.is_best else "the last checkpoint"
    lengths = settings.get("data.prompt_length"), settings.get("sample.length")
    trained = f" Prompts had at most {lengths[0]} tokens and responses {lengths[1]}." * all(lengths)
    return f"{what}{start} trained with rlhf_jax: {stage}, {which}.{trained}"


def _use(export: Export, kind: str, settings: dict[str, Any]) -> str:
    length = settings.get("sample.length") or 64
    code = USE[kind].format(name=export.name, length=length)
    if export.is_adapter:
        code = re.sub(
            r"from transformers import (AutoModel\w+)",
            r"from peft import \1\nfrom transformers import",
            code,
        )
        code = code.replace("import, ", "import ").replace("AutoModelFor", "AutoPeftModelFor")
    return code


def _training(config: dict[str, Any], settings: dict[str, Any]) -> str:
    shown = {name: settings[name] for name in SHOWN if settings.get(name) not in (None, "", [])}
    table = [f"| `{name}` | {plain(x).replace('|', chr(92) + '|')} |" for name, x in shown.items()]
    command = " ".join(shlex.quote(plain(word)) for word in config.get("command", ()))
    versions = config.get("versions", {})
    made = ", ".join(f"{x} {versions[x]}" for x in ("rlhf_jax", "jax", "flax") if versions.get(x))
    parts = ["\n".join(["| setting | value |", "|---|---|", *table])]
    if command:
        parts.append(
            f"The command, with folders of its machine shortened:\n\n```bash\n{command}\n```"
        )
    return "\n\n".join([*parts, f"Versions: {made}."] if made else parts)


def _results(export: Export, results: dict[str, Any]) -> str:
    if "kl before training" in results:
        results = results | {
            "kl": {"before": results["kl before training"], "after": results["kl"]}
        }
        del results["kl before training"]
    rows = [row for row in _rows(results) if _belongs(row[0], export)]
    if not rows:
        return "The run has no results for this model."
    heads = ("result", "before", "after") if any(row[1] for row in rows) else ("result", "value")
    cells = lambda row: row if len(heads) == 3 else (row[0], row[2])
    line = lambda cells: f"| {' | '.join(cells)} |"
    table = [line(heads), line(["---"] * len(heads)), *(line(cells(row)) for row in rows)]
    said = "Brackets hold 95 % intervals over the held-out prompts or pairs of this one run."
    if start := results.get("the policy before training"):
        said += f" Before is `{plain(start)}`, where training started; the KL is to the reference."
    if export.is_best:
        said += " They are of the last checkpoint, and this export is the best one by `rl.best`."
    return "\n".join([said, "", *table])


def _limits(results: dict[str, Any], settings: dict[str, Any]) -> str:
    lines = [
        "The intervals are of one run with one seed: they do not say how another seed would end.",
        "It was measured on held-out prompts of its own training task and on nothing else: not for safety, "
        "bias, truth or other uses.",
        "A policy learns what its reward likes, faults of the reward included.",
        "No license is stated here. Whoever publishes this model adds `license` to the metadata of this "
        "page, as those of the base model and of the data allow.",
    ]
    if "gold" in results:
        lines.insert(0, "Gold is the known score of a generated task, and no judgement of people.")
    return "\n".join(f"- {line}" for line in lines)


def _belongs(name: str, export: Export) -> bool:
    """True for a result that is about the exported model."""
    world = "entropy of the grammar", "gold of the best responses"  # of a generated task
    others = "correlation of", "the reward model", "seconds", "peak memory", *ABOUT["sft"], *REWARDS
    others += world
    if export.stage in ABOUT:
        return name.startswith(ABOUT[export.stage])
    return not name.startswith(others)


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each result's name, its value before where it has one, and its value, after where it has both."""
    for name, x in results.items():
        if isinstance(x, dict) and x.keys() == {"before", "after"}:
            yield name, _said(x["before"]), _said(x["after"])
        elif isinstance(x, dict) and "mean" not in x:
            yield from _rows({f"{name}, {inner}": y for inner, y in x.items()})
        elif isinstance(x, dict | float | int) and not isinstance(x, bool):
            yield name, "", _said(x)


def _said(x: Any) -> str:
    if isinstance(x, dict):
        known = x.get("low") is not None and x.get("high") is not None
        ends = f" ({x['low']:.3f} to {x['high']:.3f})" if known else ""
        return f"{x['mean']:.3f}{ends}"
    return f"{x:.4g}" if isinstance(x, float | int) else str(x)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, x in tree.items():
        if isinstance(x, dict):
            yield from _flat(x, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", x
