"""Names of files that an output has beside it by number: `out_iter05.nii.gz` of `out.nii.gz`."""

from __future__ import annotations

import os
import re
from pathlib import Path

NUMBER = r"_iter[0-9]{1,9}"
_AT_END = re.compile(rf"{NUMBER}\Z")


def numbered_name(path: str, suffix: str, number: int, digits: int) -> str:
    """The name of one of an output's numbered files.

    path : str      that of the output
    suffix : str    the end of it that stays the end

    >>> numbered_name("a/o.nii.gz", ".nii.gz", 5, 2)
    'a/o_iter05.nii.gz'
    """
    stem = path[: len(path) - len(suffix)]
    return f"{stem}_iter{number:0{digits}d}{path[len(stem) :]}"


def without_number(stem: str) -> str:
    """The stem of the output that a stem belongs to; the stem itself if it has no number.

    >>> without_number("o_iter05"), without_number("o")
    ('o', 'o')
    """
    return _AT_END.sub("", stem)


def numbered_files(path: str, suffix: str) -> list[str]:
    """The numbered files that lie beside an output, in order; [] if its folder cannot be listed."""
    target = Path(path)
    stem = target.name[: len(target.name) - len(suffix)]
    found = []
    try:
        names = os.listdir(target.parent)
    except OSError:
        return []
    for name in names:
        own = name[: len(name) - len(suffix)]
        if name.lower().endswith(suffix.lower()) and own != stem and without_number(own) == stem:
            found.append(name)
    return [os.path.join(os.path.dirname(path), name) for name in sorted(found)]
