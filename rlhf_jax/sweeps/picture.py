"""The picture of a sweep: the measure against the swept setting, and a score against the KL."""

import pathlib
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.sweeps.table import AFTER, Cell, known, measure_of, names_of

COLOURS = ("#2f7ed8", "#e0722a", "#2a9d6f", "#b0529c", "#8a6d3b", "#444444", "#c23b3b")
MARKERS = ("o", "s", "^", "D", "v", "P")  # not as many as colours, so that pairs differ for long
BARS = 3  # seeds below which an interval is wider than any picture
WIDE = 8.0  # ratio of the values of a setting above which its axis is logarithmic
PANELS = 4
ROWS = 8  # of a legend in one column


def draw(path: pathlib.Path, cells: Sequence[Cell], measure: str, title: str) -> None:
    """Writes a PNG: of a grid the measure and the score against KL, of seeds alone each main result."""
    cells = [cell for cell in cells if cell.runs]
    figure = Figure(layout="constrained")
    if cells[0].values:
        score = measure_of(names_of(cells)) if measure == "kl" else measure
        with_kl = score != "kl" and all(cell.over("kl") for cell in cells)
        panels = figure.subplots(1, 1 + with_kl, squeeze=False)[0]
        figure.set_size_inches(5.6 * len(panels), 4.4)
        against_setting(panels[0], cells, measure)
        if with_kl and score:
            against_kl(panels[1], cells, score)
    else:
        after = [x for x in names_of(cells) if x.endswith(AFTER)]
        names = [*dict.fromkeys([measure, *after])][:PANELS]
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        figure.set_size_inches(max(5.6, 3.4 * len(names)), 4.0)
        for axes, name in zip(panels, names, strict=True):
            before_and_after(axes, cells[0], name)
    for axes in panels:
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    most = max(len(cell.runs) for cell in cells)
    bars = "; bars: 95 % intervals over seeds" if most >= BARS else ""
    figure.suptitle(f"{title} (dots: seeds{bars})", fontsize=10)
    figure.savefig(path, dpi=120)


def against_setting(axes: Axes, cells: Sequence[Cell], measure: str) -> None:
    """Draws the measure over the values of the first setting, with a line for each value of the others."""
    name, *others = cells[0].values
    values = list(dict.fromkeys(cell.values[name] for cell in cells))
    places, scale = placed(values)
    labels = list(dict.fromkeys(_label(cell, others) for cell in cells))
    span = (max(places.values()) - min(places.values())) or 1.0
    for n, (label, colour, marker) in enumerate(
        zip(labels, cycle(COLOURS), cycle(MARKERS), strict=False)
    ):
        mine = [x for x in cells if _label(x, others) == label and x.over(measure)]
        mine.sort(key=lambda cell: places[cell.values[name]])
        shift = 0.02 * span * (n - (len(labels) - 1) / 2)  # so that bars stand side by side
        x = [places[cell.values[name]] + shift for cell in mine]
        axes.plot(x, [cell.column(measure).mean() for cell in mine], color=colour, linewidth=1.4)
        for at, cell in zip(x, mine, strict=True):
            y = cell.column(measure)
            _dots(axes, np.full(len(y), at - 0.015 * span), y, colour, marker)
            _mean(axes, at, cell, measure, colour, marker)
        if label:
            axes.plot([], [], color=colour, marker=marker, markersize=5, label=label)
    ticks = sorted(values, key=places.__getitem__)
    axes.set_xticks([places[x] for x in ticks], ticks)
    axes.set_xlabel(name + scale)
    axes.set_ylabel(measure.removesuffix(AFTER))
    if others:
        axes.legend(frameon=False, fontsize=8)


def against_kl(axes: Axes, cells: Sequence[Cell], score: str) -> None:
    """Draws a score against the KL to the reference, a point for each combination."""
    styles = zip(cells, cycle(COLOURS), cycle(MARKERS), strict=False)
    for cell, colour, marker in styles:
        kl, y = cell.column("kl"), cell.column(score)
        if np.isnan(y).any():
            continue
        _dots(axes, kl, y, colour, marker)
        _mean(axes, kl.mean(), cell, score, colour, marker)
        if len(cell.runs) >= BARS and (found := cell.over("kl")) and known(found):
            axes.plot([found.low, found.high], [y.mean()] * 2, color=colour, linewidth=1)
        axes.plot([], [], marker, color=colour, markersize=5, label=cell.label)
    axes.set_xlabel("KL to the reference, nats per response")
    axes.set_ylabel(score.removesuffix(AFTER))
    axes.legend(frameon=False, fontsize=7, ncols=1 if len(cells) <= ROWS else 2)


def before_and_after(axes: Axes, cell: Cell, name: str) -> None:
    """Draws a result of each seed before and after training, where there is one before."""
    before = name.removesuffix(AFTER) + ", before"
    after, colour = cell.column(name), COLOURS[0]
    x = [1.0]
    if name.endswith(AFTER) and cell.over(before):
        x = [0.0, 1.0]
        for pair in zip(cell.column(before), after, strict=True):
            axes.plot(x, pair, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(
            np.zeros(len(after)), cell.column(before), "o", color=colour, markersize=4, alpha=0.5
        )
    _dots(axes, np.ones(len(after)), after, colour, "o")
    _mean(axes, 1.08, cell, name, colour, "D")
    axes.set_xticks(x, ["before", "after"][-len(x) :])
    axes.set_xlim(-0.3, 1.4)
    axes.set_title(name.removesuffix(AFTER), fontsize=10)


def placed(values: Sequence[str]) -> tuple[dict[str, float], str]:
    """Where each value stands on the axis, and what is said of its scale; words are equally far apart."""
    try:
        x = np.array([float(value) for value in values])
    except ValueError:
        x = np.full(1, np.nan)
    if not np.isfinite(x).all():
        return {value: float(n) for n, value in enumerate(values)}, ""
    if (x > 0).all() and x.max() / x.min() >= WIDE:
        return dict(zip(values, np.log10(x).tolist(), strict=True)), " (log scale)"
    return dict(zip(values, x.tolist(), strict=True)), ""


def _label(cell: Cell, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {cell.values[name]}" for name in names)


def _dots(axes, x, y, colour: str, marker: str):
    axes.plot(x, y, marker, color=colour, markersize=4, alpha=0.35, markeredgewidth=0)


def _mean(axes, x: float, cell: Cell, name: str, colour: str, marker: str):
    """The mean over seeds, with its interval where there are seeds enough."""
    found = cell.over(name)
    if len(cell.runs) >= BARS and found and known(found):
        axes.plot([x, x], [found.low, found.high], color=colour, linewidth=1.4)
    axes.plot([x], [cell.column(name).mean()], marker, color=colour, markersize=7)
