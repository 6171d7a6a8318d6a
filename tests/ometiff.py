"""Sets of OME-TIFF files as microscopes write them: what lies in which file is said here, and nothing of the package is used."""

from __future__ import annotations

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
Place = tuple[str | None, int]  # the file of a plane, None for one that is not said; its page


def planes(seed: int, shape: Sequence[int] = (4, 12, 14), dtype: Any = np.uint16) -> Array:
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def image_xml(
    number: int, shape: Sequence[int], places: Sequence[Place], uuids: dict[str, str | None], kind: str = "uint16"
) -> str:
    """An Image, of sizes, a position and names that tell it from others, and the places of its z planes."""
    depth, height, width = shape
    size = number + 1
    parts = ""
    for z, (name, page) in enumerate(places):
        uuid = "" if name is None else f'<UUID FileName="{name}">{uuids.get(name) or ""}</UUID>'
        parts += f'<TiffData FirstZ="{z}" IFD="{page}" PlaneCount="1">{uuid}</TiffData>'
    stage = "".join(
        f'<Plane TheZ="{z}" TheC="0" TheT="0" PositionX="{1000 * size}" PositionXUnit="µm" PositionY="{500 * size}" '
        f'PositionYUnit="µm" PositionZ="0" PositionZUnit="µm"/>'
        for z in range(depth)
    )
    return (
        f'<Image ID="Image:{number}" Name="position {number}"><Pixels ID="Pixels:{number}" DimensionOrder="XYZCT" '
        f'Type="{kind}" SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1" PhysicalSizeX="0.{size}" '
        f'PhysicalSizeY="0.{size}" PhysicalSizeZ="{size}"><Channel ID="Channel:{number}:0" Name="dye {number}" '
        f'SamplesPerPixel="1"/>{parts}{stage}</Pixels></Image>'
    )


def write_file(
    path: Path, pages: Array, images: str, uuid: str | None, pad: int = 0, stored: str = "one piece"
) -> Path:
    """A file of pages with a description of `pad` bytes more than it needs, so that voxels lie elsewhere than in others."""
    own = "" if uuid is None else f' UUID="{uuid}"'
    xml = f'<?xml version="1.0" encoding="UTF-8"?><!--{"x" * pad}--><OME xmlns="{SCHEMA}"{own}>{images}</OME>'
    options = {"photometric": "minisblack", "metadata": None, **STORED[stored]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, ome=False, byteorder=">" if stored == "big-endian" else "<") as writer:
        if options.pop("contiguous"):
            writer.write(pages, description=xml.encode(), **options)
        else:
            for number, page in enumerate(pages):
                writer.write(page, description=xml.encode() if not number else None, contiguous=False, **options)
    return path


def write_positions(
    folder: Path, count: int = 3, pad: int = 100, stored: str = "one piece", with_uuids: bool = True, depth: int = 4
) -> list[Array]:
    """Files p0.ome.tif, p1.ome.tif, ... of a position each; each describes them all."""
    data = [planes(k, (depth, 12, 14)) for k in range(count)]
    uuids = {f"p{k}.ome.tif": f"urn:uuid:{k}" if with_uuids else None for k in range(count)}
    images = "".join(
        image_xml(k, (depth, 12, 14), [(f"p{k}.ome.tif", z) for z in range(depth)], uuids) for k in range(count)
    )
    for k in range(count):
        name = f"p{k}.ome.tif"
        write_file(folder / name, data[k], images, uuids[name], pad * k, stored)
    return data


def write_split(folder: Path, names: Sequence[str] = ("a.ome.tif", "b.ome.tif"), **options: Any) -> Array:
    """One image of four planes, two in each of two files."""
    data = planes(7)
    uuids: dict[str, str | None] = {name: f"urn:uuid:{k}" for k, name in enumerate(names)}
    images = image_xml(0, data.shape, [(names[z // 2], z % 2) for z in range(4)], uuids)
    for k, name in enumerate(names):
        write_file(folder / name, data[2 * k : 2 * k + 2], images, uuids[name], **options)
    return data
