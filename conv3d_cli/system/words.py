"""Wording that messages share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from conv3d_cli.errors import suggestion


def unknown_suffix(path: str, known: Iterable[str], what: str = "format") -> str:
    """What is wrong with a file name that ends with no known suffix, for messages.

    known : iterable of str     suffixes, with the dot; the nearest one is named
    what : str                  the thing that has a suffix

    >>> unknown_suffix("a.b/scan.nii.gzz", [".nii", ".nii.gz", ".npy"])
    "no format has the suffix .gzz; did you mean '.nii.gz'?"
    >>> unknown_suffix("a.xyz", [".npy"]), unknown_suffix("README", [".npy"], "kernel file")
    ('no format has the suffix .xyz', 'a kernel file needs a suffix')
    """
    parts = [part.lower() for part in Path(path).suffixes[-2:]]
    if not parts:
        return f"a {what} needs a suffix"
    names = list(known)
    hints = (suggestion("".join(parts[start:]), names) for start in range(len(parts)))
    hint = next(filter(None, hints), "").rstrip()
    return f"no {what} has the suffix {parts[-1]}" + (f"; {hint}" if hint else "")


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


TERMINAL = "\n\t"  # control characters that texts for terminals keep
# control characters, those that turn the direction of letters, and what is no character at all
_NOT_PLAIN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(17))
    + "]"
)


def plain_text(text: str, keep: str = "") -> str:
    r"""Text that terminals and all file formats take: what is no letter or sign becomes its escape.

    These are control characters, which may clear a screen or turn the direction of letters, and
    bytes of file names that are not UTF-8.

    keep : str      control characters to keep, as `TERMINAL`

    >>> plain_text("a\x01b\n"), plain_text("caf\udce9.npy"), plain_text("µm")
    ('a\\x01b\\n', 'caf\\xe9.npy', 'µm')
    >>> plain_text("a\x1b[2Jb.npy\n", keep=TERMINAL), plain_text("a\u202eyp.npy")
    ('a\\x1b[2Jb.npy\n', 'a\\u202eyp.npy')
    """
    return _NOT_PLAIN.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as Python holds it (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
