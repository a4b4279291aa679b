"""The picture of the report on people's judgements."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

FLAGGED, FINE = "#c0392b", "#2f7ed8"


def picture(found: dict[str, Any]) -> Figure:
    """Four panels: agreement, annotators, the place of the first response, and time."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (agreed, people), (place, time) = figure.subplots(2, 2)
    alphas = [found["agreement"][name] for name in ("degree", "side")]
    values = np.array([[x["alpha"], x["low"], x["high"]] for x in alphas], float)
    bars(agreed, ["how much better\n(ordinal)", "which is better\n(nominal)"], *values.T)
    agreed.axvline(0, color="0.6", lw=1)
    agreed.set_title("Krippendorff's alpha between people", fontsize=10)
    for axes, name, title in (
        (people, "consensus", "Agreement with what the others say"),
        (place, "position", "How often the response shown first was chosen"),
    ):
        shown = [x for x in found["people"] if x[name]["n"]]
        ends = [[x[name]["mean"], *x[name]["interval"]] for x in shown]
        colours = [FLAGGED if name in x["flags"] else FINE for x in shown]
        means, low, high = np.array(ends, float).reshape(-1, 3).T
        bars(axes, [x["name"] for x in shown], means, low, high, colours)
        axes.axvline(0.5, color="0.6", lw=1)
        axes.set_xlim(0, 1)
        axes.set_title(f"{title} (red: flagged)", fontsize=10)
    parts = found["over_time"]
    x = np.arange(1, len(parts) + 1)
    time.plot(x, [y["agreed"] / y["of"] if y["of"] else np.nan for y in parts], "o-", color=FINE)
    time.set_ylim(0, 1)
    time.set_ylabel("agreement with the others", color=FINE)
    time.set_xlabel("tenths of the judgements")
    seconds = time.twinx()
    seconds.plot(x, np.array([y["seconds"] for y in parts], float), "s--", color="#e0722a")
    seconds.set_ylim(bottom=0)
    seconds.set_ylabel("seconds, median", color="#e0722a")
    time.set_title("Over time", fontsize=10)
    return figure


def bars(axes, names, means, low, high, colours=None):
    """Points with their intervals, a line each, the first on top."""
    at = np.arange(len(names))[::-1]
    colours = colours or [FINE] * len(names)
    axes.hlines(at, low, high, color=colours, lw=2)
    axes.scatter(means, at, color=colours, zorder=2)
    axes.set_yticks(at, names, parse_math=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
