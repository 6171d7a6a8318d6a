"""PNG files of palette images, by the standard library only; equal images give equal bytes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from conv3d_cli.pictures.panels import Shades


def encode_png(shades: Shades, palette: Shades) -> bytes:
    """The bytes of a PNG file with 8-bit palette indices.

    shades : (rows, columns) uint8      indices into the palette
    palette : (256, 3) uint8            RGB colours
    Source: PNG (Portable Network Graphics) Specification, third edition, sections 5 and 11.
    >>> encode_png(np.zeros((2, 3), np.uint8), np.zeros((256, 3), np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    rows, columns = shades.shape
    # each row begins with its filter type, 0: none
    unfiltered = np.zeros((rows, columns + 1), np.uint8)
    unfiltered[:, 1:] = shades
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    compressed = zlib.compress(unfiltered.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", header),
            _chunk(b"PLTE", palette.tobytes()),
            _chunk(b"IDAT", compressed),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    length, checksum = len(data), zlib.crc32(name + data)
    return struct.pack(">I", length) + name + data + struct.pack(">I", checksum)
