"""PNG files of palette images, by the standard library alone: the same bytes for the same picture."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from conv3d_cli.pictures.panels import Shades


def encode_png(shades: Shades, palette: Shades) -> bytes:
    """A PNG of 8-bit palette indices.

    shades : (rows, columns) uint8      indices
    palette : (256, 3) uint8            RGB
    Source: PNG (Portable Network Graphics) Specification, third edition, sections 5 and 11.
    >>> encode_png(np.zeros((2, 3), np.uint8), np.zeros((256, 3), np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    rows, columns = shades.shape
    # each row begins with the number of its filter: none
    unfiltered = np.zeros((rows, columns + 1), np.uint8)
    unfiltered[:, 1:] = shades
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", zlib.compress(unfiltered.tobytes(), 9)), (b"IEND", b""),
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
