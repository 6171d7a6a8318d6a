"""Wording that messages share."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the singular or the plural.

    noun : str          the singular
    plural : str        the plural; "" adds an s to the singular

    >>> count_of(1, "thread"), count_of(2, "thread"), count_of(2, "match", "matches")
    ('1 thread', '2 threads', '2 matches')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
