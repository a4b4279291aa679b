"""What is trained on and what is held out: a hash decides, so a side stays what it is as data grows."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def split(
    items: Iterable[Item], group_of: Callable[[Item], str], held_out: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """(items to train on, items held out): about a share `held_out` of the groups, each on one side.

    A group's side is a hash of its text and the seed. Raises ValueError where one side is empty.
    """
    sides = [], []
    for item in items:
        digest = hashlib.sha256(f"{seed}:{group_of(item)}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < held_out * 2**64].append(item)
    if not all(sides):
        raise ValueError(
            f"of {len(sides[0]) + len(sides[1])} items {len(sides[1])} are held out: give more of them, "
            f"or another data.held_out than {held_out}"
        )
    return sides
