"""Points of small pictures on the owner's pages."""

from collections.abc import Sequence

WIDTH, HEIGHT = 600, 120


def polyline(values: Sequence[float]) -> str:
    """The points of an SVG line through values from 0 up, at equal steps from left to right."""
    top = max(values, default=0.0) or 1.0
    step = WIDTH / max(1, len(values) - 1)
    return " ".join(f"{i * step:.1f},{HEIGHT * (1 - x / top):.1f}" for i, x in enumerate(values))
