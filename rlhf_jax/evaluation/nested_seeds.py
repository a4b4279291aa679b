"""Means and intervals over nested seeds: of the data, of the reward model on it, of RL against that model.

An interval over prompts is about one trained policy on other prompts. A claim about a method is about other
runs of it: every stage draws anew, and runs that share a stage are not independent.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num

from rlhf_jax.evaluation.intervals import Interval, percentile_interval


def interquartile_mean(
    values: Num[np.ndarray, "..."], axis: int | None = None
) -> Float[np.ndarray, "..."] | np.floating:
    """The mean of the middle half of the values (Agarwal et al., 2021), over `axis` or over all.

    Of n sorted values exactly n / 4 are left out at each end, with a fraction of the next if n / 4 is no
    whole number: for 1, 2, 6 it is (0.25 1 + 1 2 + 0.25 6) / 1.5. It equals scipy.stats.trim_mean(values,
    0.25) if 4 divides n; that function rounds n / 4 down. Raises ValueError for no values.
    """
    values = np.asarray(values, np.float64)
    values = np.sort(values.reshape(-1) if axis is None else np.moveaxis(values, axis, -1))
    n = values.shape[-1]
    if not n:
        raise ValueError("values are empty: at least one is needed")
    edges = np.clip(np.arange(n + 1), n / 4, 3 * n / 4)
    return values @ (np.diff(edges) / (n / 2))


def nested_bootstrap(
    values: Num[np.ndarray, "..."],
    statistic: Callable = interquartile_mean,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A statistic over all runs, and its bootstrap interval under other seeds at every level.

    `values` [data seeds, reward seeds, RL seeds, ...] is dense, and an axis is nested in those before it:
    reward seed 0 of one data seed is no relative of reward seed 0 of another. Each resample draws data
    seeds with replacement; within each that was drawn, anew, its reward seeds; and so on (a multistage
    bootstrap: Davison and Hinkley, 1997, section 3.8). The percentile interval is widened for the number
    of seeds at the top level, which dominates it. A level of one seed adds nothing, so the interval
    ignores it, and the top is the first level with more; for a single run the interval is infinite.
    `statistic(values, axis)` is the interquartile mean, or np.mean.

    Compare two methods on the same seeds by the interval of `a - b`, in which common effects cancel.
    Raises ValueError for no values, or a value that is not finite.

    Coverage of 95 % intervals for normal effects, for the interquartile mean (for the mean): 2, 3, 5 and
    10 data seeds, one run in each, .93 (.93), .92 (.93), .97 (.94), .97 (.95); 3 x 3 x 3 and 10 x 3 x 2
    runs, where data seeds deviate twice as far as the other two, .98 (.98), .98 (.97); 10 x 3 x 2 where
    only the policy's seeds matter 1.00 (1.00), because the interval cannot know that.
    """
    values = np.asarray(values, np.float64)
    if not values.ndim or not values.size:
        raise ValueError(f"values have the shape {values.shape}: at least one seed is needed")
    if not np.all(np.isfinite(values)):
        where = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise ValueError(f"values{list(where)} is {values[where]}: every run needs a finite value")
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    chunk = max(1, 1_000_000 // values.size)  # bounds the memory
    for start in range(0, resamples, chunk):
        drawn = np.broadcast_to(values, (min(chunk, resamples - start), *values.shape))
        for axis in range(1, drawn.ndim):
            rows = rng.integers(drawn.shape[axis], size=drawn.shape[: axis + 1])
            rows = rows.reshape(rows.shape + (1,) * (drawn.ndim - rows.ndim))
            drawn = np.take_along_axis(drawn, rows, axis)
        found[start : start + chunk] = statistic(drawn.reshape(len(drawn), -1), axis=1)
    top = next((seeds for seeds in values.shape if seeds > 1), 1)
    return percentile_interval(statistic(values.reshape(-1), axis=0), found, top, level)
