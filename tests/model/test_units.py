"""Units of length and time: one table for all formats, with every spelling that files have."""

from __future__ import annotations

import pytest

from conv3d_cli.model.units import (
    IMAGEJ_LENGTHS,
    NGFF_LENGTHS,
    OME_LENGTHS,
    TIME_UNITS,
    UNITS,
    known_length,
    time_unit,
    unit_name,
)

# in metres, from the SI brochure and the international yard
METRES = {
    "nm": 1e-9, "nanometer": 1e-9, "nanometre": 1e-9, "Nanometers": 1e-9, "nanometres": 1e-9,
    "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "\\u00B5m": 1e-6, "Âµm": 1e-6, "micron": 1e-6,
    "Microns": 1e-6, "micrometer": 1e-6, "micrometre": 1e-6, "micrometers": 1e-6,
    "MICROMETRES": 1e-6, "mm": 1e-3, "MM": 1e-3, "millimetre": 1e-3, "millimetres": 1e-3,
    "cm": 1e-2, "centimetre": 1e-2, "dm": 0.1, "m": 1, "metre": 1, "meters": 1, "km": 1e3,
    "kilometre": 1e3, "Mm": 1e6, "Pm": 1e15, "pm": 1e-12, "Å": 1e-10, "angstrom": 1e-10, "Angstroms": 1e-10,
    "inch": 0.0254, "inches": 0.0254, "in": 0.0254, "foot": 0.3048, "feet": 0.3048, "yd": 0.9144,
}  # fmt: skip


@pytest.mark.parametrize("text", METRES)
def test_lengths(text: str) -> None:
    found = known_length(f" {text}\0")
    assert found is not None
    assert found[1] * UNITS[found[0]] / 1000 == pytest.approx(METRES[text], rel=1e-12)
    assert (unit_name(text) is not None) == (found[1] == 1)


@pytest.mark.parametrize(
    "text", ["pixel", "pixels", "voxel", "", None, "reference frame", "s", "second", "pt", "a.u."]
)
def test_what_is_not_a_length(text: str | None) -> None:
    assert known_length(text) is None
    assert unit_name(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("s", 1), ("sec", 1), ("Seconds", 1), ("ms", 1e-3), ("millisecond", 1e-3), ("msec", 1e-3),
     ("µs", 1e-6), ("us", 1e-6), ("microseconds", 1e-6), ("ns", 1e-9), ("min", 60),
     ("minutes", 60), ("h", 3600), ("hour", 3600), ("day", 86400), ("frame", None), ("", None),
     (None, None)],
)  # fmt: skip
def test_times(text: str | None, seconds: float | None) -> None:
    name = time_unit(text)
    assert (None if name is None else TIME_UNITS[name].seconds) == seconds


@pytest.mark.parametrize("words", [NGFF_LENGTHS, OME_LENGTHS, IMAGEJ_LENGTHS])
def test_every_word_that_is_written_is_read(words: dict[str, str]) -> None:
    assert {unit: unit_name(word) for unit, word in words.items()} == {unit: unit for unit in UNITS}
    assert {time_unit(unit.word) for unit in TIME_UNITS.values()} == set(TIME_UNITS)
    assert {time_unit(unit.ome) for unit in TIME_UNITS.values()} == set(TIME_UNITS)
