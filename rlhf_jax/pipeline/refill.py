"""Dynamic sampling: groups whose scores are all equal are replaced by groups of later prompts."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from rlhf_jax.pipeline.on_policy import Drawn
    from rlhf_jax.pipeline.prepare import Prepared


def with_signal(
    run: "Prepared", group: int, draw: Callable, policy, drawn: int, key
) -> tuple["Drawn", int]:
    """(batch, number of batches drawn so far), with groups whose scores are not all equal where there are
    enough.

    At most `rl.refill` extra batches are drawn (DAPO's dynamic sampling, Yu et al., 2025).
    """
    devices, rl, parts = run.devices, run.cfg.rl, []
    wanted = rl.batch_size // group
    for extra in range(rl.refill + 1):
        batch = draw(policy, drawn + extra, jax.random.fold_in(key, extra))
        scored = batch.scores()
        scored["score"] = devices.fetch(scored["score"])
        parts.append((batch.rows, devices.fetch(batch.samples), scored))
        scores = np.concatenate([scores["score"] for *_, scores in parts])
        flat = np.ptp(scores.reshape(-1, group), axis=1) == 0
        if (~flat).sum() >= wanted:
            break
    groups = np.argsort(flat, kind="stable")[:wanted]  # those with signal first
    kept = (groups[:, None] * group + np.arange(group)).ravel()
    select = lambda *x: np.concatenate(x)[kept]
    samples = jax.tree.map(select, *(samples for _, samples, _ in parts))
    scores = jax.tree.map(select, *(scores for *_, scores in parts))
    scores["score"] = devices.put_batch(scores["score"])
    rows = [row for rows, *_ in parts for row in rows]
    batch = batch._replace(
        rows=[rows[i] for i in kept], samples=devices.put_batch(samples), scores=lambda: scores
    )
    return batch, drawn + len(parts)
