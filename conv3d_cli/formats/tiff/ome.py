"""OME-XML, the description of an OME-TIFF file, read and written.

Of its many elements, those are kept that remain true of a convolved volume: sizes, positions,
channels with their names and colours, the image's name and description, the time increment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from conv3d_cli.formats.base import MICROSCOPE, entries_of
from conv3d_cli.formats.tiff.images import local_tag
from conv3d_cli.formats.tiff.metadata import (
    Calibration,
    Description,
    Numbers,
    TiffMetadata,
    Words,
    calibration,
    known_sizes,
    make_grid,
    physical_sizes,
    positive,
    tiff_source,
    unit_length,
)
from conv3d_cli.formats.tiff.series import to_number
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.units import OME_LENGTHS, OME_SYMBOLS, TIME_UNITS, known_length, time_unit
from conv3d_cli.model.volume import Axes, Facts, VolumeHeader
from conv3d_cli.system.words import plain_text

OME_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
HISTORY_NAMESPACE = "conv3d/history"  # of comments, each with a line of history
ORIGINAL_METADATA = "OriginalMetadata"  # Bio-Formats' annotations of all that a microscope wrote
OME_TYPES = {
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "float32": "float",
    "float64": "double",
}


def ome_history(root: Any) -> tuple[str, ...]:
    """The lines of history in the annotations of an OME-XML, of which `root` is the root."""
    return tuple(
        value.text
        for note in root.iter()
        if local_tag(note) == "CommentAnnotation" and note.get("Namespace") == HISTORY_NAMESPACE
        for value in note
        if local_tag(value) == "Value" and value.text
    )


def unused_elements(root: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an OME-XML says besides its images, in words: by users, and by the microscope."""
    annotations: list[str] = []
    regions, made = 0, False
    for part in root:
        tag = local_tag(part)
        if tag == "StructuredAnnotations":
            for note in part:
                space = note.get("Namespace") or ""
                if space.endswith(ORIGINAL_METADATA):
                    made = True
                elif space != HISTORY_NAMESPACE:
                    annotations.append(plain_text(space or note.get("ID") or local_tag(note)))
        regions += tag == "ROI"
        made |= tag in ("Instrument", "Experimenter", "Experiment", "Project", "Dataset")
        if tag == "Image":
            inner = {local_tag(one) for one in part.iter()}
            made |= bool(inner & {"ObjectiveSettings", "DetectorSettings", "AcquisitionDate"})
    return (
        *entries_of("the annotations", list(dict.fromkeys(annotations))),
        *(("the regions of interest",) if regions else ()),
    ), ((MICROSCOPE,) if made else ())


def read_ome(image: Any, pixels: Any, axes: Axes) -> Description:
    """What OME-XML says: sizes, positions, names of image and channels, the time increment.

    image, pixels : XML elements        see `OmeImage`
    """
    sizes, words, notes = physical_sizes(pixels.attrib, axes)
    grid = Grid()
    if sizes is not None:
        place = _first_position(pixels, known_sizes(sizes), words)
        grid = replace(make_grid(sizes, words, place), guesses=notes)
    channels = [part for part in pixels if local_tag(part) == "Channel"]
    description = next((part.text for part in image if local_tag(part) == "Description"), None)
    items = {
        "Image": {"Name": image.get("Name")} if image.get("Name") else {},
        "Description": description,
        "Pixels": {
            key: pixels.get(key)
            for key in ("TimeIncrement", "TimeIncrementUnit")
            if pixels.get(key)
        },
        "Channel": [
            {
                key: value
                for key, value in part.attrib.items()
                if key not in ("ID", "SamplesPerPixel")
            }
            for part in channels
        ],
    }
    return Description(
        grid,
        words,
        items=items,
        facts=_facts(image, pixels, channels, axes, description),
        notes=notes,
    )


def _legal(root: Any) -> None:
    """Escape, in the texts and attributes of an XML, what XML cannot hold."""
    for element in root.iter():
        if element.text:
            element.text = _legal_text(element.text)
        for key, value in element.attrib.items():
            element.set(key, _legal_text(value))


def _legal_text(text: str) -> str:
    return NOT_IN_XML.sub(lambda found: plain_text(found[0]), text)


def _facts(
    image: Any, pixels: Any, channels: Sequence[Any], axes: Axes, description: str | None
) -> Facts:
    step, unit = positive(pixels.get("TimeIncrement")), pixels.get("TimeIncrementUnit", "s")
    others = [("the description of the image", bool(description))]
    known = {"ID", "Name", "Color", "SamplesPerPixel"}
    others.append(
        ("wavelengths and other facts of channels", any(set(c.attrib) - known for c in channels))
    )
    names = tuple(channel.get("Name") or "" for channel in channels)
    colors = tuple(_read_color(channel.get("Color")) for channel in channels)
    fits = len(channels) == axes.canonical_shape[4]
    return Facts(
        image.get("Name") or "",
        (step, time_unit(unit) or unit) if step else None,
        names if fits and any(names) else (),
        colors if fits and any(colors) else (),
        tuple(words for words, there in others if there),
    )


def _read_color(text: str | None) -> str:
    """A colour "RRGGBB" of OME's signed number of RGBA; "" without one.

    >>> _read_color("-16776961"), _read_color(None)
    ('FF0000', '')
    """
    try:
        return f"{int(text or '') & 0xFFFFFFFF:08X}"[:6]
    except ValueError:
        return ""


def _color_number(color: str) -> str:
    """OME's number of an opaque colour: RGBA as a signed integer of 32 bits.

    >>> _color_number("FF0000"), _color_number("0000FF")
    ('-16776961', '65535')
    """
    number = int(color + "FF", 16)
    return str(number - (1 << 32) if number >= 1 << 31 else number)


def _first_position(pixels: Any, sizes: Numbers, words: Words) -> Numbers | None:
    """The voxel (D, H, W) at the world's zero, from the positions of the planes.

    None if positions are missing, or if the planes are neither one plane apart nor all at the same
    position.
    """
    first: dict[int, list[float]] = {}
    for plane in (part for part in pixels if local_tag(part) == "Plane"):
        place = []
        for letter, size, word in zip("ZYX", sizes, words, strict=True):
            length, own = unit_length(plane.get(f"Position{letter}Unit")), unit_length(word)
            if plane.get(f"Position{letter}Unit") == word:
                length = own = 1.0
            if plane.get(f"Position{letter}") is None or length is None or own is None:
                return None
            place.append(to_number(plane.get(f"Position{letter}")) * length / own / size)
        z = int(plane.get("TheZ", 0))
        if any(abs(a - b) > 1e-3 for a, b in zip(first.setdefault(z, place), place, strict=True)):
            return None
    if 0 not in first:
        return None
    depth, height, width = first[0]
    for z, (d, h, w) in first.items():
        if (
            min(abs(d - depth - z), abs(d - depth)) > 0.01
            or abs(h - height) > 0.01
            or abs(w - width) > 0.01
        ):
            return None
    return float(f"{-depth:.12g}"), float(f"{-height:.12g}"), float(f"{-width:.12g}")


def ome_xml(header: VolumeHeader, axes: Axes, dtype: np.dtype[Any]) -> tuple[str, str]:
    """The OME-XML of an output, and a note.

    It has no UUID and no date, which are optional, so that the same volume gives the same bytes.

    axes : Axes             of the file: t, z, c in any order, y, x, and s for RGB
    dtype : numpy dtype     of the stored voxels, one of OME_TYPES
    """
    from xml.etree import ElementTree

    source = tiff_source(header)
    same = source is not None and source.dialect == "ome"
    kept = source.items if same and source is not None else {}
    found, note = calibration(
        header.grid, _legal_units(source) if same and source is not None else None, OME_LENGTHS
    )

    present = [a for a in axes.letters if a in "tzc"]
    order = "".join(reversed(present)) + "".join(a for a in "czt" if a not in present)
    samples, channels = axes.size("s"), axes.size("c")
    pixels = {
        "ID": "Pixels:0",
        "DimensionOrder": f"XY{order.upper()}",
        "Type": OME_TYPES[dtype.name],
    }
    for letter in "xyzct":
        pixels[f"Size{letter.upper()}"] = str(
            channels * samples if letter == "c" else axes.size(letter)
        )
    pixels["BigEndian"] = "false"
    if samples > 1:
        pixels["Interleaved"] = "true"
    if found is not None:
        for letter, number, word in zip("ZYX", found.numbers, found.words, strict=True):
            pixels[f"PhysicalSize{letter}"] = repr(number)
            pixels[f"PhysicalSize{letter}Unit"] = word or "pixel"
    pixels |= _time_increment(header.facts, kept.get("Pixels", {}))

    root = ElementTree.Element(
        "OME",
        {
            "xmlns": OME_SCHEMA,
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:schemaLocation": f"{OME_SCHEMA} {OME_SCHEMA}/ome.xsd",
            "Creator": "conv3d",
        },
    )
    named = {"Name": header.facts.name} if header.facts.name else {}
    image = ElementTree.SubElement(root, "Image", {"ID": "Image:0", **named})
    if kept.get("Description"):
        ElementTree.SubElement(image, "Description").text = kept["Description"]
    body = ElementTree.SubElement(image, "Pixels", pixels)
    for c, own in enumerate(_channels(header, kept.get("Channel", []), channels)):
        ElementTree.SubElement(
            body, "Channel", {"ID": f"Channel:0:{c}", "SamplesPerPixel": str(samples), **own}
        )
    count = math.prod(axes.size(a) for a in present)
    ElementTree.SubElement(body, "TiffData", {"IFD": "0", "PlaneCount": str(count)})
    if found is not None and any(found.origin):
        _add_positions(body, axes, present, found)
    if header.history:
        notes = ElementTree.SubElement(root, "StructuredAnnotations")
        for number, line in enumerate(header.history):
            own = {"ID": f"Annotation:{number}", "Namespace": HISTORY_NAMESPACE}
            comment = ElementTree.SubElement(notes, "CommentAnnotation", own)
            ElementTree.SubElement(comment, "Value").text = line
    _legal(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>{text}', note


def _channels(
    header: VolumeHeader, known: Sequence[dict[str, str]], count: int
) -> list[dict[str, str]]:
    """Attributes of each Channel of an output: its name and colour, and what the source said.

    known : dicts       attributes of the source's channels
    """
    names, colors = header.channel_names, header.channel_colors
    told = tuple(channel.get("Name") or "" for channel in known)
    same = not header.components and (told if any(told) else ()) == header.facts.channel_names
    found: list[dict[str, str]] = []
    for c in range(count):
        own = dict(known[c]) if same and len(known) == count else {}
        own = {k: ome_unit(v) if k.endswith("Unit") else v for k, v in own.items()}
        own.pop("Color", None)
        if len(names) == count and names[c]:
            own["Name"] = names[c]
        if len(colors) == count and colors[c]:
            own["Color"] = _color_number(colors[c])
        found.append(own)
    return found


def _time_increment(facts: Facts, kept: Mapping[str, str]) -> dict[str, str]:
    """The attributes of Pixels for a time step: the source's words, if they are legal."""
    if facts.time_step is None:
        return {}
    step, unit = facts.time_step
    if unit in TIME_UNITS:
        text = kept.get("TimeIncrement") or repr(step)
        return {"TimeIncrement": text, "TimeIncrementUnit": TIME_UNITS[unit].ome}
    return dict(kept)


def _legal_units(source: TiffMetadata) -> Words:
    d, h, w = (None if word is None else ome_unit(word) for word in source.units)
    return d, h, w


def ome_unit(word: str) -> str:
    """A unit as OME-XML may spell it, a symbol of its schema: "pixel" for one that it lacks.

    >>> ome_unit("\\u03bcm"), ome_unit("micron"), ome_unit("Å"), ome_unit("inch"), ome_unit("yards")
    ('µm', 'µm', 'Å', 'in', 'yd')
    >>> ome_unit("furlong")
    'pixel'
    """
    known = known_length(word)
    if word in OME_SYMBOLS:
        return word
    return next((s for s in OME_SYMBOLS if known and known_length(s) == known), "pixel")


def _add_positions(body: Any, axes: Axes, present: Sequence[str], found: Calibration) -> None:
    """Add a Plane element with its position for each plane."""
    from xml.etree import ElementTree

    for index in np.ndindex(*(axes.size(a) for a in present)):
        place = {f"The{a.upper()}": str(i) for a, i in zip(present, index, strict=True)}
        plane = {key: place.get(key, "0") for key in ("TheZ", "TheC", "TheT")}
        starts = (int(plane["TheZ"]), 0, 0)
        for letter, start, zero, number, word in zip(
            "ZYX", starts, found.origin, found.numbers, found.words, strict=True
        ):
            plane[f"Position{letter}"] = repr(float(f"{(start - zero) * number:.15g}"))
            plane[f"Position{letter}Unit"] = word or "pixel"
        ElementTree.SubElement(body, "Plane", plane)
