"""What files say of their values that is not applied: marks of missing voxels, packed numbers.

Source: CF conventions 1.11, 2.5.1 (missing data) and 8.1 (packed data), as netCDF4 and xarray write
them into HDF5 and Zarr; GDAL's TIFF tag 42113; DICOM PS3.3, C.7.5.1.1.2 (Pixel Padding Value).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from conv3d_cli.errors import setting

MARKS = ("_FillValue", "missing_value")
CONVENTIONS = ("scale_factor", "add_offset", *MARKS)  # what `convention_notes` looks at


class MissingNote(str):
    """A note that a file marks missing voxels by a number.

    value : float   of those voxels
    word : str      what the file calls it
    takes : bool    whether the job that reads the file can be told of a missing value
    """

    value: float
    word: str
    takes: bool

    def __new__(cls, value: float, word: str, takes: bool = True) -> MissingNote:
        text = f"voxels of {value:.17g} are missing by its {word}; they count as values"
        cure = f" without {setting('missing', f'{value:.17g}')}" if takes else ""
        note = super().__new__(cls, text + cure)
        note.value, note.word, note.takes = value, word, takes
        return note

    def __getnewargs__(self) -> tuple[Any, ...]:  # for workers
        return self.value, self.word, self.takes


def missing_note(value: Any, word: str) -> tuple[str, ...]:
    """A note that a file marks missing voxels by a number; () if the value is not a finite one.

    word : str      what the file calls it

    >>> missing_note(-9999.0, "_FillValue")
    ("voxels of -9999 are missing by its _FillValue; they count as values without missing='-9999'",)
    >>> missing_note("nan", "GDAL_NODATA"), missing_note(None, "_FillValue")
    ((), ())
    """
    number = _number(value)
    return () if number is None else (MissingNote(number, word),)


def notes_for(
    notes: Iterable[str], value: float | None, takes_missing: Callable[[], bool]
) -> tuple[str, ...]:
    """The notes of a file as they are true of a job that reads it.

    value : float or None       that the job takes as missing, as the file stores it
    takes_missing : callable    whether its command has such an option; few files need to ask

    >>> notes = missing_note(-9999.0, "_FillValue")
    >>> notes_for(notes, -9999, lambda: True), notes_for(notes, None, lambda: True) == notes
    ((), True)
    >>> notes_for(notes, None, lambda: False)
    ('voxels of -9999 are missing by its _FillValue; they count as values',)
    """
    found = []
    for note in notes:
        if isinstance(note, MissingNote):
            if note.value == value:
                continue
            note = MissingNote(note.value, note.word, takes_missing())
        found.append(note)
    return tuple(found)


def convention_notes(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on attributes of an array that give its values another meaning, as CF has them.

    >>> convention_notes({"scale_factor": 0.5, "add_offset": [10]})
    ('its values are packed (value = stored * 0.5 + 10) and are used as they are stored',)
    >>> convention_notes({"scale_factor": 1.0, "_FillValue": "AAAAAAAA+H8="})
    ()
    """
    factor, offset = (_number(attributes.get(name)) for name in ("scale_factor", "add_offset"))
    factor, offset = 1.0 if factor is None else factor, offset or 0.0
    notes: tuple[str, ...] = ()
    if (factor, offset) != (1.0, 0.0):
        notes = (
            f"its values are packed (value = stored * {factor:.6g} + {offset:.6g}) and are used as "
            "they are stored",
        )
    marks = [missing_note(attributes.get(name), name) for name in MARKS]
    return notes + next(filter(None, marks), ())


def _number(value: Any) -> float | None:
    """A finite number, alone in its array or text; else None."""
    if isinstance(value, (bool, np.bool_)) or np.size(value) != 1:
        return None
    try:
        number = float(np.ravel(value)[0])
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
