"""Write sets of OME-TIFF files as microscopes do, without using the package."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

Array = np.ndarray
SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
STORED: dict[str, dict[str, Any]] = {
    "one piece": {"contiguous": True},
    "page by page": {"contiguous": False},
    "deflate": {"contiguous": False, "compression": "zlib"},
    "big-endian": {"contiguous": True},
}
# Where a plane is: its file (None: the XML does not name it), and its page in the file.
Place = tuple[str | None, int]


def planes(seed: int, shape: Sequence[int] = (4, 12, 14), dtype: Any = np.uint16) -> Array:
    """Random planes (z, y, x) with values below 250."""
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def image_xml(
    number: int,
    shape: Sequence[int],
    places: Sequence[Place],
    uuids: dict[str, str | None],
    kind: str = "uint16",
) -> str:
    """An Image element: voxel sizes, position and names that differ by `number`, and its z planes.

    shape : (z, y, x)
    places : sequence       the place of each z plane
    uuids : dict            the UUID of each file, None for a file without
    """
    depth, height, width = shape
    size = number + 1
    parts = ""
    for z, (name, page) in enumerate(places):
        uuid = "" if name is None else f'<UUID FileName="{name}">{uuids.get(name) or ""}</UUID>'
        parts += f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="1">{uuid}</TiffData>'
    stage = "".join(
        f'<Plane TheZ="{z}" TheC="0" TheT="0" PositionX="{1000 * size}" PositionXUnit="µm" '
        f'PositionY="{500 * size}" PositionYUnit="µm" PositionZ="0" PositionZUnit="µm"/>'
        for z in range(depth)
    )
    return (
        f'<Image ID="Image:{number}" Name="position {number}">'
        f'<Pixels ID="Pixels:{number}" DimensionOrder="XYZCT" Type="{kind}" '
        f'SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1" '
        f'PhysicalSizeX="0.{size}" PhysicalSizeY="0.{size}" PhysicalSizeZ="{size}">'
        f'<Channel ID="Channel:{number}:0" Name="dye {number}" SamplesPerPixel="1"/>'
        f"{parts}{stage}</Pixels></Image>"
    )


def write_file(
    path: Path, pages: Array, images: str, uuid: str | None, pad: int = 0, stored: str = "one piece"
) -> Path:
    """Write pages (n, y, x) into a file.

    images : str    the Image elements of the description
    pad : int       bytes to make the description longer, which moves the voxels within the file
    stored : str    see `STORED`
    """
    own = "" if uuid is None else f' UUID="{uuid}"'
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?><!--{"x" * pad}-->'
        f'<OME xmlns="{SCHEMA}"{own}>{images}</OME>'
    )
    options = {"photometric": "minisblack", "metadata": None, **STORED[stored]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(
        path, ome=False, byteorder=">" if stored == "big-endian" else "<"
    ) as writer:
        if options.pop("contiguous"):
            writer.write(pages, description=xml.encode(), **options)
        else:
            for number, page in enumerate(pages):
                writer.write(
                    page,
                    description=xml.encode() if not number else None,
                    contiguous=False,
                    **options,
                )
    return path


def write_positions(
    folder: Path,
    count: int = 3,
    pad: int = 100,
    stored: str = "one piece",
    with_uuids: bool = True,
    depth: int = 4,
) -> list[Array]:
    """Write p0.ome.tif, p1.ome.tif, ... with one position each; each file describes all of them."""
    data = [planes(k, (depth, 12, 14)) for k in range(count)]
    uuids = {f"p{k}.ome.tif": f"urn:uuid:{k}" if with_uuids else None for k in range(count)}
    images = "".join(
        image_xml(k, (depth, 12, 14), [(f"p{k}.ome.tif", z) for z in range(depth)], uuids)
        for k in range(count)
    )
    for k in range(count):
        name = f"p{k}.ome.tif"
        write_file(folder / name, data[k], images, uuids[name], pad * k, stored)
    return data


def write_split(
    folder: Path, names: Sequence[str] = ("a.ome.tif", "b.ome.tif"), **options: Any
) -> Array:
    """Write one image of four planes into two files, two planes each."""
    data = planes(7)
    uuids: dict[str, str | None] = {name: f"urn:uuid:{k}" for k, name in enumerate(names)}
    images = image_xml(0, data.shape, [(names[z // 2], z % 2) for z in range(4)], uuids)
    for k, name in enumerate(names):
        write_file(folder / name, data[2 * k : 2 * k + 2], images, uuids[name], **options)
    return data


# --------------------------------------------------------------------------------------------------
# Micro-Manager's files, which have an index of their planes in addition to TIFF's directories

_DIRECTORY = 162  # bytes of a directory with its 13 tags; voxels follow


def _write_pages(
    path: Path,
    data: Array,
    header: bytes,
    index: bytes = b"",
    indices: Sequence[Sequence[int]] = (),
) -> list[int]:
    """Write pages (n, y, x) of uint16 after a header at byte 8; return the offsets of their voxels.

    index : bytes       placeholder in `header` for the offset of the index
    indices             (channel, slice, frame, position) of each page, for the index
    """
    _, height, width = data.shape
    size, position, body, places = 2 * height * width, 8 + len(header), b"", []
    for number, page in enumerate(data):
        end = position + _DIRECTORY + size
        following = 0 if number == len(data) - 1 else end + 8
        tags = [
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 1, 16),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (270, 2, 4, 0),
        ]
        tags += [
            (273, 4, 1, position + _DIRECTORY),
            (277, 3, 1, 1),
            (278, 4, 1, height),
            (279, 4, 1, size),
        ]
        tags += [(282, 4, 1, 1), (283, 4, 1, 1), (51123, 2, 8, end)]
        directory = struct.pack("<H", 13) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        body += (directory + struct.pack("<I", following)).ljust(_DIRECTORY, b"\0") + page.astype(
            "<u2"
        ).tobytes()
        body += b"{}\0\0\0\0\0\0"
        places.append(position)
        position = end + 8
    if indices:
        header = header.replace(index, struct.pack("<I", position))
        body += struct.pack("<II", 3453623, len(indices))
        body += b"".join(
            struct.pack("<5I", *where, place) for where, place in zip(indices, places, strict=True)
        )
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(header)) + header + body)
    return [place + _DIRECTORY for place in places]


def write_mmstack(folder: Path) -> Array:
    """Write s_MMStack_0.tif and s_MMStack_1.tif: two positions of three slices. Axes r z y x."""
    data = planes(5, (2, 3, 6, 8))
    summary = {
        "MicroManagerVersion": "1.4",
        "Frames": 1,
        "Slices": 3,
        "Channels": 1,
        "Positions": 2,
        "Prefix": "s",
    }
    text = json.dumps(summary).encode()
    for position in range(2):
        header = (
            struct.pack("<I4s6I", 54773648, b"here", 483765892, 0, 99384722, 0, 2355492, len(text))
            + text
        )
        where = [(0, z, 0, position) for z in range(3)]
        _write_pages(folder / f"s_MMStack_{position}.tif", data[position], header, b"here", where)
    return data


def write_ndtiff(folder: Path, names: Sequence[str]) -> Array:
    """Write a file for each slice, and their index into the folder of the first file."""
    data = planes(6, (len(names), 6, 8))
    index = b""
    for z, (name, page) in enumerate(zip(names, data, strict=True)):
        header = struct.pack("<5I", 483729, 3, 0, 2355492, 2) + b"{}"
        (place,) = _write_pages(folder / name, page[None], header)
        axes = json.dumps({"z": z}).encode()
        index += struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name.encode()
        index += struct.pack("<IiiiiIii", place, 8, 6, 1, 0, 0, 0, 0)
    ((folder / names[0]).parent / "NDTiff.index").write_bytes(index)
    return data
