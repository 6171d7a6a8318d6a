"""How streams are packed: gzip by isal, several times faster than the standard library; zstd by Python 3.14's own module,
which the package backports.zstd brings to older Pythons.

A packer gets data in blocks that are cut the same way whatever the sizes of writes and the number of threads, and packs
each by itself. Data and level alone therefore decide the bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.system.machine import thread_count

WINDOW_BYTES = 1 << 15  # deflate looks back this far
# Fixed, since there is little to choose: raw and smoothed scans, in blocks of 1 MiB on one CPU, pack at 610 to 930 MB/s,
# as tightly as by gzip's level 1 (a large smooth float32 scan: a quarter looser); level 3 gains 0 to 7 % at a third to
# two thirds of the speed, level 9 no more at a seventh.
ZSTD_LEVEL = 1
LARGEST_WINDOW = 1 << 27  # what zstd allows unless told otherwise; any level packs within it
SKIPPED = b"\x2a\x4d\x18"  # the end of the first word of a frame to be skipped


class Packer(Protocol):
    """Packs one stream: `head`, then each block's bytes, then `tail()`."""

    head: bytes

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        """A block packed, and its checksum; called on several threads. before: the bytes before it, WINDOW_BYTES of them."""

    def join(self, checksum: int, size: int) -> None:
        """Told of each block in order, as it is written."""

    def tail(self) -> bytes: ...


@dataclass(frozen=True)
class Codec:
    """One way to pack a stream.

    name : str                  as messages call it
    suffix : str                lower case, with the dot
    magics : tuple of bytes     a packed file begins with one of them
    largest_inflation : int     bytes that a packed byte can become
    open : callable             (path, file) -> (file that reads forward from there, the errors that it raises)
    packer : callable           (level) -> Packer
    need : callable             (path, error): raises `error` with the cure where a package is missing
    window : callable           (path) -> bytes that unpacking it holds, where they are worth counting
    """

    name: str
    suffix: str
    magics: tuple[bytes, ...]
    largest_inflation: int
    open: Callable[[str, BinaryIO], tuple[Any, Any]]
    packer: Callable[[int], Packer]
    need: Callable[[str, type[Conv3DError]], None] = lambda path, error: None
    window: Callable[[str], int] = lambda path: 0


def codec_threads(threads: int | None = None) -> int:
    """Threads that pack or unpack blocks side by side: those of the job, of which more than 4 find little to do."""
    return min(4, thread_count(threads))


def codec_named(path: str) -> Codec | None:
    """The codec a file's suffix promises.

    >>> codec_named("BRAIN.NII.GZ").name, codec_named("brain.nii.zst").name, codec_named("brain.nii")
    ('gzip', 'zstd', None)
    """
    return next((codec for codec in CODECS if path.lower().endswith(codec.suffix)), None)


def codec_within(path: str) -> Codec | None:
    """The codec a file's first bytes tell, whatever its name: browsers and servers unpack files without renaming them."""
    with open(path, "rb") as file:
        start = file.read(4)
    return next((codec for codec in CODECS if start.startswith(codec.magics)), None)


# --------------------------------------------------------------------------------------------------
# gzip


def _open_gzip(path: str, file: BinaryIO) -> tuple[Any, Any]:
    import zlib

    from isal import igzip, isal_zlib

    return igzip.open(file, "rb"), (OSError, zlib.error, isal_zlib.error)


class GzipPacker:
    """One member, whose blocks have the end of the one before as dictionary, as pigz does it.

    level : int     0 to 3, isal's levels
    """

    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate; no name, no time, unknown system

    def __init__(self, level: int) -> None:
        self._level = level
        self._crc = self._size = 0

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        from isal import isal_zlib

        if before:
            compressor = isal_zlib.compressobj(self._level, isal_zlib.DEFLATED, -15, zdict=before)
        else:
            compressor = isal_zlib.compressobj(self._level, isal_zlib.DEFLATED, -15)
        # flushed, so that the block ends on a whole byte
        return compressor.compress(block) + compressor.flush(
            isal_zlib.Z_SYNC_FLUSH
        ), isal_zlib.crc32(block)

    def join(self, checksum: int, size: int) -> None:
        from isal import isal_zlib

        self._crc = isal_zlib.crc32_combine(self._crc, checksum, size)
        self._size += size

    def tail(self) -> bytes:
        from isal import isal_zlib

        return isal_zlib.compress(b"", wbits=-15) + struct.pack(
            "<II", self._crc, self._size & 0xFFFFFFFF
        )


# --------------------------------------------------------------------------------------------------
# zstd


def zstd_module() -> Any:
    """Python's zstd, or its backport. Raises: ImportError."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def need_zstd(path: str, error: type[Conv3DError]) -> None:
    """Raise `error` with the cure where zstd is missing."""
    try:
        zstd_module()
    except ImportError as cause:
        verb = "read" if error is FormatError else "write"
        raise error(
            f"cannot {verb} {path}: zstd needs the package backports.zstd: pip install 'conv3d[zstd]'"
        ) from cause


def _open_zstd(path: str, file: BinaryIO) -> tuple[Any, Any]:
    zstd = zstd_module()
    if _zstd_window(path) > LARGEST_WINDOW:
        raise FormatError(
            f"cannot read {path}: its zstd stream needs a window of {_zstd_window(path) >> 20} MiB, the limit is "
            f"{LARGEST_WINDOW >> 20}; pack it again without --long"
        )
    # frames one after another are one stream
    return zstd.open(file, "rb"), (
        OSError,
        zstd.ZstdError,
    )


def _zstd_window(path: str) -> int:
    """Bytes that unpacking the first frame holds: its window, or all its content (RFC 8878, 3.1.1.1)."""
    with open(path, "rb") as file:
        head = file.read(18)  # the longest frame header
        while head[1:4] == SKIPPED:
            file.seek(int.from_bytes(head[4:8], "little") + 8 - len(head), 1)
            head = file.read(18)
    try:
        content = zstd_module().get_frame_info(head).decompressed_size
    except zstd_module().ZstdError:
        return 0  # reading will tell
    if head[4] & 0x20:  # in a single segment
        return content or 0
    return ((8 + (head[5] & 7)) << 7) << (head[5] >> 3)


class ZstdPacker:
    """A frame with a checksum for each block, as pzstd does it."""

    head = b""

    def __init__(self, level: int) -> None:
        self._zstd = zstd_module()
        parameter = self._zstd.CompressionParameter
        self._options = {parameter.compression_level: ZSTD_LEVEL, parameter.checksum_flag: 1}

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        return self._zstd.compress(block, options=self._options), 0

    def join(self, checksum: int, size: int) -> None:
        pass  # the frame has it

    def tail(self) -> bytes:
        return b""


CODECS = (
    Codec(
        name="gzip",
        suffix=".gz",
        magics=(b"\x1f\x8b",),
        largest_inflation=1040,  # deflate turns one byte into at most 1032 (zlib's notes); the rest is for the container
        open=_open_gzip,
        packer=GzipPacker,
    ),
    Codec(
        name="zstd",
        suffix=".zst",
        # pzstd begins with a frame to be skipped
        magics=(b"\x28\xb5\x2f\xfd", *(bytes([kind]) + SKIPPED for kind in range(0x50, 0x60))),
        # RFC 8878: a block is at most 128 KiB, and takes at least 4 bytes if it is that long
        largest_inflation=1 << 15,
        open=_open_zstd,
        packer=ZstdPacker,
        need=need_zstd,
        window=_zstd_window,
    ),
)
