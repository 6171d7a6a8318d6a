"""Voxel sizes in the dialects of microscopes and slide scanners, which have tags of their own.

Source of each: the vendor's tag or text, as tifffile decodes it. A new dialect is a function and a
line in `DIALECTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from conv3d_cli.formats.tiff.metadata import (
    Description,
    Sizes,
    make_grid,
    positive,
    unit_length,
)
from conv3d_cli.model.units import unit_name
from conv3d_cli.model.volume import Axes, Facts

CENTIMETRE = 3  # TIFF's ResolutionUnit
MICRONS = 1e6  # in a metre

Found = tuple[Sizes, str, float | None]  # sizes (D, H, W), their unit, seconds between time points


def read_vendor(tiff: Any, series: Any, axes: Axes) -> Description:
    """What the tags of a vendor say of the voxel sizes; empty for other files."""
    for mark, read in DIALECTS:
        if not getattr(tiff, f"is_{mark}", False):
            continue
        found = read(tiff, series)
        if found is None:
            continue
        (d, h, w), unit, interval = found
        h, w = h or w, w or h
        if h is None or w is None or unit_length(unit) is None:
            continue
        grid = make_grid((d, h, w), (unit, unit, unit))
        notes: tuple[str, ...] = ()
        if d is None and axes.size("z") > 1:
            notes = (f"the file gives no z spacing: it is taken as 1 {unit_name(unit) or unit}",)
        return Description(
            replace(grid, guesses=notes),
            (unit, unit, unit),
            facts=Facts(time_step=(interval, "s") if interval else None),
            notes=notes,
        )
    return Description()


def _lsm(tiff: Any, series: Any) -> Found | None:
    """Zeiss LSM: metres in CZ_LSMINFO."""
    facts = tiff.lsm_metadata or {}
    d, h, w = (_times(facts.get(f"VoxelSize{a}"), MICRONS) for a in "ZYX")
    return (d, h, w), "um", positive(facts.get("TimeInterval", facts.get("TimeIntervall")))


def _stk(tiff: Any, series: Any) -> Found | None:
    """MetaMorph: UIC tags; a distance to the next plane for each plane."""
    facts = tiff.stk_metadata or {}
    if not facts.get("SpatialCalibration", True):
        return None
    distances = {abs(float(z)) for z in facts.get("ZDistance", ()) if math.isfinite(float(z))}
    d = positive(distances.pop()) if len(distances) == 1 else None
    h, w = (_times(facts.get(f"{a}Calibration"), 1.0) for a in "YX")
    return (d, h, w), str(facts.get("CalibrationUnits") or "um").strip("\0 "), None


def _fluoview(tiff: Any, series: Any) -> Found | None:
    """Olympus FluoView: dimensions with a resolution and a unit each."""
    known = {
        str(one[0]).strip().upper(): one for one in (tiff.fluoview_metadata or {})["Dimensions"]
    }
    if "X" not in known:
        return None
    unit = str(known["X"][4]).strip()
    sizes = [
        _times(known[a][3], 1.0) if a in known and str(known[a][4]).strip() == unit else None
        for a in "ZYX"
    ]
    return (sizes[0], sizes[1], sizes[2]), unit, None


def _sis(tiff: Any, series: Any) -> Found | None:
    """Olympus SIS: metres."""
    facts = tiff.sis_metadata or {}
    return (
        (
            None,
            _times(facts.get("pixelsizey"), MICRONS),
            _times(facts.get("pixelsizex"), MICRONS),
        ),
        "um",
        None,
    )


def _micromanager(tiff: Any, series: Any) -> Found | None:
    """Micro-Manager: its summary."""
    summary = (tiff.micromanager_metadata or {}).get("Summary") or {}
    size = positive(summary.get("PixelSize_um"))
    interval = positive(summary.get("Interval_ms"))
    return (
        (positive(summary.get("z-step_um")), size, size),
        "um",
        interval / 1000 if interval else None,
    )


def _svs(tiff: Any, series: Any) -> Found | None:
    """Aperio: microns per pixel, in the text of the image."""
    for part in str(series.keyframe.description).split("|"):
        key, _, value = part.partition("=")
        if key.strip() == "MPP":
            size = positive(value)
            return (None, size, size), "um", None
    return None


def _slide(tiff: Any, series: Any) -> Found | None:
    """Slide scanners that mean their resolution per cm."""
    tags = series.keyframe.tags
    if tags.valueof(296) != CENTIMETRE:
        return None
    w, h = (
        _times(tag[1] / tag[0], 1e4) if tag and tag[0] else None
        for tag in (tags.valueof(282), tags.valueof(283))
    )
    return (None, h, w), "um", None


def _times(value: Any, factor: float) -> float | None:
    """A positive number from a file, times a factor, rounded to 12 digits; None if it is not one.

    >>> _times("2e-07", 1e6), _times(0, 1.0), _times(None, 1.0)
    (0.2, None, None)
    """
    number = positive(value)
    return None if number is None else float(f"{number * factor:.12g}")


# name of the dialect in tifffile, and its reader
DIALECTS: tuple[tuple[str, Callable[[Any, Any], Found | None]], ...] = (
    ("lsm", _lsm),
    ("stk", _stk),
    ("fluoview", _fluoview),
    ("sis", _sis),
    ("micromanager", _micromanager),
    ("svs", _svs),
    ("ndpi", _slide),
    ("scn", _slide),
    ("qpi", _slide),
)
