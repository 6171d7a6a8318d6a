"""The directories (IFDs) of a TIFF file, found by following their chain through the file.

This module checks a file before tifffile opens it. A damaged chain may point beyond the end of the
file, or run in a circle, in which tifffile would loop for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from conv3d_cli.errors import FormatError

MAX_TAGS = 4096  # of a directory
ALL_ROWS = 2**32 - 1

# tag -> default; these tags must be the same on all pages of a volume
LAYOUT_TAGS = {
    256: 0,  # ImageWidth
    257: 0,  # ImageLength
    258: 1,  # BitsPerSample
    259: 1,  # Compression
    266: 1,  # FillOrder
    277: 1,  # SamplesPerPixel
    278: ALL_ROWS,  # RowsPerStrip
    284: 1,  # PlanarConfiguration
    317: 1,  # Predictor
    322: 0,  # TileWidth
    323: 0,  # TileLength
    339: 1,  # SampleFormat
    32997: 1,  # ImageDepth
}
PLANE_TAGS = (256, 257, 258, 277, 339, 32997)
SUBFILE_TYPE, REDUCED, MASK = 254, 1, 4
NDPI_TAG, NDPI_SUFFIX = 65420, ".ndpi"
INTEGER_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
# tags whose values must lie within the file: ImageDescription, offsets and byte counts of strips
# and tiles
ESSENTIAL_TAGS = (270, 273, 279, 324, 325)
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}


@dataclass(frozen=True)
class Directory:
    """The directory of a page.

    offset : int        its position in the file, in bytes
    layout : tuple      values of the tags in LAYOUT_TAGS, in that order
    beside : bool       its NewSubfileType says that it is a small version of another page, or a
                        mask of one
    """

    offset: int
    layout: tuple[tuple[int, ...], ...]
    beside: bool = False

    @property
    def plane(self) -> tuple[tuple[int, ...], ...]:
        """The part of the layout that says what a plane is: its size and the type of its voxels."""
        return tuple(
            value
            for code, value in zip(LAYOUT_TAGS, self.layout, strict=True)
            if code in PLANE_TAGS
        )


def read_directories(path: str) -> list[Directory]:
    """The directories of a file, one for each page.

    Raises: FormatError if the file is not TIFF, or if the chain of directories leaves the file,
        breaks off or runs in a circle.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        version = struct.unpack(order + "H", start[2:4])[0] if order and len(start) >= 8 else 0
        is_ndpi = order == "<" and len(start) == 16 and path.lower().endswith(NDPI_SUFFIX)
        if version == 43 and len(start) == 16:
            count_format, entry_format, next_format, where = "Q", "HHQ8s", "Q", start[8:16]
        elif version == 42 and is_ndpi:
            # Hamamatsu's offsets have 64 bits; the upper halves of values follow the directory
            count_format, entry_format, next_format, where = "H", "HHI4s", "Q", start[4:12]
        elif version == 42:
            count_format, entry_format, next_format, where = "H", "HHI4s", "I", start[4:8]
        else:
            raise FormatError(
                f"cannot read {path}: not a TIFF file (it begins with {start[:4]!r}); give it the "
                "suffix of its own format"
            )
        count_bytes = struct.calcsize(order + count_format)
        next_bytes = struct.calcsize(order + next_format)
        directories: list[Directory] = []
        seen: set[int] = set()
        (offset,) = struct.unpack(order + next_format, where)
        while offset:
            page = f"the directory of page {len(directories) + 1}"
            if offset in seen:
                raise FormatError(
                    f"cannot read {path}: damaged: {page} is that of an earlier page: "
                    "the chain of directories is a circle"
                )
            seen.add(offset)
            file.seek(min(offset, size))
            head = file.read(count_bytes)
            count = struct.unpack(order + count_format, head)[0] if len(head) == count_bytes else 0
            entries = file.read(min(count, MAX_TAGS) * struct.calcsize(order + entry_format))
            tail = file.read(next_bytes)
            if not 0 < count <= MAX_TAGS or len(tail) < next_bytes:
                raise FormatError(
                    f"cannot read {path}: truncated or damaged: {page} should be at byte {offset}, "
                    f"the file has {size} bytes"
                )
            tags = list(struct.iter_unpack(order + entry_format, entries))
            if next_format == "I" and any(tag[0] == NDPI_TAG for tag in tags):  # renamed
                next_format, next_bytes = "Q", 8
                tail = (tail + file.read(4)).ljust(8, b"\0")  # the file may break off
            halves = file.read(4 * len(tags)) if version == 42 and next_format == "Q" else b""
            tags = [(*tag, tag[3] + halves[4 * i : 4 * i + 4]) for i, tag in enumerate(tags)]
            for code, kind, count, value, pointer in tags:
                length = count * TYPE_BYTES.get(kind, 1)
                outside = length > len(value) and _pointer(order, pointer) + length > size
                if code in ESSENTIAL_TAGS and outside:
                    raise FormatError(
                        f"cannot read {path}: truncated or damaged: {page} points beyond the end "
                        f"of the file ({size} bytes)"
                    )
            kinds = [_pointer(order, tag[3]) for tag in tags if tag[0] == SUBFILE_TYPE]
            beside = bool(kinds) and bool(kinds[0] & (REDUCED | MASK))
            directories.append(Directory(offset, _layout(file, order, tags), beside))
            (offset,) = struct.unpack(order + next_format, tail)
    if not directories:
        raise FormatError(f"cannot read {path}: truncated or damaged: it holds no pages")
    return directories


def _pointer(order: str, value: bytes) -> int:
    return int.from_bytes(value, "little" if order == "<" else "big")


def _layout(
    file: BinaryIO, order: str, tags: Sequence[tuple[Any, ...]]
) -> tuple[tuple[int, ...], ...]:
    found: dict[int, tuple[int, ...]] = {code: (default,) for code, default in LAYOUT_TAGS.items()}
    for code, kind, count, value, pointer in tags:
        if code not in found or kind not in INTEGER_TYPES or not 0 < count <= 64:
            continue
        form = f"{order}{count}{INTEGER_TYPES[kind]}"
        if struct.calcsize(form) > len(value):
            file.seek(min(_pointer(order, pointer), 1 << 62))
            value = file.read(struct.calcsize(form))
        if len(value) >= struct.calcsize(form):
            # one value for all samples of a pixel, or one value for each
            values = struct.unpack(form, value[: struct.calcsize(form)])
            found[code] = values[:1] if len(set(values)) == 1 else values
    rows, length = found[278], found[257]
    found[278] = min(rows, length)
    return tuple(found.values())
