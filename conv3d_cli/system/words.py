"""Wording that messages share."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text with escapes for characters that not every file, font or terminal can hold.

    They are control characters, and bytes of file names that are not UTF-8.
    >>> print(printable("caf\udce9, a\nb\x01"))
    caf\xe9, a\nb\x01
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    # a byte that Python could not decode
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(character)[1:-1]


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, in the singular or the plural.

    noun : str          the singular
    plural : str        the plural; "" adds an s to the singular

    >>> count_of(1, "thread"), count_of(2, "thread"), count_of(2, "match", "matches")
    ('1 thread', '2 threads', '2 matches')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def percent(part: float, whole: float = 1) -> str:
    """A part in percent, to two digits; "100 %" only if it is all, "0 %" only if it is nothing.

    >>> percent(1, 3), percent(7, 7), percent(999_999, 1_000_000), percent(1, 1_000_000_000)
    ('33 %', '100 %', 'over 99 %', 'under 0.001 %')
    """
    value = 100 * part / whole
    if 99 < value < 100:
        return "over 99 %"
    if 0 < value < 0.001:
        return "under 0.001 %"
    return f"{value:.2g} %" if abs(value) < 99.5 else f"{value:.0f} %"
