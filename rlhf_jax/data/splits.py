"""Split into training and held-out rows by a hash, so that a row keeps its side as data grow."""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")

_WRITTEN = re.compile(
    r"\s*Human:(.*?)(\n\nAssistant:|\Z)", re.DOTALL
)  # a dialogue, as HH writes it


def words(text: str) -> str:
    """The text with single spaces in place of all white space."""
    return " ".join(text.split())


def group_of(text: str) -> str:
    """The key of all rows that answer one prompt, however they are written: the prompt's words.

    A dialogue that is written out as "\\n\\nHuman: ...\\n\\nAssistant: ..." has its first human turn for a
    key, as a dialogue of messages has.
    """
    written = _WRITTEN.match(text)
    return words(written[1] if written else text)


def split(
    items: Iterable[Item],
    group_of: Callable[[Item], str],
    held_out: float,
    seed: int,
    name: str = "these data",
) -> tuple[list[Item], list[Item]]:
    """(items to train on, items held out): about a share `held_out` of the groups, each on one side.

    A group's side is a hash of its text and the seed. Raises ValueError, naming `name`, where one side is
    empty.
    """
    sides, groups = ([], []), set()
    for item in items:
        groups.add(group := group_of(item))
        digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
        sides[int.from_bytes(digest[:8], "big") < held_out * 2**64].append(item)
    if not all(sides):
        raise ValueError(
            f"{name}: all {len(sides[0]) + len(sides[1])} rows, of {len(groups)} different prompts, fall on "
            f"one side where a share of {held_out} is drawn: give more prompts, or another share"
        )
    return sides


def make_teaches(
    groups: Iterable[str], prompts: Iterable[str], texts: Iterable[str]
) -> Callable[[str, str, str], bool]:
    """`teaches(group, prompt, response)`: True where a row shares nothing with the held-out data and may be
    trained on.

    `groups` are the held-out keys, `prompts` their prompts, `texts` whole texts. A row may not be trained
    on where its group is held out; where prompt and response together begin with a held-out key or prompt
    that ends within the response (the same text, divided elsewhere); and where the response, alone or after
    its prompt, is a held-out text. A row's own prompt may begin with a whole held-out prompt: it is another
    prompt. Words are compared, not white space. The work grows with the rows times the logarithm of the
    prompts.
    """
    groups, texts = set(groups), {words(text) for text in texts} - {""}
    begins = sorted({f"{words(prompt)} " for prompt in [*groups, *prompts] if prompt.strip()})
    above, open_ones = [], []  # `above`: index of the longest other entry that begins each, or -1
    for place, text in enumerate(begins):
        while open_ones and not text.startswith(begins[open_ones[-1]]):
            open_ones.pop()
        above.append(open_ones[-1] if open_ones else -1)
        open_ones.append(place)

    def longest(text: str) -> int:
        """Length of the longest entry of `begins` that begins a text, or 0."""
        place = bisect_right(begins, text) - 1
        while place >= 0 and not text.startswith(begins[place]):
            place = above[place]
        return len(begins[place]) if place >= 0 else 0

    def teaches(group: str, prompt: str, response: str) -> bool:
        if group in groups:
            return False
        whole = words(f"{prompt} {response}")
        if whole in texts or words(response) in texts:
            return False
        found = longest(f"{whole} ")
        return not found or found <= len(words(prompt))

    return teaches
