"""Pictures of the studies, as PNG files."""

import numpy as np
from matplotlib.figure import Figure

from rlhf_jax.evaluation.nested_seeds import nested_bootstrap

COLOURS = ("#2f7ed8", "#e0722a", "#2a9d6f", "#b0529c", "#8a6d3b", "#444444", "#c23b3b")


def band(axes, curves, grid, colour, label, style="-"):
    """Draws the mean of curves (x, y) over seeds on the part of `grid` that all cover, and a 95 % band."""
    end = min(x.max() for x, _ in curves)
    grid = grid[grid <= end]
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    axes.plot(grid, values.mean(axis=0), style, color=colour, linewidth=1.7, label=label)
    if len(curves) > 2:
        ends = [nested_bootstrap(column, np.mean, resamples=400) for column in values.T]
        low, high = np.array([(x.low, x.high) for x in ends]).T
        axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)


def overoptimization(path, panels, frontiers, grammar):
    """Draws gold and proxy against the root of KL: a row for each gold, best of n left, RL right.

    `panels[gold][way]` are a label, the (KL, gold, proxy) of each seed, and the curve fitted to the lower
    half of their KL or None; `frontiers[gold]` is the frontier of the reference, and `grammar` the exact one
    of the grammar.
    """
    kinds = list(panels)
    figure = Figure(figsize=(11, 4.2 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, (way, cells) in zip(line, panels[kind].items(), strict=True):
            ends = [min(np.sqrt(kl).max() for kl, _, _ in seeds) for _, seeds, _ in cells]
            far = max(ends)
            d = np.linspace(0, far, 160)
            for colour, (label, seeds, _) in zip(COLOURS, cells, strict=False):
                gold = [(np.sqrt(kl), y) for kl, y, _ in seeds]
                proxy = [(np.sqrt(kl), y) for kl, _, y in seeds]
                band(axes, gold, d, colour, label)
                if label != "gold itself":
                    band(axes, proxy, d, colour, None, "--")
            top = frontiers[kind]
            shown = np.sqrt(top.kl) <= far
            axes.plot(np.sqrt(top.kl)[shown], top.gold[shown], "-", color="k", linewidth=1.2,
                      label="frontier of the reference")  # fmt: skip
            if kind == "symbolic":
                shown = np.sqrt(grammar.kl) <= far
                axes.plot(np.sqrt(grammar.kl)[shown], grammar.gold[shown], ":", color="k",
                          linewidth=1.2, label="frontier of the grammar, exact")  # fmt: skip
            axes.set_ylim(axes.get_ylim())  # fixed, because a fit may leave the range
            for colour, end, (_, seeds, fit) in zip(COLOURS, ends, cells, strict=False):
                if fit:
                    start = np.mean([gold[0] for _, gold, _ in seeds])
                    x = np.linspace(0.02, end, 120)
                    axes.plot(x, start + fit.predict(x**2), ":", color=colour, linewidth=1)
            axes.set_title(f"{kind} gold, {way}", fontsize=11)
            ticks = [t for t in (0, 0.25, 1, 2, 4, 6, 9, 16, 25, 36, 64) if t <= far**2]
            axes.set_xticks(np.sqrt(ticks), [f"{t:g}" for t in ticks])
            axes.set_xlabel("KL to the reference, nats a response (root scale)")
            axes.set_ylabel("score a response")
            axes.grid(alpha=0.15)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=8, title_fontsize=8,
                      title="pairs (gold solid, proxy dashed,\nfit to half the KL dotted)")  # fmt: skip
    for axes in grid[:, 1]:
        control = [line for line in axes.lines if line.get_label() == "gold itself"]
        axes.legend(handles=control, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def by_size(path, table):
    """Draws the accuracy of reward models and the gold of their best of n, by size and pairs."""
    rows = [row for row in table if row["policy"] == "best of n" and "accuracy" in row]
    kinds, columns = (
        list(dict.fromkeys(row["gold"] for row in rows)),
        ("accuracy", "gold at the end"),
    )
    figure = Figure(figsize=(11, 4 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for line, kind in zip(grid, kinds, strict=True):
        for axes, name in zip(line, columns, strict=True):
            for colour, size in zip(
                COLOURS, dict.fromkeys(r["reward model"] for r in rows), strict=False
            ):
                mine = [r for r in rows if r["gold"] == kind and r["reward model"] == size]
                if not mine:
                    continue
                x, y = [r["pairs"] for r in mine], np.array([r[name]["mean"] for r in mine])
                ends = np.array([[r[name]["low"], r[name]["high"]] for r in mine]).T
                axes.errorbar(
                    x, y, np.abs(ends - y), color=colour, capsize=3, marker="o", label=size
                )
            axes.set_xscale("log")
            axes.set_xlabel("comparisons")
            axes.set_title(f"{kind} gold: {name} of best of n" if name != "accuracy" else
                           f"{kind} gold: accuracy of the reward model", fontsize=11)  # fmt: skip
            axes.grid(alpha=0.15)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=8, title="parameters")
    figure.savefig(path, dpi=120)


def comparison(path, curves, points, frontier, matched):
    """Draws gold against KL: `points[name]` are a method's runs, `curves[name]` (KL, gold of each seed)."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    far = 1.1 * max(max(kl) for kl, _ in points.values())
    for colour, name in zip(COLOURS, points, strict=False):
        axes.scatter(*points[name], s=10, color=colour, alpha=0.35, linewidths=0)
        kl, golds = curves[name]
        known = np.isfinite(golds).all(axis=0)
        if known.any():
            ends = [nested_bootstrap(y, np.mean, resamples=400) for y in golds[:, known].T]
            mean, low, high = np.array(ends).T
            axes.plot(kl[known], mean, color=colour, linewidth=1.8, label=name)
            axes.fill_between(kl[known], low, high, color=colour, alpha=0.15, linewidth=0)
    shown = frontier.kl <= far
    axes.plot(frontier.kl[shown], frontier.gold[shown], color="k", linewidth=1.2, label="frontier")
    for kl in matched:
        axes.axvline(kl, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlim(0, far)
    axes.set_xlabel("KL to the reference, nats a response")
    axes.set_ylabel("gold, a response")
    axes.grid(alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
