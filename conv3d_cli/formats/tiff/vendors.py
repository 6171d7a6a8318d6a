"""Voxel sizes in the dialects of microscopes and slide scanners, which have tags of their own.

Source of each: the vendor's tag or text, as tifffile decodes it. A new dialect is a function and a
line in `DIALECTS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

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
NDPI_HEIGHT = 65424  # Hamamatsu's tag of ZOffsetFromSlideCenter
XMP = 700
MAX_SHOWN = 8  # heights that a note names
OVERLAPPING = (
    "its tiles overlap, and stand side by side as they are stored, not stitched: export it from "
    "the scanner's program as another format"
)


class Found(NamedTuple):
    """Sizes (D, H, W), their unit, seconds between time points, and what else is to be told."""

    sizes: Sizes
    unit: str
    interval: float | None = None
    notes: tuple[str, ...] = ()


def read_vendor(tiff: Any, series: Any, axes: Axes) -> Description:
    """What the tags of a vendor say of the voxel sizes; empty for other files."""
    for mark, read in DIALECTS:
        if not getattr(tiff, f"is_{mark}", False):
            continue
        found = read(tiff, series)
        if found is None:
            continue
        (d, h, w), unit, interval, more = found
        h, w = h or w, w or h
        if h is None or w is None or unit_length(unit) is None:
            if more:
                return Description(notes=more)
            continue
        grid = make_grid((d, h, w), (unit, unit, unit))
        guesses: tuple[str, ...] = ()
        if d is None and axes.size("z") > 1:
            guesses = (f"the file gives no z spacing: it is taken as 1 {unit_name(unit) or unit}",)
        return Description(
            replace(grid, guesses=guesses),
            (unit, unit, unit),
            facts=Facts(time_step=(interval, "s") if interval else None),
            notes=(*more, *guesses),
        )
    return Description()


def _lsm(tiff: Any, series: Any) -> Found | None:
    """Zeiss LSM: metres in CZ_LSMINFO."""
    facts = tiff.lsm_metadata or {}
    d, h, w = (_times(facts.get(f"VoxelSize{a}"), MICRONS) for a in "ZYX")
    interval = positive(facts.get("TimeInterval", facts.get("TimeIntervall")))
    return Found((d, h, w), "um", interval)


def _stk(tiff: Any, series: Any) -> Found | None:
    """MetaMorph: UIC tags; a distance to the next plane for each plane."""
    facts = tiff.stk_metadata or {}
    if not facts.get("SpatialCalibration", True):
        return None
    distances = {abs(float(z)) for z in facts.get("ZDistance", ()) if math.isfinite(float(z))}
    d = positive(distances.pop()) if len(distances) == 1 else None
    h, w = (_times(facts.get(f"{a}Calibration"), 1.0) for a in "YX")
    return Found((d, h, w), str(facts.get("CalibrationUnits") or "um").strip("\0 "))


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
    return Found((sizes[0], sizes[1], sizes[2]), unit)


def _sis(tiff: Any, series: Any) -> Found | None:
    """Olympus SIS: metres."""
    facts = tiff.sis_metadata or {}
    h, w = (_times(facts.get(f"pixelsize{a}"), MICRONS) for a in "yx")
    return Found((None, h, w), "um")


def _micromanager(tiff: Any, series: Any) -> Found | None:
    """Micro-Manager: its summary."""
    summary = (tiff.micromanager_metadata or {}).get("Summary") or {}
    size = positive(summary.get("PixelSize_um"))
    interval = positive(summary.get("Interval_ms"))
    sizes = (positive(summary.get("z-step_um")), size, size)
    return Found(sizes, "um", interval / 1000 if interval else None)


def _svs(tiff: Any, series: Any) -> Found | None:
    """Aperio: microns per pixel, in the text of the image."""
    for part in str(series.keyframe.description).split("|"):
        key, _, value = part.partition("=")
        if key.strip() == "MPP":
            size = positive(value)
            return Found((None, size, size), "um")
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
    return Found((None, h, w), "um")


def _ndpi(tiff: Any, series: Any) -> Found | None:
    """Hamamatsu: as others, and the height of each plane in nanometres."""
    found = _slide(tiff, series)
    pages = list(getattr(series, "pages", ()))
    if found is None or len(pages) < 2:
        return found
    tags = [getattr(page, "tags", None) for page in pages]
    heights = [tag.valueof(NDPI_HEIGHT) if tag is not None else None for tag in tags]
    known = [height for height in heights if isinstance(height, int)]
    if len(known) < len(heights):
        return found
    steps = {after - before for before, after in pairwise(known)}
    if len(steps) == 1 and 0 not in steps:
        return found._replace(sizes=(abs(steps.pop()) / 1000, *found.sizes[1:]))
    shown = ", ".join(f"{height / 1000:g}" for height in known[:MAX_SHOWN])
    more = f" and {len(heights) - MAX_SHOWN} more" if len(heights) > MAX_SHOWN else ""
    note = f"its planes are not evenly stacked: in stored order, they are at {shown}{more} um"
    return found._replace(notes=(f"{note}; a 3-D kernel takes them for even",))


def _bif(tiff: Any, series: Any) -> Found | None:
    """Ventana: microns per pixel, and tiles that overlap, in the XML of the scanner."""
    texts = [page.tags.valueof(XMP) for page in tiff.pages if getattr(page, "tags", None)]
    text = b"".join(t if isinstance(t, bytes) else str(t).encode() for t in texts if t is not None)
    found = re.search(rb'\bScanRes="([^"]*)"', text)
    size = positive(found[1].decode(errors="replace")) if found else None
    overlaps = re.findall(rb'\bOverlap[XY]="([^"]*)"', text)
    notes = () if all(positive(n.decode("latin-1")) is None for n in overlaps) else (OVERLAPPING,)
    return Found((None, size, size), "um", notes=notes)


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
    ("ndpi", _ndpi),
    ("scn", _slide),
    ("qpi", _slide),
    ("bif", _bif),
)
