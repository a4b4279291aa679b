"""Characters that nobody sees, or that turn a line round, made visible without changing the text.

Each stands in a `<span class="mark" data-mark="RLO">`: the style sheet writes the name before it, and keeps
its effect inside the span. The text of the page (`textContent`, what is copied) stays the text that is
stored, but for two that HTML cannot hold: NUL becomes U+2400, and half of a surrogate pair U+FFFD.
"""

import re
import unicodedata

from markupsafe import Markup, escape

NAMES = {
    0x00: "NUL",
    0x07: "BEL",
    0x08: "BS",
    0x0B: "VT",
    0x0C: "FF",
    0x0D: "CR",
    0x1B: "ESC",
    0x7F: "DEL",
    0x85: "NEL",
    0xAD: "SHY",
    0x034F: "CGJ",
    0x061C: "ALM",
    0x200B: "ZWSP",
    0x200C: "ZWNJ",
    0x200D: "ZWJ",
    0x200E: "LRM",
    0x200F: "RLM",
    0x2028: "LSEP",
    0x2029: "PSEP",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2060: "WJ",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
    0xFEFF: "BOM",
}
"""Short names of the usual ones; the others are shown as U+XXXX."""
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and signs of no width, or without ink, that Unicode files under other categories."""
JOINERS = "\u200c\u200d\ufe0e\ufe0f"
"""Parts of honest words and emoji, where other than ASCII stands before them."""
HIDDEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U000110bd\U000110cd"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff"
    rf"{FILLERS}]|\r(?!\n)"
)
"""Control and format characters but tabs and line ends, and what else has no ink."""
INSTEAD = {"\0": "\u2400", "\r": "&#13;"}
"""Spellings of those that a parser of HTML would drop or change."""


def name(character: str) -> str:
    """The short name of a character, or its number as U+XXXX."""
    code = ord(character)
    return NAMES.get(code, f"U+{code:04X}")


def _honest(character: str, before: str) -> bool:
    """True where the character belongs to a word or an emoji."""
    if character == "\ufe0f" and re.match(r"[0-9#*]", before):
        return True  # the keys of a telephone
    return character in JOINERS and not before.isascii() and unicodedata.category(before)[0] != "C"


def _marked(found: re.Match) -> str:
    character, before = found[0], found.string[max(found.start() - 1, 0) : found.start()]
    if _honest(character, before):
        return character
    written = "\ufffd" if "\ud800" <= character <= "\udfff" else INSTEAD.get(character, character)
    return f'<span class="mark" data-mark="{name(character)}">{written}</span>'


def visible(text: object) -> Markup:
    """The text as HTML: escaped, with each hidden character marked by its name."""
    return Markup(HIDDEN.sub(_marked, str(escape(str(text)))).replace("\r\n", "&#13;\n"))


def shown(text: str) -> str:
    """The text that a page has where `visible(text)` stands: equal but for NUL and surrogates."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text.replace("\0", "\u2400"))
