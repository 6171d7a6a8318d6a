"""Units of length and time, and their spellings in files: one table for all formats.

A grid's unit is one of `UNITS`. A file may name others (angstrom, inch), which are so many of one
of these. Symbols are told apart by case ("Mm" is a megametre, "mm" a millimetre); words, and
symbols in capitals, are not.

Sources: NGFF 0.5, section "axes"; OME's XSD, UnitsLength and UnitsTime; ImageJ,
ij/io/FileOpener.java, for the spellings of the micrometre.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# length of one unit in mm
UNITS = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}

# what comes before "meter" or "metre", and before "m" -> a unit of `UNITS`, and how many of it
_METRES = {
    ("yocto", "ym"): ("nm", 1e-15),
    ("zepto", "zm"): ("nm", 1e-12),
    ("atto", "am"): ("nm", 1e-9),
    ("femto", "fm"): ("nm", 1e-6),
    ("pico", "pm"): ("nm", 1e-3),
    ("nano", "nm"): ("nm", 1.0),
    ("micro", "um"): ("um", 1.0),
    ("milli", "mm"): ("mm", 1.0),
    ("centi", "cm"): ("cm", 1.0),
    ("deci", "dm"): ("cm", 10.0),
    ("", "m"): ("m", 1.0),
    ("deca", "dam"): ("m", 10.0),
    ("hecto", "hm"): ("m", 100.0),
    ("kilo", "km"): ("m", 1e3),
    ("mega", "Mm"): ("m", 1e6),
    ("giga", "Gm"): ("m", 1e9),
    ("tera", "Tm"): ("m", 1e12),
    ("peta", "Pm"): ("m", 1e15),
    ("exa", "Em"): ("m", 1e18),
    ("zetta", "Zm"): ("m", 1e21),
    ("yotta", "Ym"): ("m", 1e24),
}
_OTHER_LENGTHS = {
    "å": ("nm", 0.1),
    "angstrom": ("nm", 0.1),
    "ångström": ("nm", 0.1),
    "ångstrom": ("nm", 0.1),
    "micron": ("um", 1.0),
    "thou": ("um", 25.4),
    "in": ("mm", 25.4),
    "inch": ("mm", 25.4),
    "inches": ("mm", 25.4),
    "ft": ("mm", 304.8),
    "foot": ("mm", 304.8),
    "feet": ("mm", 304.8),
    "yd": ("mm", 914.4),
    "yard": ("mm", 914.4),
}
LENGTHS: dict[str, tuple[str, float]] = {
    **_OTHER_LENGTHS,
    **{symbol: known for (_, symbol), known in _METRES.items()},
    **{
        prefix + word: known
        for (prefix, _), known in _METRES.items()
        for word in ("meter", "metre")
    },
}
"""Spelling -> a unit of `UNITS`, and how many of it; words without the s of the plural."""


class TimeUnit(NamedTuple):
    """A unit of time.

    seconds : float     its length
    word : str          its name in NGFF, and in English
    ome : str           its symbol in OME-XML
    """

    seconds: float
    word: str
    ome: str


TIME_UNITS = {
    "ns": TimeUnit(1e-9, "nanosecond", "ns"),
    "us": TimeUnit(1e-6, "microsecond", "µs"),
    "ms": TimeUnit(1e-3, "millisecond", "ms"),
    "s": TimeUnit(1.0, "second", "s"),
    "min": TimeUnit(60.0, "minute", "min"),
    "h": TimeUnit(3600.0, "hour", "h"),
    "d": TimeUnit(86400.0, "day", "d"),
}
"""The package's name of a unit of time -> its facts."""

_TIMES = {
    **{name: name for name in TIME_UNITS},
    **{unit.word: name for name, unit in TIME_UNITS.items()},
    "sec": "s",
    "msec": "ms",
    "millisec": "ms",
    "usec": "us",
    "microsec": "us",
    "nsec": "ns",
    "hr": "h",
}

NGFF_LENGTHS = {
    "nm": "nanometer",
    "um": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
}
"""Unit of `UNITS` -> its word in NGFF."""

OME_LENGTHS = {**{unit: unit for unit in UNITS}, "um": "µm"}
"""Unit of `UNITS` -> its symbol in OME-XML, with the micro sign U+00B5."""

# of OME's schema, UnitsLength
OME_SYMBOLS = (
    *("nm", "µm", "mm", "cm", "m", "pm", "fm", "am", "zm", "ym", "dm", "dam", "hm", "km"),
    *("Mm", "Gm", "Tm", "Pm", "Em", "Zm", "Ym", "Å", "thou", "li", "in", "ft", "yd", "mi"),
    *("ua", "ly", "pc", "pt", "pixel", "reference frame"),
)

IMAGEJ_LENGTHS = {**{unit: unit for unit in UNITS}, "um": "micron"}
"""Unit of `UNITS` -> its name in ImageJ."""

# of the micro sign and the Greek letter: ImageJ's literal text, and UTF-8 that was read as Latin-1
_MICRO = re.compile(r"\\u00b5|\\u03bc|\xc2\xb5|\xce\xbc|\xb5|\u03bc", re.IGNORECASE)


def _spelled(text: str | None) -> str:
    return _MICRO.sub("u", (text or "").strip().strip("\0").strip())


def known_length(text: str | None) -> tuple[str, float] | None:
    """A unit of length as a unit of `UNITS`, and how many of it; None if it is not one.

    >>> known_length("µm"), known_length("Micrometres"), known_length("angstrom")
    (('um', 1.0), ('um', 1.0), ('nm', 0.1))
    >>> known_length("Mm"), known_length("MM"), known_length("pixel"), known_length("")
    (('m', 1000000.0), ('mm', 1.0), None, None)
    """
    word = _spelled(text)
    for spelling in (word, word.lower()):
        for name in (spelling, spelling.removesuffix("s") if len(spelling) > 3 else spelling):
            if name in LENGTHS:
                return LENGTHS[name]
    return None


def unit_name(text: str | None) -> str | None:
    """The package's name for a unit of length; None for others (`pixel`, `inch`, empty).

    >>> unit_name("µm"), unit_name("Micron"), unit_name("pixel"), unit_name("inch")
    ('um', 'um', None, None)
    """
    known = known_length(text)
    return known[0] if known is not None and known[1] == 1 else None


def time_unit(text: str | None) -> str | None:
    """The package's name for a unit of time; None for others (`frame`, empty).

    >>> time_unit("Seconds"), time_unit("µs"), time_unit("frame")
    ('s', 'us', None)
    """
    word = _spelled(text).lower()
    return _TIMES.get(word) or _TIMES.get(word.removesuffix("s") if len(word) > 2 else word)


def seconds_of(text: str | None) -> float | None:
    """The length of a unit of time in seconds; None if the text is not one.

    >>> seconds_of("min"), seconds_of("frame")
    (60.0, None)
    """
    name = time_unit(text)
    return None if name is None else TIME_UNITS[name].seconds
