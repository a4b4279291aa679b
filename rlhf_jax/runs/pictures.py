"""The pictures of a report: what its template draws, and the text of each in words."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlhf_jax.runs import metric_names

COLOURS = ("#2f7ed8", "#e0722a", "#2a9d6f", "#b0529c")  # told apart on white, on black, and in grey
DASHES = ("none", "6 3", "2 3")  # each takes all colours before the next
SMOOTHED = 40  # iterations above which a curve has a running mean
DOTTED = 25  # iterations below which a curve has dots
SMALL = SimpleNamespace(width=300, height=160, left=44, right=294, top=6, bottom=128)
WIDE = SimpleNamespace(width=480, height=270, left=48, right=474, top=8, bottom=232)


def curves(panel: metric_names.Panel, rows: list[dict]) -> dict[str, Any]:
    """The metrics of a panel over iterations; each stage has a curve of its own."""
    found = {}
    for name in panel.names:
        stages = list(dict.fromkeys(row["stage"] for row in rows if name in row))
        for stage in stages:
            label = metric_names.label(name) + (f" ({stage})" if len(stages) > 1 else "")
            points = [(r["iteration"], r[name]) for r in rows if name in r and r["stage"] == stage]
            found[label] = np.array(points, float).T
    of_x, x_ticks = _axis([x for x, _ in found.values()], SMALL.left, SMALL.right, whole=True)
    of_y, y_ticks = _axis([y for _, y in found.values()], SMALL.bottom, SMALL.top)
    drawn = []
    for n, (label, (x, y)) in enumerate(found.items()):
        smooth = len(x) > SMOOTHED
        drawn.append({
            "label": label,
            "colour": COLOURS[n % len(COLOURS)],
            "dash": DASHES[n // len(COLOURS) % len(DASHES)],
            "thin": _path(*_extremes(of_x(x), of_y(y))) if smooth else "",
            "thick": _path(*_extremes(of_x(x), of_y(_smooth(y) if smooth else y))),
            "dots": _dots(of_x(x), of_y(y)) if len(x) < DOTTED else [],
        })  # fmt: skip
    alt = f"{panel.title} over iterations. " + " ".join(map(_spoken, found, found.values()))
    labels = {"x_label": "iteration", "y_label": ""}
    return {"alt": alt, "x": x_ticks, "y": y_ticks, "curves": drawn, "points": [], **labels}


def gold_against_kl(rows: list[dict], points: list[tuple]) -> dict[str, Any]:
    """Gold and the reward model's score against the KL to the reference.

    `points` are evaluations: the intervals of KL and of gold, each with a label.
    """
    rows = [row for row in rows if {"objective/gold", "objective/kl"} <= row.keys()]
    if not rows:
        return {}
    column = lambda name: np.array([row.get(name, math.nan) for row in rows], float)
    kl, gold, score = map(column, ("objective/kl", "objective/gold", "objective/score"))
    ends = lambda n: np.array([list(point[n].values()) for point in points], float).ravel()
    of_x, x_ticks = _axis([kl, ends(0)], WIDE.left, WIDE.right)
    of_y, y_ticks = _axis([gold, score, ends(1)], WIDE.bottom, WIDE.top)
    drawn = [
        {"label": label, "colour": colour, "dash": "none", "thick": ""}
        | {"thin": _path(of_x(kl), of_y(y)), "dots": _dots(of_x(kl), of_y(y))}
        for y, colour, label in ((gold, COLOURS[0], "gold"), (score, COLOURS[1], "reward model"))
        if np.isfinite(y).any()
    ]
    placed = lambda of, interval: {end: f"{of(x):.1f}" for end, x in interval.items()}
    evaluated = [
        {"label": f"gold, held out, {label}", "x": placed(of_x, x), "y": placed(of_y, y)}
        for x, y, label in points
    ]
    alt = "Scatter of scores against KL, a point an iteration. " + " ".join(
        map(_spoken, ("KL", "gold", "reward model"), ((None, kl), (None, gold), (None, score)))
    )
    labels = {"x_label": "KL to the reference, nats per response", "y_label": "score per response"}
    return {"alt": alt, "x": x_ticks, "y": y_ticks, "curves": drawn, "points": evaluated, **labels}


def _axis(values, first, last, whole=False):
    """Where a value lies between `first` and `last`, and the ticks: (place, text)."""
    values = np.concatenate(values)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    room = 0.03 * (high - low) or 0.05 * abs(low) or 0.5
    low, high = low - room, high + room
    of = lambda x: first + (x - low) / (high - low) * (last - first)
    unit = 10.0 ** math.floor(math.log10((high - low) / 6))
    steps = [unit * n for n in (1, 2, 2.5, 5, 10) if not whole or (unit * n).is_integer()] or [1.0]
    step = next((x for x in steps if (high - low) / x <= 6), steps[-1])
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    plain = all(x == round(x) and abs(x) < 100_000 for x in ticks)
    for digits in range(3, 9):  # as few as tell them apart
        texts = [f"{x:.0f}" if plain else f"{x:.{digits}g}" for x in ticks]
        texts = [text.replace("-", "\N{MINUS SIGN}") for text in texts]
        if len({*texts}) == len(texts):
            break
    return of, [(f"{of(x):.1f}", text) for x, text in zip(ticks, texts, strict=True)]


def _dots(x, y) -> list[tuple[str, str]]:
    seen = np.isfinite(x) & np.isfinite(y)
    return [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(x[seen], y[seen], strict=True)]


def _extremes(x, y):
    """The points where a curve is lowest and highest in each part of the picture's width."""
    if len(x) <= 2 * SMALL.width:
        return x, y
    parts = np.array_split(np.arange(len(x)), SMALL.width)
    ends = lambda part: {part[np.argmin(y[part])], part[np.argmax(y[part])]}
    chosen = sorted(n for part in parts for n in ends(part))
    return x[chosen], y[chosen]


def _path(x, y) -> str:
    """An SVG path, with a gap where a value is not finite, and a dot where one stands alone."""
    said, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if seen := np.isfinite(a) and np.isfinite(b):
            said.append(f"{pen}{a:.1f} {b:.1f}" + ("h0" if pen == "M" else ""))
        pen = "L" if seen else "M"
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
