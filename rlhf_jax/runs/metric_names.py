"""Reads the name of a metric, AREA/NAME, for the report and the progress line.

An algorithm names its own area, and none is known here: a new one is drawn and shown as the others are.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from rlhf_jax.runs.metrics import OURS

TITLES = {
    "score": "Score per response",
    "gold": "Gold score per response",
    "kl": "KL to the reference, nats per response",
    "length": "Response length, tokens",
    "eos_rate": "Responses that end with EOS",
    "reward": "Score less the KL penalty, per response",
    "win_rate": "Games won",
    "turns": "Turns per game",
    "loss": "Loss",
    "accuracy": "Accuracy",
    "logprob": "Log-probability per response, nats",
    "margin": "Margin of chosen over rejected",
    "policy_loss": "Policy loss",
    "value_loss": "Value loss",
    "entropy": "Entropy, nats per token",
    "approx_kl": "KL of one update, nats per token",
    "clipfrac": "Share of clipped ratios",
    "policy_clipfrac": "Share of clipped ratios",
    "explained_variance": "Explained variance of the values",
    "flat_groups": "Groups whose draws score alike",
    "value_clipfrac": "Share of clipped values",
    "advantage_std": "Standard deviation of advantages",
    "ratio": "Mean ratio of new to old policy",
    "steps": "Gradient steps",
    "kl_loss": "KL penalty in the loss",
    "surprisal": "Surprisal, nats per response",
    "k3": "KL to the reference by k3, nats per response",
    "kl_coef": "KL coefficient",
    "grad_norm": "Gradient norm",
    "skipped": "Skipped steps",
}
"""Titles by the last part of a name, in the order of the panels; another metric is titled by its name."""
SIDES = re.compile(r"^(held_out|chosen|rejected)_")  # metrics that differ by these share a panel
SHOWN = 6  # panels of an area; the rest is folded
OBJECTIVE = "objective"  # the area of what every loop of reinforcement learning measures
HEADLINES = ("win_rate", "loss", "held_out_loss", "accuracy", "held_out_accuracy")


class Panel(NamedTuple):
    """The metrics that share a picture, and its title."""

    title: str
    names: tuple[str, ...]


def areas(rows: list[dict]) -> dict[str, list[Panel]]:
    """Every metric of the rows, as the panels of its area.

    The objective comes first, then the areas of the last stage. At the end stands what has no title of
    its own, and `train`, which all stages share.
    """
    stages = {}
    for row in rows:
        stages.setdefault(row["stage"], {}).update(dict.fromkeys(row))
    found = {}
    for names in reversed(stages.values()):
        for name in names:
            if name not in OURS:
                found.setdefault(_split(name)[0], {})[name] = None
    untitled = lambda area: not any(_last(name) in TITLES for name in found[area])
    order = sorted(found, key=lambda x: (x != OBJECTIVE, x == "train", untitled(x)))
    return {area: _panels(found[area]) for area in order}


def headlines(names: Iterable[str]) -> list[str]:
    """The few metrics that a progress line shows."""
    names = sorted(names)
    wanted = [f"{OBJECTIVE}/{x}" for x in ("gold", "score", "kl", "length")]
    found = [name for name in wanted if name in names]
    found += [name for end in HEADLINES for name in names if _last(name) == end]
    return found[:4] or names[:3]


def words(name: str) -> str:
    """A name as words, its abbreviations in capitals."""
    return re.sub(r"\b(eos|kl)\b", lambda x: x[0].upper(), str(name).replace("_", " "))


def capital(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def label(name: str) -> str:
    """The name of a metric within its area, as words."""
    return words(_split(name)[1].replace("/", ", "))


def _panels(names: Iterable[str]) -> list[Panel]:
    together = {}
    for name in sorted(names, key=lambda name: (bool(SIDES.match(_last(name))), name)):
        head, slash, last = name.rpartition("/")
        together.setdefault(f"{head}{slash}{SIDES.sub('', last)}", []).append(name)
    order = {end: place for place, end in enumerate(TITLES)}
    ranked = sorted(together, key=lambda name: (order.get(_last(name), len(order)), name))
    return [Panel(_title(name), tuple(together[name])) for name in ranked]


def _title(name: str) -> str:
    return TITLES.get(_last(name)) or capital(label(name))


def _split(name: str) -> tuple[str, str]:
    area, slash, rest = name.partition("/")
    return (area, rest) if slash else ("", area)


def _last(name: str) -> str:
    return name.rpartition("/")[2]
