"""Forms of the words that are written into a script or a manifest."""

import re

WORD = r"[\w.,@+-]*"
WORDS = "letters, digits and _ . , @ + -"


def check_form(name: str, value: str, pattern: str, want: str) -> None:
    """Raises ValueError for a value with a line break, or with a blank that could change what is sent."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{name} = {value!r}: write {want}")
