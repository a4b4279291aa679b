"""Diversity of a set of texts: distinct-n (Li et al., 2016), and the share of different texts."""

from collections.abc import Sequence


def distinct(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams of words over the number of n-grams, in all texts together; 0 without any.

    It falls as the number of texts grows: compare sets of one size.
    """
    grams = []
    for text in texts:
        words = text.split()
        grams += zip(*(words[i:] for i in range(n)), strict=False)
    return len({*grams}) / len(grams) if grams else 0.0


def different(texts: Sequence[str]) -> float:
    """Number of different texts over the number of texts; 0 without any."""
    return len({*texts}) / len(texts) if texts else 0.0
