"""The pictures of a report: inline SVG that takes the page's colours, each with its text in words."""

import io
import math
import re
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

PANELS = (  # heading, then each panel: title, and the metrics it shows (those that the run has)
    (
        "Reinforcement learning",
        ("Score per response", ("objective/score", "objective/held_out_score")),
        ("Gold score per response", ("objective/gold",)),
        ("KL to the reference, nats per response", ("objective/kl",)),
        ("Response length, tokens", ("objective/length",)),
        ("Responses that end with EOS", ("objective/eos_rate",)),
        ("Entropy, nats per token", ("ppo/entropy", "pg/entropy")),
        ("Policy loss", ("ppo/policy_loss", "pg/policy_loss")),
        ("Value loss", ("ppo/value_loss",)),
        ("Explained variance of the value", ("ppo/explained_variance",)),
        ("KL of one update", ("ppo/approx_kl", "pg/approx_kl")),
        ("Clipped ratios", ("ppo/policy_clipfrac", "pg/clipfrac")),
        ("Groups whose draws score alike", ("pg/flat_groups",)),
        ("Games won", ("game/win_rate",)),
        ("Turns a game", ("game/turns",)),
    ),
    (
        "Learning from comparisons",
        ("Loss per pair", ("preference/loss",)),
        ("Pairs ranked as people did", ("preference/accuracy", "preference/held_out_accuracy")),
        (
            "Log-probability per response, nats",
            ("preference/chosen_logprob", "preference/rejected_logprob"),
        ),
    ),
    (
        "Q-learning on a log",
        ("Losses per token", ("ilql/q_loss", "ilql/value_loss")),
        ("Q and value, mean over tokens", ("ilql/q", "ilql/value")),
    ),
    (
        "Reward model",
        ("Loss, nats per pair", ("reward/loss", "reward/held_out_loss")),
        ("Pairs ranked as people did", ("reward/accuracy", "reward/held_out_accuracy")),
    ),
    (
        "Supervised fine-tuning",
        ("Loss, nats per token", ("sft/loss", "sft/held_out_loss")),
    ),
)
COLOURS = ("#2f7ed8", "#e0722a", "#2a9d6f", "#b0529c")  # told apart on white, on black, and in grey


INK = "#010203"  # stands for the page's own text colour, whether it is light or dark


def _picture(draw, title, alt, *, size=(4.2, 2.5)) -> Markup:
    """`draw(axes)` as SVG that takes the page's colours."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # equal runs give equal pages, and no two pictures share a clip path
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": INK,
        "grid.alpha": 0.13,
        "axes.grid": True,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib's names repeat from picture to picture
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def _curve(rows, name):
    points = [(row["iteration"], row[name]) for row in rows if name in row]
    return np.array(points, float).reshape(-1, 2).T


def _smooth(y):
    """Centred means over a twentieth of the curve; what is not finite is left out of them."""
    half = len(y) // 40
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


def panels(panels, rows) -> list[dict]:
    """One group of PANELS over iterations, each a small picture; those without a metric are left out."""
    present = {name for row in rows for name in row}
    figures = []
    for title, names in panels:
        names = [name for name in names if name in present]
        if not names:
            continue
        curves = {}
        for name in names:  # a metric that two stages share is a curve for each
            stages = list(dict.fromkeys(row["stage"] for row in rows if name in row))
            for stage in stages:
                label = name.rpartition("/")[2].replace("_", " ")
                label = f"{label} ({stage})" if len(stages) > 1 else label
                curves[label] = _curve([row for row in rows if row["stage"] == stage], name)

        def draw(axes, curves=curves):
            for colour, (label, (x, y)) in zip(COLOURS, curves.items(), strict=False):
                smooth = len(x) > 40
                if smooth:
                    axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8)
                mark = "o" if len(x) < 25 else None
                y = _smooth(y) if smooth else y
                axes.plot(x, y, color=colour, linewidth=1.8, marker=mark, markersize=3, label=label)
            if len(curves) > 1:
                axes.legend()
            axes.set_xlabel("iteration")
            axes.margins(x=0.02)

        alt = f"{title} over iterations. " + " ".join(map(_spoken, curves, curves.values()))
        figures.append({"title": title, "picture": _picture(draw, title, alt)})
    return figures


def _spoken(name, curve) -> str:
    y = curve[1][np.isfinite(curve[1])]
    if not len(y):
        return f"{name} is never finite."
    return f"{name} goes from {y[0]:.4g} to {y[-1]:.4g}, between {y.min():.4g} and {y.max():.4g}."


def gold_against_kl(rows, points) -> str:
    """What the policy gained in truth, and in the eyes of its reward model, for the KL it spent."""
    rows = [row for row in rows if {"objective/gold", "objective/kl"} <= row.keys()]
    if not rows:
        return ""
    column = lambda name: np.array([row.get(name, math.nan) for row in rows], float)
    kl, gold, score = map(column, ("objective/kl", "objective/gold", "objective/score"))

    def draw(axes):
        for y, colour, label in ((gold, COLOURS[0], "gold"), (score, COLOURS[1], "reward model")):
            if np.isfinite(y).any():
                axes.plot(kl, y, color=colour, alpha=0.25, linewidth=0.8)
                axes.scatter(kl, y, s=9, color=colour, alpha=0.7, linewidths=0, label=label)
        for x, y, label, marker in points:
            axes.errorbar(
                [x["mean"]],
                [y["mean"]],
                xerr=[[x["mean"] - x["low"]], [x["high"] - x["mean"]]],
                yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
                fmt=marker,
                color=INK,
                markersize=7,
                capsize=3,
                label=f"gold, held out, {label}",
            )
        axes.set_xlabel("KL to the reference, nats per response")
        axes.set_ylabel("score per response")
        axes.legend()

    alt = "Scatter of scores against KL, a point an iteration. " + " ".join(
        map(_spoken, ("KL", "gold", "reward model"), ((None, kl), (None, gold), (None, score)))
    )
    return _picture(draw, "Gold against KL", alt, size=(6.4, 3.8))
