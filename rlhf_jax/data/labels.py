"""Single responses labelled desirable or undesirable, from comparisons or ratings, as KTO learns them."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.comparisons import Comparison
from rlhf_jax.data.ratings import Rating, scale_of


class Label(NamedTuple):
    """A response to a prompt, desirable or not, with the key and the weight of what it comes from."""

    prompt: str
    response: str
    desirable: bool
    group: str
    weight: float


def labelled(
    items: Iterable[Comparison | Rating], train: Sequence[Comparison | Rating]
) -> list[Label]:
    """The responses of comparisons or ratings with their labels, those of one prompt side by side.

    The chosen response of a pair is desirable, the rejected one not. A rating from 0 to 1 is a label, or the
    share of votes for a desirable one; any other rating makes its response desirable where it is at least as
    high as the mean of `train`. A response whose share, or whose pair's probability, is between 0 and 1 has
    both labels, which share its weight.
    """
    share, rows = _shares(train), []
    for item in items:
        for side, response in enumerate(item.responses):
            desirable = share(item, side)
            for label, part in ((True, desirable), (False, 1 - desirable)):
                row = Label(item.prompt, response, label, item.group, item.weight * part)
                rows.append(((item.prompt, part < 0.5, side), row))
    rows.sort(key=lambda row: row[0])
    return [row for _, row in rows if row.weight]


def _shares(train: Sequence[Comparison | Rating]) -> Callable[[Comparison | Rating, int], float]:
    """`share(item, side)`: the share of people for whom a response of the item is desirable."""
    rated = np.array([(x.score, x.weight) for x in train if isinstance(x, Rating)], float)
    scale = scale_of(*rated.T) if len(rated) else None

    def share(item: Comparison | Rating, side: int) -> float:
        if isinstance(item, Comparison):
            return 1 - item.probability if side else item.probability
        if scale and scale.kind == "binary":
            return float(item.score)
        return float(item.score >= scale.mean) if scale else 0.0

    return share
