"""What a TIFF file says beside its voxels, read into a grid and written back: ImageJ's text and tifffile's JSON.

Two rules hold for all of them. Voxel sizes are read with the unit the file names and written with the same word, so that
a volume in µm stays one in µm. And what would no longer be true of the output is left out: display ranges, regions of
interest, per-plane times; slice labels follow their slices. OME's XML stands in ome.py, on the same footing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conv3d_cli.formats.tiff.series import to_number
from conv3d_cli.model.grid import UNITS, Grid, affine_from_spacing, unit_name
from conv3d_cli.model.volume import Axes, VolumeHeader, is_history

Numbers = tuple[float, float, float]  # D, H, W
Words = tuple[str | None, str | None, str | None]

# lengths the package has no name for: our unit, and how many of it
OTHER_UNITS = {
    "pm": ("nm", 1e-3),
    "å": ("nm", 0.1),
    "angstrom": ("nm", 0.1),
    "dm": ("cm", 10.0),
    "in": ("mm", 25.4),
    "inch": ("mm", 25.4),
    "inches": ("mm", 25.4),
}
IMAGEJ_WORDS = {"um": "micron"}  # as ImageJ itself calls it; the other names are the same
SECONDS = {
    "ns": 1e-9,
    "µs": 1e-6,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "min": 60.0,
    "h": 3600.0,
}

# ImageJ's keys that stay true whatever a convolution does
IMAGEJ_KEPT = ("ImageJ", "finterval", "fps", "tunit", "loop", "info", "inverty")
LARGEST = 2**32 - 1  # of the two numbers of a TIFF rational


@dataclass(frozen=True, eq=False)
class TiffMetadata:
    """What writing a TIFF file again wants to know of the one that was read.

    dialect : str       "imagej" | "ome" | "shaped" | "plain"
    axes : Axes         as stored
    units : 3 str or None       the words for the unit of each of D, H, W
    interval : float or None    seconds between time points
    items : dict        ImageJ: its description and its IJMetadata; OME: attributes of Image, Pixels and every Channel
    """

    dialect: str
    axes: Axes
    units: Words = (None, None, None)
    interval: float | None = None
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a file's text says: a grid, the words of its units, things to keep, remarks."""

    grid: Grid = field(default_factory=Grid)
    units: Words = (None, None, None)
    interval: float | None = None
    items: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------
# Units and grids


def unit_length(word: str | None) -> float | None:
    """Length of a unit in mm, None if the word is none (`pixel`).

    >>> unit_length("inch"), unit_length("pixel")
    (25.4, None)
    """
    name, count = _our_unit(word)
    return None if name is None else UNITS[name] * count


def _our_unit(word: str | None) -> tuple[str | None, float]:
    name = unit_name(word)
    if name is not None or word is None:
        return name, 1.0
    return OTHER_UNITS.get(word.strip().lower(), (None, 1.0))


def _convert(value: float, from_length: float, to_length: float) -> float:
    # rounded to what a conversion of decimal numbers can mean: 500 nm is 0.5 um, not 0.49999999999999994
    return value if from_length == to_length else float(f"{value * from_length / to_length:.14g}")


def make_grid(numbers: Numbers, words: Words, origin: Numbers | None = None) -> Grid:
    """A grid without rotation from voxel sizes (D, H, W), each in its own unit; the grid's unit is that of W.

    origin : 3 floats or None       where the world's zero lies, in voxels (as ImageJ counts)
    Numbers without a unit still tell how anisotropic the voxels are; all 1 without a unit mean nothing is known.
    """
    unit, _ = _our_unit(words[2])
    if unit is None and all(number == 1 for number in numbers):
        return Grid()
    if unit is None:
        spacing = numbers
    else:
        length = unit_length(words[2]) or 1.0
        d, h, w = (
            _convert(number, unit_length(word) or length, UNITS[unit])
            for number, word in zip(numbers, words, strict=True)
        )
        spacing = (d, h, w)
    d, h, w = (-o * s + 0.0 for o, s in zip(origin or (0.0, 0.0, 0.0), spacing, strict=True))
    return Grid(spacing, unit, affine_from_spacing(spacing, (d, h, w)))


@dataclass(frozen=True)
class Calibration:
    """Voxel sizes as they are written: D, H, W, each in the unit of its word; where the world's zero lies, in voxels."""

    numbers: Numbers
    words: Words
    origin: Numbers


def calibration(
    grid: Grid, words: Words | None, dialect_words: Mapping[str, str]
) -> tuple[Calibration | None, str]:
    """A grid as TIFF can hold it, and a note if it cannot hold all of it.

    words : 3 str or None       as the input spelled its units, to be kept; None spells them as the dialect does
    """
    if grid.spacing is None:
        return None, ""
    unit = grid.unit
    if words is None or _our_unit(words[2])[0] != unit:
        word = None if unit is None else dialect_words.get(unit, unit)
        words = (word, word, word)
    d, h, w = (
        float(
            number
            if unit is None
            else _convert(number, UNITS[unit], unit_length(word) or UNITS[unit])
        )
        for number, word in zip(grid.spacing, words, strict=True)
    )
    origin, note = _origin_in_voxels(grid)
    return Calibration((d, h, w), words, origin), note


def _origin_in_voxels(grid: Grid) -> tuple[Numbers, str]:
    if grid.affine is None or grid.spacing is None:
        return (0.0, 0.0, 0.0), ""
    matrix = grid.affine[:3, :3]
    steps = matrix.diagonal()
    if np.any(steps <= 0) or np.any(np.abs(matrix - np.diag(steps)) > 1e-6 * steps.max()):
        return (
            0.0,
            0.0,
            0.0,
        ), "TIFF holds voxel spacing but no rotation or flip: the affine is left out"
    # twelve digits: -(-3 * 0.3) / 0.3 is written as 3
    d, h, w = (
        float(f"{-world / step:.12g}") + 0.0
        for world, step in zip(grid.affine[2::-1, 3], grid.spacing, strict=True)
    )
    return (d, h, w), ""


def pixels_per_unit(spacing: float) -> tuple[int, int]:
    """The resolution 1 / spacing as a TIFF rational: two 32-bit numbers, exact for decimal spacings.

    >>> pixels_per_unit(0.3), pixels_per_unit(2.0)
    ((10, 3), (1, 2))
    """
    from fractions import Fraction

    ratio = Fraction(spacing).limit_denominator(max(1, min(LARGEST, int(LARGEST / spacing))))
    return min(max(ratio.denominator, 1), LARGEST), min(max(ratio.numerator, 1), LARGEST)


def positive(value: Any) -> float | None:
    """A number a file gives for a size, None if it is none."""
    try:
        number = abs(float(value))
    except (TypeError, ValueError):
        return None
    return number if 0 < number < math.inf else None


# --------------------------------------------------------------------------------------------------
# ImageJ


def read_imagej(
    metadata: Mapping[str, Any], resolution: Sequence[Any], unit_tag: int | None, axes: Axes
) -> Description:
    """What ImageJ's description and tags say.

    resolution : 2 rationals or None    XResolution and YResolution, pixels per unit
    unit_tag : int or None              ResolutionUnit: the unit (inch, cm) where the description names none
    Source: ImageJ, ij/io/FileOpener.java setCalibration and ij/io/FileSaver.java getDescriptionString.
    """
    unit = metadata.get("unit")
    w, h = (_pixel_size(value) for value in resolution)
    if unit is None and unit_tag == 3:
        unit = "cm"
    elif unit is None and unit_tag == 2 and (w, h) != (1 / 72, 1 / 72):
        unit = "inch"
    elif (
        unit is None and unit_tag == 2
    ):  # 72 dots per inch is what programs write that know nothing
        w = h = 1.0
    d = positive(metadata.get("spacing"))
    words = _words(metadata.get("zunit", unit), metadata.get("yunit", unit), unit)
    notes = []
    if unit_length(words[2]) is not None:
        if d is None and axes.size("z") > 1:
            notes.append(
                f"the file gives no z spacing: it is 1 {unit_name(words[2]) or words[2]}, as ImageJ takes it"
            )
        if unit_length(words[0]) is None:
            notes.append(f"'{words[0]}' is no length: the z spacing is taken in {words[2]}")
    zero = (
        to_number(metadata.get("zorigin")),
        to_number(metadata.get("yorigin")),
        to_number(metadata.get("xorigin")),
    )
    interval = positive(metadata.get("finterval"))
    second = SECONDS.get(str(metadata.get("tunit", "sec")))
    return Description(
        make_grid((1.0 if d is None else d, h, w), words, zero),
        words,
        interval * second if interval and second else None,
        dict(metadata),
        tuple(notes),
        tuple(filter(is_history, str(metadata.get("Info", "")).splitlines())),
    )


def _words(d: Any, h: Any, w: Any) -> Words:
    return tuple(None if word is None else str(word) for word in (d, h, w))  # type: ignore[return-value]


def _pixel_size(resolution: Any) -> float:
    """Units per pixel, from a rational of pixels per unit; 1 if it is none."""
    try:
        size = int(resolution[1]) / int(resolution[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return 1.0
    return size if 0 < size < math.inf else 1.0


def imagej_items(
    header: VolumeHeader, axes: Axes
) -> tuple[dict[str, Any], tuple[Any, Any] | None, str]:
    """What is written into an ImageJ file of these axes (t z c y x): metadata, resolution (x, y), and a note."""
    source = tiff_source(header)
    same = source is not None and source.dialect == "imagej"
    found, note = calibration(header.grid, source.units if same and source else None, IMAGEJ_WORDS)
    items: dict[str, Any] = {}
    resolution = None
    if found is not None:
        resolution = (pixels_per_unit(found.numbers[2]), pixels_per_unit(found.numbers[1]))
        z_word, y_word, word = found.words
        items["spacing"] = found.numbers[0]
        items["unit"] = word
        items["yunit"] = y_word if y_word != word else None
        items["zunit"] = z_word if z_word != word else None
        for key, value in zip(("zorigin", "yorigin", "xorigin"), found.origin, strict=True):
            items[key] = value or None
    if source is not None:
        if same:
            items.update((key, source.items[key]) for key in IMAGEJ_KEPT if key in source.items)
        elif source.interval:
            items["finterval"] = source.interval
        items.update(_imagej_channels(source, axes))
        items["Labels"] = _labels(source, header, axes)
    if header.components and "s" not in axes.letters:
        items["Labels"] = _component_labels(header, source) * (axes.size("t") * axes.size("z"))
    kept = {key: _escape(value) for key, value in items.items() if value is not None}
    info = source.items.get("Info") if same and source is not None else None
    known = info.splitlines() if isinstance(info, str) else []
    if new := [line for line in header.history if line not in known]:
        kept["Info"] = "\n".join([*known, *new])
    elif isinstance(info, str):
        kept["Info"] = info
    return kept, resolution, note


def _imagej_channels(source: TiffMetadata, axes: Axes) -> dict[str, Any]:
    """Colours and display mode, where the channels are still the same ones."""
    if source.dialect != "imagej" or source.axes.size("c") != axes.size("c") or "s" in axes.letters:
        return {}
    tables = source.items.get("LUTs")
    tables = tables if isinstance(tables, list) else [] if tables is None else [tables]
    kept: dict[str, Any] = {}
    if len(tables) == axes.size("c") and all(np.shape(table) == (3, 256) for table in tables):
        kept["LUTs"] = [np.asarray(table, np.uint8) for table in tables]
    if axes.size("c") > 1 and source.items.get("mode"):
        kept["mode"] = source.items["mode"]
    return kept


def _labels(source: TiffMetadata, header: VolumeHeader, axes: Axes) -> list[str] | None:
    """Slice labels, each with the slice it now belongs to; None if slices lie between the old ones.

    An OME channel's name becomes the label of its planes.
    """
    frames, slices, channels = (axes.size(a) for a in "tzc")
    if source.dialect == "ome":
        names = [channel.get("Name") for channel in source.items.get("Channel", [])]
        return names * (frames * slices) if len(names) == channels and all(names) else None
    labels = source.items.get("Labels")
    labels = [labels] if isinstance(labels, str) else labels
    old_frames, old_slices, old_channels = (source.axes.size(a) for a in "tzc")
    old_order = [a for a in source.axes.letters if a in "tzc"]
    if (
        source.dialect != "imagej"
        or not isinstance(labels, list)
        or old_order != [a for a in "tzc" if a in old_order]
    ):
        return None
    if len(labels) != old_frames * old_slices * old_channels or (old_frames, old_channels) != (
        frames,
        channels,
    ):
        return None
    step, offset = header.transform.step[0], header.transform.offset[0]
    if offset != int(offset) or not 0 <= offset <= offset + step * (slices - 1) < old_slices:
        return None
    return [
        str(labels[(t * old_slices + int(offset) + step * z) * channels + c])
        for t in range(frames)
        for z in range(slices)
        for c in range(channels)
    ]


def _component_labels(header: VolumeHeader, source: TiffMetadata | None) -> list[str]:
    """A label for each channel: what component of which of the source's channels it is."""
    known = (
        source.items.get("Channel", []) if source is not None and source.dialect == "ome" else []
    )
    return header.component_labels([channel.get("Name") for channel in known])


def _escape(value: Any) -> Any:
    """Text as ImageJ writes it: 7-bit, other letters as \\uXXXX. (What came from an ImageJ file is so already.)"""
    if not isinstance(value, str):
        return value
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\u{ord(found[0]) & 0xFFFF:04X}", value)


# --------------------------------------------------------------------------------------------------
# tifffile's own JSON ("shaped"), for what neither ImageJ nor OME can hold


def read_shaped(
    metadata: Mapping[str, Any], resolution: Sequence[Any], unit_tag: int | None, axes: Axes
) -> Description:
    """What the JSON says: `spacing` of three numbers (D, H, W) with `unit` and `origin`, as written here; or, as people
    write it, OME's PhysicalSizeX, or ImageJ's single `spacing` and `unit` beside XResolution and YResolution."""
    spacing, origin = metadata.get("spacing"), metadata.get("origin")
    if isinstance(spacing, list) and len(spacing) == 3 and all(map(positive, spacing)):
        words = _words(*[metadata.get("unit")] * 3)
        zero = _triple(origin) if isinstance(origin, list) and len(origin) == 3 else None
        return Description(
            make_grid(_triple(spacing), words, zero), words, history=_shaped_history(metadata)
        )
    if "PhysicalSizeX" in metadata:
        sizes, words, notes = physical_sizes(metadata, axes)
        return Description(Grid() if sizes is None else make_grid(sizes, words), words, notes=notes)
    if "unit" in metadata:
        found = read_imagej(metadata, resolution, unit_tag, axes)
        return Description(found.grid, found.units, notes=found.notes)
    return Description(history=_shaped_history(metadata))


def _shaped_history(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    lines = metadata.get("history")
    return tuple(line for line in lines if isinstance(line, str)) if isinstance(lines, list) else ()


def _triple(values: Sequence[Any]) -> Numbers:
    d, h, w = map(to_number, values)
    return d, h, w


def physical_sizes(
    attributes: Mapping[str, Any], axes: Axes
) -> tuple[Numbers | None, Words, tuple[str, ...]]:
    """OME's PhysicalSizeX, Y, Z with their units, and a note about a guess; None if x and y are not known."""
    d, h, w = (positive(attributes.get(f"PhysicalSize{a}")) for a in "ZYX")
    words = _words(*(attributes.get(f"PhysicalSize{a}Unit", "µm") for a in "ZYX"))
    h, w = h or w, w or h
    if h is None or w is None:
        return None, words, ()
    if d is not None:
        return (d, h, w), words, ()
    note = f"the file gives no z spacing: it is taken as 1 {unit_name(words[2]) or words[2]}"
    return (1.0, h, w), (words[2], *words[1:]), (note,) if axes.size("z") > 1 else ()


def shaped_items(header: VolumeHeader) -> tuple[dict[str, Any], str]:
    """What is written into the JSON beside shape and axes, and a note."""
    found, note = calibration(header.grid, None, {})
    items: dict[str, Any] = {"history": list(header.history)} if header.history else {}
    if header.components:
        items["channels"] = _component_labels(header, tiff_source(header))
    if found is None:
        return items, note
    items["spacing"] = list(found.numbers)
    if found.words[2]:
        items["unit"] = found.words[2]
    if any(found.origin):
        items["origin"] = list(found.origin)
    return items, note


def tiff_source(header: VolumeHeader) -> TiffMetadata | None:
    """What was kept of the TIFF file a volume came from; None if it came from elsewhere."""
    return header.metadata if isinstance(header.metadata, TiffMetadata) else None
