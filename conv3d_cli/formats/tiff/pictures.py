"""Sizes that packed pictures inside of files tell: JPEG, JPEG 2000, JPEG XR, JPEG XL, PNG, WebP.

Their decoders make an image of the size that its header tells, whatever the file around it says.
So the header is read here first, and an image that is larger is not decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

XR_BYTES = {2: 2, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4}  # of a sample in JPEG XR, by its code of depth
SIDE_BITS = (9, 13, 18, 30)  # of a length in JPEG XL, by a choice of two bits


def check_picture(data: bytes, most: int) -> None:
    """Check that a picture decodes to at most `most` bytes.

    Pictures of kinds that are not known here are let through: no decoder knows them either.
    Raises: ValueError.

    >>> check_picture(b"\\x89PNG".ljust(16) + bytes([0, 1, 0, 0] * 2 + [8, 2]), 99)
    Traceback (most recent call last):
    ...
    ValueError: its picture has 65536 x 65536 voxels, more than its strip or tile
    """
    try:
        width, height, size = _picture(bytes(data))
    except (struct.error, IndexError):
        raise ValueError("the header of its picture breaks off") from None
    if width * height * size > most:
        raise ValueError(f"its picture has {width} x {height} voxels, more than its strip or tile")


def _picture(data: bytes) -> tuple[int, int, int]:
    """Width, height, and bytes of a voxel. Raises: ValueError, struct.error, IndexError."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\xff\x4f\xff\x51"):
        return _jpeg2000(data)
    if data.startswith(b"\x89PNG"):
        width, height, depth, kind = struct.unpack_from(">II2B", data, 16)
        return width, height, max(1, depth // 8) * {0: 1, 2: 3, 4: 2, 6: 4}.get(kind, 4)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"II\xbc"):
        return _jpeg_xr(data)
    if data.startswith(b"\xff\x0a"):
        return (*_jpeg_xl(data[2:20]), 1)
    if data[4:8] in (b"jP  ", b"JXL "):
        for kind, start in _boxes(data):
            if kind == b"jp2c":
                return _jpeg2000(data[start:])
            if kind in (b"jxlc", b"jxlp"):
                start += 4 if kind == b"jxlp" else 0
                return (*_jpeg_xl(data[start + 2 : start + 20]), 1)
        raise ValueError("its picture has no voxels")
    return 0, 0, 0


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and start of each box of a JPEG 2000 or JPEG XL file."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        yield kind, at + head
        if size < head:  # 0: up to the end
            return
        at += size


def _jpeg(data: bytes) -> tuple[int, int, int]:
    """By the first frame header, SOF; also of JPEG-LS."""
    at = 2
    while True:
        while data[at] != 0xFF:
            at += 1
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 3)
            return width, height, samples * -(-bits // 8)
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        at += 1 if alone else 1 + struct.unpack_from(">H", data, at + 1)[0]


def _jpeg2000(data: bytes) -> tuple[int, int, int]:
    width, height, left, top = struct.unpack_from(">4I", data, 8)
    (samples,) = struct.unpack_from(">H", data, 40)
    bits = max((data[42 + 3 * k] & 0x7F) + 1 for k in range(samples))
    return max(width - left, 0), max(height - top, 0), samples * -(-bits // 8)


def _webp(data: bytes) -> tuple[int, int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<2H", data, 26))
    return width, height, 3


def _jpeg_xr(data: bytes) -> tuple[int, int, int]:
    """By the header of the coded image, which the decoder believes, not by the container's tags."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for number in range(count):
        tag, _, _, value = struct.unpack_from("<HHII", data, directory + 2 + 12 * number)
        if tag == 0xBCC0:  # ImageOffset
            if data[value : value + 8] != b"WMPHOTO\0":
                break
            short = bool(data[value + 10] & 0x80)
            width, height = struct.unpack_from(">2H" if short else ">2I", data, value + 12)
            depth = data[value + 11]
            samples = 3 if depth >> 4 else 1
            return width + 1, height + 1, samples * XR_BYTES.get(depth & 15, 1)
    raise ValueError("its picture has no voxels")


def _jpeg_xl(data: bytes) -> tuple[int, int]:
    bits = int.from_bytes(data, "little")
    if len(data) < 12:
        raise IndexError

    def take(count: int) -> int:
        nonlocal bits
        found = bits & ((1 << count) - 1)
        bits >>= count
        return found

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(SIDE_BITS[take(2)]) + 1

    height = side()
    ratio = take(3)
    if ratio == 0:
        return side(), height
    top, bottom = ((1, 1), (6, 5), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * top // bottom, height
