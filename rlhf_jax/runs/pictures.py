"""The pictures of a report, which take the page's colours, each with its text in words."""

import io
import math
import re
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_jax.runs import metric_names

COLOURS = ("#2f7ed8", "#e0722a", "#2a9d6f", "#b0529c")  # told apart on white, on black, and in grey
DASHES = ("none", "6 3", "2 3")  # each takes all colours before the next
SMOOTHED, DOTTED = (
    40,
    25,
)  # iterations above which a curve has a running mean, and below which it has dots
FRAME = SimpleNamespace(width=300, height=160, left=44, right=294, top=6, bottom=128)  # of curves
INK = "#010203"  # stands for the page's own text colour, whether it is light or dark


def curves(panel: metric_names.Panel, rows: list[dict]) -> dict[str, Any]:
    """The metrics of a panel over iterations, as the page draws them; each stage has a curve of its own."""
    found = {}
    for name in panel.names:
        stages = list(dict.fromkeys(row["stage"] for row in rows if name in row))
        for stage in stages:
            label = metric_names.label(name) + (f" ({stage})" if len(stages) > 1 else "")
            points = [(r["iteration"], r[name]) for r in rows if name in r and r["stage"] == stage]
            found[label] = np.array(points, float).T
    of_x, x_ticks = _axis([x for x, _ in found.values()], FRAME.left, FRAME.right, whole=True)
    of_y, y_ticks = _axis([y for _, y in found.values()], FRAME.bottom, FRAME.top)
    drawn = []
    for n, (label, (x, y)) in enumerate(found.items()):
        smooth = len(x) > SMOOTHED
        seen = [
            (f"{of_x(a):.1f}", f"{of_y(b):.1f}")
            for a, b in zip(x, y, strict=True)
            if np.isfinite(b)
        ]
        drawn.append(
            {
                "label": label,
                "colour": COLOURS[n % len(COLOURS)],
                "dash": DASHES[n // len(COLOURS) % len(DASHES)],
                "thin": _path(*_extremes(of_x(x), of_y(y))) if smooth else "",
                "thick": _path(*_extremes(of_x(x), of_y(_smooth(y) if smooth else y))),
                "dots": seen if len(x) < DOTTED else [],
            }
        )
    alt = f"{panel.title} over iterations. " + " ".join(map(_spoken, found, found.values()))
    return {"alt": alt, "x": x_ticks, "y": y_ticks, "curves": drawn}


def _axis(values, first, last, whole=False):
    """Where a value lies between `first` and `last`, and the ticks: (place, text)."""
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = 0.03 * (high - low) or 0.05 * abs(low) or 0.5
    low, high = low - room, high + room
    of = lambda x: first + (x - low) / (high - low) * (last - first)
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    ticks = [0.0 if abs(x) < room / 1000 else x for x in ticks if low <= x <= high]
    for digits in range(3, 9):  # as few as tell them apart
        texts = [f"{x:.{digits}g}".replace("-", "\N{MINUS SIGN}") for x in ticks]
        if len({*texts}) == len(texts):
            break
    return of, [(f"{of(x):.1f}", text) for x, text in zip(ticks, texts, strict=True)]


def _extremes(x, y):
    """The points where a curve is lowest and highest in each part of the picture's width."""
    if len(x) <= 2 * FRAME.width:
        return x, y
    parts = np.array_split(np.arange(len(x)), FRAME.width)
    ends = lambda part: {part[np.argmin(y[part])], part[np.argmax(y[part])]}
    chosen = sorted(n for part in parts for n in ends(part))
    return x[chosen], y[chosen]


def _path(x, y) -> str:
    """An SVG path, with a gap where a value is not finite, and a dot where one stands alone."""
    said, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            said.append(f"{pen}{a:.1f} {b:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L" if np.isfinite(b) else "M"
    return "".join(said)


def _smooth(y):
    """Centred means over a twentieth of the curve; what is not finite is left out of them."""
    half = len(y) // 40
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return np.array(
        [np.mean(w[np.isfinite(w)]) if np.isfinite(w).any() else np.nan for w in windows]
    )


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
    return _picture(draw, "Gold against KL", alt, (6.4, 3.8))


def _picture(draw, title, alt, size) -> Markup:
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
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib's names repeat from picture to picture
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))
