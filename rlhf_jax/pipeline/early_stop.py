"""Early stopping: the best parameters so far, and the number of evaluations without better ones."""

from typing import Any

import jax
import numpy as np


def begin(params) -> dict[str, Any]:
    """The part of a carry before the first evaluation: `best`, its loss as `lowest`, and `since`."""
    return {"best": params, "lowest": np.float32(np.inf), "since": np.int32(0)}


def after(kept: dict[str, Any], params, loss) -> dict[str, Any]:
    """The part of a carry once `params` were found to have this loss; a better `best` is a copy."""
    if not loss < kept["lowest"]:
        return {x: kept[x] for x in ("best", "lowest")} | {"since": np.int32(kept["since"] + 1)}
    best = jax.tree.map(lambda x: x.copy(), params)
    return {"best": best, "lowest": np.float32(loss), "since": np.int32(0)}
