"""The metadata of a TIFF file, read into a grid and written back: ImageJ's text, tifffile's JSON.

ome.py does the same for OME-XML. Two rules hold for all dialects. Voxel sizes are read with the
unit that the file names, and written with the same word, so that a volume in µm stays in µm.
Metadata that would no longer be true of the output are left out: display ranges, regions of
interest, per-plane times; slice labels follow their slices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conv3d_cli.formats.base import entries_of
from conv3d_cli.formats.tiff.series import to_number
from conv3d_cli.model.grid import Grid, affine_from_spacing
from conv3d_cli.model.units import IMAGEJ_LENGTHS, UNITS, known_length, time_unit, unit_name
from conv3d_cli.model.volume import Array, Axes, Facts, VolumeHeader, is_history

Numbers = tuple[float, float, float]  # D, H, W
Sizes = tuple[float | None, float | None, float | None]  # the same; None: not in the file
Words = tuple[str | None, str | None, str | None]  # units as files spell them, of D, H, W

SLICE_LABELS = "the labels of slices"  # as in `Facts.others`
PRIVATE = 32768  # the first of the private tags
# Private tags that tifffile uses for the voxels, and ImageJ's, which `read_imagej` reads.
USED_TAGS = frozenset({32995, 32996, 32997, 32998, 50838, 50839})
MAKING_TAGS = (271, 272, 306, 315, 316)  # Make, Model, DateTime, Artist, HostComputer
TAG_UNITS = {2: "inch", 3: "cm"}  # of TIFF's ResolutionUnit
MICROSCOPIC_CM = 1e-3  # ImageJ converts pixels up to this size from cm to micron
# ImageJ's keys that remain true after a convolution
IMAGEJ_KEPT = ("ImageJ", "finterval", "fps", "tunit", "loop", "info", "inverty")
LARGEST = 2**32 - 1  # numerator or denominator of a TIFF rational


@dataclass(frozen=True, eq=False)
class TiffMetadata:
    """What a volume keeps of its TIFF file for an output in TIFF.

    dialect : str               "imagej" | "ome" | "shaped" | "plain"
    axes : Axes                 as stored
    units : 3 str or None       the file's words for the units of D, H, W
    items : dict                ImageJ: its description and its IJMetadata; OME: attributes of
                                Image, Pixels and each Channel
    """

    dialect: str
    axes: Axes
    units: Words = (None, None, None)
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What the text of a file says.

    grid : Grid
    units, items                see `TiffMetadata`
    facts : Facts
    notes : tuple of str        remarks for the user
    history : tuple of str      lines of `VolumeHeader.history`
    """

    grid: Grid = field(default_factory=Grid)
    units: Words = (None, None, None)
    items: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------------------
# Units and grids


NO_LENGTHS = {"pixel", "reference frame"}  # units of OME that are none


def unit_length(word: str | None) -> float | None:
    """Length of a unit in mm; None if the word is not a unit of length (`pixel`).

    >>> unit_length("inch"), unit_length("pixel")
    (25.4, None)
    """
    known = known_length(word)
    return None if known is None else UNITS[known[0]] * known[1]


def _unit_of(word: str | None) -> str | None:
    """The package's unit that lengths in a file's unit are given in; None without a length."""
    known = known_length(word)
    return None if known is None else known[0]


def _convert(value: float, from_length: float, to_length: float) -> float:
    # rounded, so that decimal numbers stay decimal: 500 nm is 0.5 um, not 0.49999999999999994
    return value if from_length == to_length else float(f"{value * from_length / to_length:.14g}")


def make_grid(sizes: Sizes, words: Words, origin: Numbers | None = None) -> Grid:
    """A grid without rotation from voxel sizes, each in its own unit; the grid's unit is that of W.

    Sizes without a unit still say how anisotropic the voxels are. If all are 1 and have no unit,
    the grid is empty. A size that is not in the file is taken as 1, one whose word is not a unit of
    length in that of W.

    sizes : 3 floats or None        voxel sizes (D, H, W)
    words : 3 str or None           their units, as files spell them
    origin : 3 floats or None       voxel (D, H, W) at the world's zero, as in ImageJ
    >>> make_grid((500.0, 0.1, 0.1), ("nm", "micron", "micron")).spacing
    (0.5, 0.1, 0.1)
    """
    unit = _unit_of(words[2])
    numbers = known_sizes(sizes)
    if unit is None and all(number == 1 for number in numbers):
        return Grid()
    assumed = {
        letter
        for letter, size, word in zip("dhw", sizes, words, strict=True)
        if size is None or (unit is not None and unit_length(word) is None)
    }
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
    affine = affine_from_spacing(spacing, (d, h, w))
    return Grid(spacing, unit, affine, assumed=frozenset(assumed))


def known_sizes(sizes: Sizes) -> Numbers:
    """Voxel sizes with 1 for those that are not in the file."""
    d, h, w = (1.0 if size is None else size for size in sizes)
    return d, h, w


@dataclass(frozen=True)
class Calibration:
    """Voxel sizes and origin in the form that TIFF stores.

    numbers : 3 floats          voxel sizes (D, H, W), each in the unit of its word
    words : 3 str or None       their units
    origin : 3 floats           voxel (D, H, W) at the world's zero
    """

    numbers: Numbers
    words: Words
    origin: Numbers


def calibration(
    grid: Grid, words: Words | None, dialect_words: Mapping[str, str]
) -> tuple[Calibration | None, str]:
    """A grid in the form that TIFF stores, None if it is empty; and a note if a part is left out.

    words : 3 str or None       the input's words for its units, to be kept; None: the dialect's
    dialect_words : dict        unit -> the dialect's word, if it differs
    """
    if grid.spacing is None:
        return None, ""
    unit = grid.unit
    word = None if unit is None else dialect_words.get(unit, unit)
    if words is None or _unit_of(words[2]) != unit:
        words = (word, word, word)
    elif unit is not None and not grid.assumed:  # a word that is no unit of length, made known
        words = _words(*(word if unit_length(own) is None else own for own in words))
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
        note = "TIFF holds voxel spacing but no rotation or flip: the affine is left out"
        return (0.0, 0.0, 0.0), note
    # twelve digits: -(-3 * 0.3) / 0.3 is written as 3
    d, h, w = (
        float(f"{-world / step:.12g}") + 0.0
        for world, step in zip(grid.affine[2::-1, 3], grid.spacing, strict=True)
    )
    return (d, h, w), ""


def pixels_per_unit(spacing: float) -> tuple[int, int]:
    """The resolution 1 / spacing as a TIFF rational, exact for decimal spacings.

    Returns (numerator, denominator), integers of 32 bits.
    >>> pixels_per_unit(0.3), pixels_per_unit(2.0)
    ((10, 3), (1, 2))
    """
    from fractions import Fraction

    ratio = Fraction(spacing).limit_denominator(max(1, min(LARGEST, int(LARGEST / spacing))))
    return min(max(ratio.denominator, 1), LARGEST), min(max(ratio.numerator, 1), LARGEST)


def positive(value: Any) -> float | None:
    """The absolute value of a size that a file gives; None if it is not positive and finite.

    >>> positive("-0.5"), positive(0), positive("large")
    (0.5, None, None)
    """
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

    metadata : dict                     keys of the description, and of IJMetadata
    resolution : 2 rationals or None    XResolution and YResolution, pixels per unit
    unit_tag : int or None              ResolutionUnit: 2 for inch, 3 for cm
    axes : Axes                         of the series
    Source: ImageJ, ij/io/FileOpener.java setCalibration and decodeDescriptionString,
    ij/io/FileSaver.java getDescriptionString.
    """
    w, h = (_pixel_size(value) for value in resolution)
    w, h = w or h, h or w
    if unit_tag == 2 and (w, h) == (1 / 72, 1 / 72):  # the default of many programs
        w = h = unit_tag = None
    d = positive(metadata.get("spacing"))
    unit, notes = metadata.get("unit"), []
    z_unit, y_unit = (metadata.get(key, unit) for key in ("zunit", "yunit"))
    tagged = TAG_UNITS.get(unit_tag or 0)
    if unit is None and tagged is not None and w is not None and h is not None:
        unit = y_unit = tagged
        z_unit = z_unit or tagged
        if tagged == "cm" and w <= MICROSCOPIC_CM:  # as ImageJ: a microscope's, in micron
            unit = y_unit = "micron"
            w, h = (_convert(size, UNITS["cm"], UNITS["um"]) for size in (w, h))
            z_unit = metadata.get("zunit", None if d else unit)
    elif tagged is not None and w is not None and h is not None:
        w, h, text = _contradiction(w, h, d, str(unit), tagged)
        if text:
            notes.append(text)
            y_unit = unit
    words = _words(z_unit, y_unit, unit)
    if unit_length(words[2]) is not None:
        if d is None and axes.size("z") > 1:
            notes.append(
                "the file gives no z spacing: "
                f"it is 1 {unit_name(words[2]) or words[2]}, as in ImageJ"
            )
        if w is None:
            notes.append(
                f"the file gives no pixel size: it is 1 {unit_name(words[2]) or words[2]}, "
                "as in ImageJ"
            )
        if words[0] is None:
            notes.append(
                f"the file names no unit of its z spacing: it is taken in {unit_name(words[2])}"
            )
        elif unit_length(words[0]) is None:
            notes.append(
                f"'{words[0]}' is not a unit of length: the z spacing is taken in {words[2]}"
            )
    zero = (
        to_number(metadata.get("zorigin")),
        to_number(metadata.get("yorigin")),
        to_number(metadata.get("xorigin")),
    )
    return Description(
        replace(make_grid((d, h, w), words, zero), guesses=tuple(notes)),
        words,
        dict(metadata),
        _imagej_facts(metadata, axes),
        tuple(notes),
        tuple(filter(is_history, str(metadata.get("Info", "")).splitlines())),
    )


def _contradiction(
    w: float, h: float, d: float | None, unit: str, tagged: str
) -> tuple[float, float, str]:
    """Voxel sizes (W, H) in the description's unit, if the resolution's tag names another; a note.

    ImageJ and Bio-Formats believe a tag of cm. One of inches is what many programs write without
    meaning it: it counts if the pixels are then nearer to the distance of the planes.

    d : float or None       distance of the planes; None: 1, as in ImageJ
    unit, tagged : str      units of the description and of the tag
    """
    length, own = unit_length(tagged), unit_length(unit)
    if length is None or own is None or length == own:
        return w, h, ""
    by_tag = [_convert(size, length, own) for size in (w, h)]
    depth = d or 1.0
    if tagged != "cm" and abs(math.log(by_tag[0] / depth)) >= abs(math.log(w / depth)):
        return w, h, ""
    text = (
        f"the file's resolution is per {tagged}, and its description names {unit}: "
        f"a pixel is read as {by_tag[0]:.6g} {unit}"
    )
    return by_tag[0], by_tag[1], text


def unused_tags(page: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tags of a page that no reader uses, in words: those of nobody known, and those of a maker.

    Private tags begin at 32768. tifffile has names for those of known makers: they tell how the
    image was taken, as Make and DateTime do.
    """
    private = [tag for tag in page.tags if tag.code >= PRIVATE and tag.code not in USED_TAGS]
    unknown = [str(tag.code) for tag in private if tag.name == str(tag.code)]
    known = [tag.name for tag in private if tag.name != str(tag.code)]
    known += [page.tags[code].name for code in MAKING_TAGS if code in page.tags]
    return entries_of("the private tags", unknown), entries_of("the tags", known)


def _words(d: Any, h: Any, w: Any) -> Words:
    depth, height, width = (None if word is None else str(word) for word in (d, h, w))
    return depth, height, width


def _pixel_size(resolution: Any) -> float | None:
    """Units per pixel, from a rational of pixels per unit; None if it is not a usable number."""
    try:
        size = int(resolution[1]) / int(resolution[0])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return size if 0 < size < math.inf else None


def _imagej_facts(metadata: Mapping[str, Any], axes: Axes) -> Facts:
    """The frame interval, the names of channels from slice labels, and their colours."""
    interval, unit = positive(metadata.get("finterval")), str(metadata.get("tunit", "sec"))
    rate = positive(metadata.get("fps"))
    if interval is None and rate is not None:
        interval, unit = 1 / rate, "s"
    names, others = _names_of_labels(metadata.get("Labels"), axes)
    tables = metadata.get("LUTs")
    tables = tables if isinstance(tables, list) else [] if tables is None else [tables]
    colors = [table_color(table) for table in tables]
    if len(colors) != axes.canonical_shape[4] or colors == ["FFFFFF"]:
        colors = []
    if tables and not all(colors):
        others = (*others, "tables of colours")
    if not all(map(is_history, filter(str.strip, str(metadata.get("Info", "")).splitlines()))):
        others = (*others, "the text of Image > Show Info")
    return Facts(
        time_step=(interval, time_unit(unit) or unit) if interval else None,
        channel_names=names,
        channel_colors=tuple(colors) if any(colors) else (),
        others=others,
        dropped=("the regions of interest",) if {"ROI", "Overlays"} & set(metadata) else (),
    )


def _names_of_labels(labels: Any, axes: Axes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of channels, if all slices of a channel have the same label; else words for the labels.

    labels : list of str, or str        in the order t, z, c
    """
    found = [labels] if isinstance(labels, str) else labels
    if not isinstance(found, list) or not any(found):
        return (), ()
    count = axes.canonical_shape[4]
    sets = [{str(label or "") for label in found[c::count]} for c in range(count)]
    if len(found) % count or not all(len(one) == 1 for one in sets):
        return (), (SLICE_LABELS,)
    return tuple(next(iter(one)) for one in sets), ()


def color_table(color: str) -> Array:
    """ImageJ's table (3, 256) from black to a colour "RRGGBB", uint8.

    >>> color_table("FF8000")[:, 255].tolist()
    [255, 128, 0]
    """
    ends = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)])
    table: Array = np.rint(np.arange(256) * ends[:, None] / 255).astype(np.uint8)
    return table


def table_color(table: Any) -> str:
    """The colour "RRGGBB" to which a table of ImageJ's rises from black; "" for any other table.

    >>> table_color(color_table("FF8000")), table_color(np.zeros((3, 256)))
    ('FF8000', '')
    """
    values = np.asarray(table)
    if values.shape != (3, 256) or not values[:, 255].any():
        return ""
    color = "".join(f"{int(end) & 255:02X}" for end in values[:, 255])
    near = np.abs(values.astype(int) - color_table(color).astype(int)).max() <= 1
    return color if near else ""


def imagej_items(
    header: VolumeHeader, axes: Axes
) -> tuple[dict[str, Any], tuple[Any, Any] | None, str]:
    """Metadata and resolution (x, y) of an ImageJ file with these axes (t z c y x), and a note."""
    source = tiff_source(header)
    same = source is not None and source.dialect == "imagej"
    found, note = calibration(
        header.grid, source.units if same and source else None, IMAGEJ_LENGTHS
    )
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
        items.update(_imagej_channels(source, header, axes))
        items["Labels"] = _labels(source, header, axes)
    if "finterval" not in items and axes.size("t") > 1:
        items["finterval"] = header.facts.seconds
    if len(names := header.channel_names) == axes.size("c") and not items.get("Labels"):
        items["Labels"] = names * (axes.size("t") * axes.size("z"))
    if len(colors := header.channel_colors) == axes.size("c") and "LUTs" not in items:
        items["LUTs"] = [color_table(color or "FFFFFF") for color in colors]
        items["mode"] = "composite" if len(colors) > 1 else None
    kept = {key: _escape(value) for key, value in items.items() if value is not None}
    info = source.items.get("Info") if same and source is not None else None
    known = info.splitlines() if isinstance(info, str) else []
    if new := [line for line in header.history if line not in known]:
        kept["Info"] = "\n".join([*known, *new])
    elif isinstance(info, str):
        kept["Info"] = info
    return kept, resolution, note


def _imagej_channels(source: TiffMetadata, header: VolumeHeader, axes: Axes) -> dict[str, Any]:
    """Colours and display mode of the source, if the output has channels of it."""
    same = source.dialect == "imagej" and not header.components
    places = header.places_among(source.axes.size("c"))
    if not same or len(places) != axes.size("c") or "s" in axes.letters:
        return {}
    tables = source.items.get("LUTs")
    tables = tables if isinstance(tables, list) else [] if tables is None else [tables]
    kept: dict[str, Any] = {}
    if len(tables) == source.axes.size("c") and all(np.shape(t) == (3, 256) for t in tables):
        kept["LUTs"] = [np.asarray(tables[place], np.uint8) for place in places]
    if axes.size("c") > 1 and source.items.get("mode"):
        kept["mode"] = source.items["mode"]
    return kept


def _labels(source: TiffMetadata, header: VolumeHeader, axes: Axes) -> list[str] | None:
    """The source's labels for the slices of the output; None if these are not slices of it."""
    frames, slices, channels = (axes.size(a) for a in "tzc")
    labels = source.items.get("Labels")
    labels = [labels] if isinstance(labels, str) else labels
    old_frames, old_slices, old_channels = (source.axes.size(a) for a in "tzc")
    old_order = [a for a in source.axes.letters if a in "tzc"]
    in_order = old_order == [a for a in "tzc" if a in old_order]
    named = source.dialect == "imagej" and not header.components
    if not named or not isinstance(labels, list) or not in_order:
        return None
    if len(labels) != old_frames * old_slices * old_channels:
        return None
    places = header.places_among(old_channels)
    if (old_frames, len(places)) != (frames, channels):
        return None
    step, offset = header.transform.step[0], header.transform.offset[0]
    if step != int(step):  # slices between those that have labels
        return None
    if offset != int(offset) or not 0 <= offset <= offset + step * (slices - 1) < old_slices:
        return None
    return [
        str(labels[(t * old_slices + int(offset) + int(step) * z) * old_channels + c])
        for t in range(frames)
        for z in range(slices)
        for c in places
    ]


def _escape(value: Any) -> Any:
    """Text as ImageJ writes it: ASCII, with other characters as \\uXXXX.

    Text from an ImageJ file is in this form already.
    """
    if not isinstance(value, str):
        return value
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\u{ord(found[0]) & 0xFFFF:04X}", value)


# --------------------------------------------------------------------------------------------------
# tifffile's own JSON ("shaped"), for volumes that neither ImageJ nor OME can store


def read_shaped(
    metadata: Mapping[str, Any], resolution: Sequence[Any], unit_tag: int | None, axes: Axes
) -> Description:
    """What the JSON of a file says.

    This package writes `spacing` as three numbers (D, H, W), with `unit` and `origin`. Others write
    OME's PhysicalSizeX, or ImageJ's single `spacing` and `unit` with XResolution and YResolution.

    metadata : dict                     the JSON
    resolution, unit_tag, axes          see `read_imagej`
    """
    spacing, origin = metadata.get("spacing"), metadata.get("origin")
    if isinstance(spacing, list) and len(spacing) == 3 and all(map(positive, spacing)):
        words = _words(*[metadata.get("unit")] * 3)
        zero = _triple(origin) if isinstance(origin, list) and len(origin) == 3 else None
        return Description(
            make_grid(_triple(spacing), words, zero),
            words,
            facts=_shaped_facts(metadata),
            history=_shaped_history(metadata),
        )
    if "PhysicalSizeX" in metadata:
        sizes, words, notes = physical_sizes(metadata, axes)
        grid = Grid() if sizes is None else replace(make_grid(sizes, words), guesses=notes)
        return Description(grid, words, notes=notes)
    if "unit" in metadata:
        found = read_imagej(metadata, resolution, unit_tag, axes)
        return Description(found.grid, found.units, notes=found.notes)
    return Description(facts=_shaped_facts(metadata), history=_shaped_history(metadata))


def _shaped_facts(metadata: Mapping[str, Any]) -> Facts:
    def texts(key: str) -> tuple[str, ...]:
        found = metadata.get(key)
        return tuple(map(str, found)) if isinstance(found, list) else ()

    step = positive(metadata.get("time_step"))
    return Facts(
        str(metadata.get("name") or ""),
        (step, str(metadata.get("time_unit") or "")) if step else None,
        texts("channels"),
        texts("channel_colors"),
    )


def _shaped_history(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    lines = metadata.get("history")
    return tuple(line for line in lines if isinstance(line, str)) if isinstance(lines, list) else ()


def _triple(values: Sequence[Any]) -> Numbers:
    d, h, w = map(to_number, values)
    return d, h, w


def physical_sizes(
    attributes: Mapping[str, Any], axes: Axes
) -> tuple[Sizes | None, Words, tuple[str, ...]]:
    """OME's PhysicalSizeZ, Y, X, their units, and notes on guesses.

    The sizes are None if those along x and y are unknown.
    """
    d, h, w = (positive(attributes.get(f"PhysicalSize{a}")) for a in "ZYX")
    words = _words(*(attributes.get(f"PhysicalSize{a}Unit", "µm") for a in "ZYX"))
    notes = []
    if (h is None) != (w is None):  # a pixel is a square, so its unit goes with its size
        absent, given, place = ("y", "x", 2) if h is None else ("x", "y", 1)
        if axes.size(absent) > 1:
            notes.append(f"the file gives no {absent} spacing: it is taken as that of {given}")
        h, w = h or w, w or h
        words = (words[0], words[place], words[place])
    if h is None or w is None:
        return None, words, ()
    unknown = {word for word in words if word and unit_length(word) is None} - NO_LENGTHS
    notes += [f"its unit {word!r} is unknown: its spacing has no unit" for word in sorted(unknown)]
    if d is not None:
        return (d, h, w), words, tuple(notes)
    if axes.size("z") > 1:
        notes.append(
            f"the file gives no z spacing: it is taken as 1 {unit_name(words[2]) or words[2]}"
        )
    return (None, h, w), (words[2], *words[1:]), tuple(notes)


def shaped_items(header: VolumeHeader) -> tuple[dict[str, Any], str]:
    """The entries of the JSON besides shape and axes, and a note."""
    found, note = calibration(header.grid, None, {})
    items: dict[str, Any] = {"history": list(header.history)} if header.history else {}
    facts = header.facts
    step, unit = facts.time_step or (None, None)
    told = {
        "name": facts.name,
        "time_step": step,
        "time_unit": unit,
        "channels": header.channel_names,
        "channel_colors": header.channel_colors,
    }
    items |= {key: value for key, value in told.items() if value}
    if found is None:
        return items, note
    items["spacing"] = list(found.numbers)
    if found.words[2]:
        items["unit"] = found.words[2]
    if any(found.origin):
        items["origin"] = list(found.origin)
    return items, note


def tiff_source(header: VolumeHeader) -> TiffMetadata | None:
    """What a volume keeps of its TIFF file; None if it comes from another format."""
    return header.metadata if isinstance(header.metadata, TiffMetadata) else None
