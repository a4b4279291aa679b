r"""The final answer of a response, read so that a response with two answers has none.

The final answer is, by the first rule that applies:

1. The content of `\boxed{...}`. Several boxes must hold equal answers.
2. A number alone between "####" and the next one or the line's end, as in GSM8K (Cobbe et al., 2021). Several
   must be equal.
3. The last number of the text, unless an alternative stands beside it: "4 or 5", "4, 5", "4-5", "4 or five".
"""

import re
from fractions import Fraction

_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,8}|[0-9]{1,30})(?:\.[0-9]{1,30})?|\.[0-9]{1,30})"
"""Decimal digits, with or without commas at thousands; bounded, so that a search takes linear time."""
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<sign>-))?(?<![\w^])(?<!\^\{)(?<!\d[./])(?<!\d[eE][-+])\\?[$€£]?"
    rf"(?P<top>{_DIGITS})(?:/(?P<bottom>{_DIGITS}))?"
    r"(?![\d¹²³¼½¾⁰-₉]|[./^]\d|\^\{|[eE][-+]?\d)"
)
_JOINED = re.compile(r"[\s%]{0,3}(?:[,;/|&±\u2013\u2014-]|[,;]?\s?(?:and|to))?\s{0,3}[$€£-]?")
_OR = re.compile(r"[^.\n]{0,40}\bor\b[^.\n]{0,40}", re.IGNORECASE)
_OR_BEFORE = re.compile(r"\bor\s{1,3}$", re.IGNORECASE)
_OR_AFTER = re.compile(r"[\s,]{0,3}or\b", re.IGNORECASE)


def number(text: str) -> Fraction | None:
    """The final answer as an exact number; None if the text has none, or more than one.

    A number has decimal digits 0 to 9, perhaps a sign, commas at thousands, a decimal point, and a
    denominator after "/". In a box and after "####" it stands alone but for a sign of currency or per cent.
    """
    text = text.replace("\N{MINUS SIGN}", "-")
    if found := boxes(text):
        return _agreed([_alone(box) for box in found])
    lines = re.findall(r"####([^\n]*)", text)
    marked = [_alone(part) for line in lines for part in line.split("####")]
    if any(x is not None for x in marked):
        return _agreed([x for x in marked if x is not None])
    last = before = None
    for match in _NUMBER.finditer(text):
        before, last = last, match
    if last is None or (before and _alternatives(text, before, last)):
        return None
    if _OR_BEFORE.search(text, max(0, last.start() - 8), last.start()):
        return None
    return None if _OR_AFTER.match(text, last.end()) else _value(last)


def boxed(text: str) -> str | None:
    r"""The content of the text's `\boxed{...}`; None without a box, or for boxes that differ."""
    return _agreed([box.strip() or None for box in boxes(text)])


def boxes(text: str) -> list[str]:
    r"""The contents of the outermost `\boxed{...}` of a text; empty for one that is never closed."""
    found, depth, start = [], 0, 0
    for match in re.finditer(r"\\boxed\s{0,3}\{|\\.|[{}]", text):
        if not depth and match[0].startswith("\\boxed"):
            depth, start = 1, match.end()
        elif depth and match[0].endswith("{") and match[0] != "\\{":
            depth += 1
        elif depth and match[0] == "}":
            depth -= 1
            if not depth:
                found.append(text[start : match.start()])
    return found + [""] * bool(depth)


def _alone(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else."""
    text = re.sub(r"\\(?=[$%])|\\!", "", text.replace("{,}", ",")).strip()
    text = text.removesuffix(".").removesuffix("%").strip().removesuffix("$").strip()
    match = _NUMBER.fullmatch(text)
    return _value(match) if match else None


def _alternatives(text: str, one: re.Match, other: re.Match) -> bool:
    """True if two neighbouring numbers differ and read as alternatives or as a list."""
    between = text[one.end() : other.start()]
    if len(between) > 80 or _value(one) == _value(other):
        return False
    return bool(_JOINED.fullmatch(between) or _OR.fullmatch(between))


def _value(match: re.Match) -> Fraction | None:
    """The value of a match of `_NUMBER`; None for a denominator of zero."""
    top, bottom = (Fraction((match[x] or "1").replace(",", "")) for x in ("top", "bottom"))
    return (-top if match["sign"] else top) / bottom if bottom else None


def _agreed(found: list):
    """The one value of a list; None if it is empty or its values differ."""
    return found[0] if found and all(x == found[0] for x in found) else None
