"""When to offer a pause: after some minutes, or some judgements, of work without one."""

from collections.abc import Sequence

import sqlalchemy as sa

from feedback.store import schema

REST = 300.0
"""Seconds without an answer that are a pause."""
LOOK_BACK = 12 * 3600.0
"""Seconds that a stretch of work may last."""


def times(c: sa.Connection, annotator: int, now: float) -> list[float]:
    """The times of a person's answers in the last hours, in seconds since 1970, the first one first."""
    x = schema.judgement
    said = x.c.annotator == annotator, x.c.kind != "undo", x.c.at > now - LOOK_BACK
    return list(c.scalars(sa.select(x.c.at).where(*said).order_by(x.c.at)))


def due(at: Sequence[float], minutes: float, items: int) -> bool:
    """True where the last of the answers at these times crosses a multiple of `minutes` or `items`.

    Both count from the end of the last pause; 0 switches one off. So the offer comes once each time.
    """
    if not at:
        return False
    first = next((i for i in range(len(at) - 1, 0, -1) if at[i] - at[i - 1] >= REST), 0)
    work = [x - at[first] for x in at[first:]]
    if items and len(work) % items == 0:
        return True
    seconds = 60 * minutes
    return bool(seconds and len(work) > 1 and work[-1] // seconds > work[-2] // seconds)
