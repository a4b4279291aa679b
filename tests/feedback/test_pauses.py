"""A pause is offered once for each stretch of minutes or answers."""

import pytest

from feedback.web import pauses


def offers(at: list[float], minutes: float = 25, items: int = 100) -> list[int]:
    """After which answers (the first is 1) a pause is offered."""
    return [n for n in range(len(at) + 1) if pauses.due(at[:n], minutes, items)]


MINUTELY = [60.0 * i for i in range(80)]


@pytest.mark.parametrize(
    ("at", "settings", "expected"),
    [
        (MINUTELY, {}, [26, 51, 76]),
        ([float(i) for i in range(250)], {}, [100, 200]),
        ([float(i) for i in range(250)], {"items": 0}, []),
        (MINUTELY, {"minutes": 0}, []),
        (MINUTELY, {"minutes": 0, "items": 30}, [30, 60]),
        ([*MINUTELY[:20], *(x + 300 for x in MINUTELY[20:])], {}, [46, 71]),  # one was made
        ([*MINUTELY[:20], *(x + 239 for x in MINUTELY[20:])], {}, [23, 48, 73]),  # too short
        ([0.0], {}, []),
        ([], {}, []),
    ],
    ids=["minutes", "items", "no_items", "no_minutes", "both", "made", "short", "one", "none"],
)
def test_a_pause_is_offered_once_for_each_stretch(at, settings, expected):
    assert offers(at, **settings) == expected
