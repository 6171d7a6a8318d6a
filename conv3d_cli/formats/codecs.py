"""Codecs of compressed streams: gzip and zstd, and zlib inside of files.

gzip is isal's, several times faster than the standard library. zstd is the module of Python 3.14,
or the package backports.zstd on older Pythons.

A packer compresses data in blocks, each by itself. The blocks are cut the same way whatever the
sizes of writes and the number of threads, so data and level alone decide the bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.system.machine import thread_count

GZIP_MAGIC = b"\x1f\x8b"
GZIP_READ_BYTES = 1 << 17  # packed bytes read at a time
WINDOW_BYTES = 1 << 15  # deflate looks back this far
# Fixed, since other levels gain little. Raw and smoothed scans, in blocks of 1 MiB on one CPU:
# level 1 packs 610 to 930 MB/s, as tightly as gzip's level 1 (a large smooth float32 scan: a
# quarter looser); level 3 gains 0 to 7 % at a third to two thirds of that speed; level 9 gains no
# more than level 3, at a seventh.
ZSTD_LEVEL = 1
LARGEST_WINDOW = 1 << 27  # zstd's default limit for reading; every level packs within it
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x2a\x4d\x18"  # last 3 bytes of the magic number of a skippable frame


class Packer(Protocol):
    """Packs one stream: `head`, then each packed block, then `tail()`."""

    head: bytes

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        """Pack a block: (packed bytes, checksum). Several threads call it.

        before : bytes      the last WINDOW_BYTES bytes before the block; empty for the first
        """

    def add(self, checksum: int, size: int) -> None:
        """Add a block's checksum and unpacked bytes to the stream's; called block after block."""

    def tail(self) -> bytes:
        """The bytes that end the stream."""


@dataclass(frozen=True)
class Codec:
    """One way to compress a stream.

    name : str                  for messages
    suffix : str                of file names, in lower case, with the dot
    magics : tuple of bytes     a packed file begins with one of them
    largest_inflation : int     most unpacked bytes that one packed byte can stand for
    open : callable             (path, file) -> (file that unpacks from the file's position on,
                                exception classes that it raises)
    packer : callable           (level) -> Packer
    require : callable          (path, error): raises `error` with the cure if a package is missing
    window_bytes : callable     (path) -> memory that unpacking takes; 0 if too little to count
    """

    name: str
    suffix: str
    magics: tuple[bytes, ...]
    largest_inflation: int
    open: Callable[[str, BinaryIO], tuple[Any, Any]]
    packer: Callable[[int], Packer]
    require: Callable[[str, type[Conv3DError]], None] = lambda path, error: None
    window_bytes: Callable[[str], int] = lambda path: 0


def codec_threads(threads: int | None = None) -> int:
    """Number of threads that pack or unpack blocks: those of the job, but at most 4.

    More find little to do.
    """
    return min(4, thread_count(threads))


def codec_named(path: str) -> Codec | None:
    """The codec of a file name's suffix; None if it has none.

    >>> codec_named("BRAIN.NII.GZ").name, codec_named("a.nii.zst").name, codec_named("brain.nii")
    ('gzip', 'zstd', None)
    """
    return next((codec for codec in CODECS if path.lower().endswith(codec.suffix)), None)


def codec_within(path: str) -> Codec | None:
    """The codec of a file's first bytes, whatever its name; None if it is not packed.

    Browsers and servers unpack files without renaming them.
    """
    with open(path, "rb") as file:
        return codec_of(file)


def codec_of(file: BinaryIO) -> Codec | None:
    """As `codec_within`, of an open file, which is then at its beginning again."""
    start = file.read(4)
    file.seek(0)
    return next((codec for codec in CODECS if start.startswith(codec.magics)), None)


def unpack_members(data: Any, most: int, new: Callable[[], Any], magic: bytes = b"") -> bytes:
    """The unpacked bytes of a stream in memory, if they are no more than `most`.

    new : callable      () -> an object like `bz2.BZ2Decompressor`, for one member of the stream
    magic : bytes       first bytes of each further member; b"" if only the first one counts
    Raises: ValueError if it unpacks to more or breaks off; what the decompressor raises.

    >>> import bz2
    >>> unpack_members(bz2.compress(b"voxels") * 2, 12, bz2.BZ2Decompressor, b"BZh")
    b'voxelsvoxels'
    >>> unpack_members(bz2.compress(bytes(10**6)), 12, bz2.BZ2Decompressor)
    Traceback (most recent call last):
    ...
    ValueError: it unpacks to more than 12 bytes, which its shape allows
    """
    parts, size, rest = [], 0, data
    while True:
        member = new()
        while not member.eof:
            part = member.decompress(rest, max_length=most + 1 - size)
            size += len(part)
            if size > most:
                raise ValueError(f"it unpacks to more than {most:,} bytes, which its shape allows")
            parts.append(part)
            rest = b""
            if not part and not member.eof and member.needs_input:
                raise ValueError("its stream breaks off")
        rest = member.unused_data.lstrip(b"\0")
        if not magic or not rest.startswith(magic):
            return parts[0] if len(parts) == 1 else b"".join(parts)


# --------------------------------------------------------------------------------------------------
# gzip


class GzipFile:
    """The unpacked bytes of a gzip file: its members, one after another.

    file : BinaryIO             read from its position on, not closed
    has_bytes_after : bool      bytes follow the last member that are neither zero nor a member;
                                they are not read

    The standard library's and isal's own classes refuse such bytes, and lose what they have
    unpacked before.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._packed = file, b""  # packed bytes that are not yet unpacked
        self._member: Any = None
        self._begun = self._ended = self.has_bytes_after = False
        self._position = 0

    def read(self, count: int) -> bytes:
        """The next `count` unpacked bytes; fewer only at the end.

        Raises: EOFError if a member breaks off, OSError if the file is none of gzip,
            igzip_lib.IsalError if a member is damaged.
        """
        parts, wanted = [], count
        while wanted and not self._ended:
            if self._member is None and not self._next_member():
                break
            is_end = False
            if self._member.needs_input and not self._packed:
                self._packed = self._file.read(GZIP_READ_BYTES)
                is_end = not self._packed
            # at the file's end, too: isal 1.6.0 says that it needs input while it holds output
            data = self._member.decompress(self._packed, wanted)
            if is_end and not data and not self._member.eof:
                raise EOFError
            self._packed = b""
            if self._member.eof:
                self._packed, self._member = self._member.unused_data, None
            self._position += len(data)
            wanted -= len(data)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next_member(self) -> bool:
        """Begin the next member; False if there is none."""
        from isal import igzip_lib

        start = self._packed or self._file.read(GZIP_READ_BYTES)
        while self._begun and start and not start.strip(b"\0"):
            start = self._file.read(GZIP_READ_BYTES)
        if self._begun:
            start = start.lstrip(b"\0")  # padding, as on tapes
        if len(start) < 2:
            start += self._file.read(GZIP_READ_BYTES)
        is_member = start.startswith(GZIP_MAGIC)
        if not is_member and not self._begun:
            raise OSError(f"not a gzip file: it begins with {start[:2]!r}" if start else "empty")
        self._packed, self._begun, self._ended = start, True, not is_member
        self.has_bytes_after = bool(start) and not is_member
        self._member = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_GZIP) if is_member else None
        return is_member

    def tell(self) -> int:
        """The number of bytes unpacked so far."""
        return self._position

    def close(self) -> None:
        """Drop what is not yet unpacked."""
        self._packed, self._member, self._ended = b"", None, True


def _open_gzip(path: str, file: BinaryIO) -> tuple[Any, Any]:
    from isal import igzip_lib

    return GzipFile(file), (OSError, igzip_lib.IsalError)


class GzipPacker(Packer):
    """Packs one gzip member; each block uses the end of the one before as dictionary, as in pigz.

    level : int     0 to 3 (isal's scale)
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
        # the flush makes the block end on a whole byte
        packed = compressor.compress(block) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)
        return packed, isal_zlib.crc32(block)

    def add(self, checksum: int, size: int) -> None:
        from isal import isal_zlib

        self._crc = isal_zlib.crc32_combine(self._crc, checksum, size)
        self._size += size

    def tail(self) -> bytes:
        from isal import isal_zlib

        last_block = isal_zlib.compress(b"", wbits=-15)
        return last_block + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)


# --------------------------------------------------------------------------------------------------
# zlib: gzip's stream in another container, in MetaImage files


class _ZlibFile:
    """Unpacks a zlib stream from a file's position on."""

    def __init__(self, file: BinaryIO) -> None:
        from isal import isal_zlib

        self._file, self._stream = file, isal_zlib.decompressobj()

    def read(self, count: int) -> bytes:
        """At most `count` unpacked bytes; none at the end. Raises: EOFError if it breaks off."""
        while not self._stream.eof:
            packed = self._stream.unconsumed_tail or self._file.read(1 << 16)
            data: bytes = self._stream.decompress(packed, count)
            if data:
                return data
            if not packed:
                raise EOFError("the stream breaks off")
        return b""

    def close(self) -> None:
        pass  # the caller closes its file


def _open_zlib(path: str, file: BinaryIO) -> tuple[Any, Any]:
    import zlib

    from isal import isal_zlib

    return _ZlibFile(file), (OSError, zlib.error, isal_zlib.error)


class ZlibPacker(GzipPacker):
    """Packs one zlib stream, block by block as `GzipPacker`."""

    head = b"\x78\x01"

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._sum = 1

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        from isal import isal_zlib

        return super().pack(block, before)[0], isal_zlib.adler32(block)

    def add(self, checksum: int, size: int) -> None:
        # Adler-32 of two parts: RFC 1950, 8.2, s1 and s2 modulo 65521, each begun at 1 and 0
        low, high = self._sum & 0xFFFF, self._sum >> 16
        more_low, more_high = checksum & 0xFFFF, checksum >> 16
        high = (high + more_high + size * (low - 1)) % 65521
        low = (low + more_low - 1) % 65521
        self._sum = high << 16 | low

    def tail(self) -> bytes:
        from isal import isal_zlib

        return isal_zlib.compress(b"", wbits=-15) + struct.pack(">I", self._sum)


# --------------------------------------------------------------------------------------------------
# zstd


def zstd_module() -> Any:
    """Python's zstd module, or its backport. Raises: ImportError if neither is there."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def need_zstd(path: str, error: type[Conv3DError]) -> None:
    """Raise `error` with the cure if zstd is missing."""
    try:
        zstd_module()
    except ImportError as cause:
        verb = "read" if error is FormatError else "write"
        raise error(
            f"cannot {verb} {path}: zstd needs the package backports.zstd: "
            "pip install 'conv3d[zstd]'"
        ) from cause


def _open_zstd(path: str, file: BinaryIO) -> tuple[Any, Any]:
    zstd = zstd_module()
    window = _zstd_window_bytes(path)
    if window > LARGEST_WINDOW:
        raise FormatError(
            f"cannot read {path}: its zstd stream needs a window of {window >> 20} MiB, "
            f"the limit is {LARGEST_WINDOW >> 20}; pack it again without --long"
        )
    # reads several frames as one stream
    return zstd.open(file, "rb"), (OSError, zstd.ZstdError)


def zstd_content(head: bytes) -> int | None:
    """The unpacked size that the header of a zstd frame tells; None if it does not.

    head : bytes    18 bytes or more, the longest header
    Source: RFC 8878, 3.1.1.1.
    """
    if not head.startswith(ZSTD_MAGIC) or len(head) < 6:
        return None
    flags = head[4]
    single = flags >> 5 & 1
    length = (single, 2, 4, 8)[flags >> 6]
    at = 6 - single + (0, 1, 2, 4)[flags & 3]
    if not length or len(head) < at + length:
        return None
    return int.from_bytes(head[at : at + length], "little") + (256 if length == 2 else 0)


def _zstd_window_bytes(path: str) -> int:
    """Memory that unpacking the first frame takes: its window, or its whole content.

    Source: RFC 8878, 3.1.1.1.
    """
    with open(path, "rb") as file:
        head = file.read(18)  # the longest frame header
        while head[1:4] == SKIPPABLE:
            file.seek(int.from_bytes(head[4:8], "little") + 8 - len(head), 1)
            head = file.read(18)
    try:
        content = zstd_module().get_frame_info(head).decompressed_size
    except zstd_module().ZstdError:
        return 0  # reading reports the error
    if head[4] & 0x20:  # Single_Segment_flag
        return content or 0
    return ((8 + (head[5] & 7)) << 7) << (head[5] >> 3)


class ZstdPacker(Packer):
    """Packs each block as a zstd frame with a checksum, as in pzstd.

    level : int     ignored: see `ZSTD_LEVEL`
    """

    head = b""

    def __init__(self, level: int) -> None:
        self._zstd = zstd_module()
        parameter = self._zstd.CompressionParameter
        self._options = {parameter.compression_level: ZSTD_LEVEL, parameter.checksum_flag: 1}

    def pack(self, block: memoryview, before: bytes) -> tuple[bytes, int]:
        return self._zstd.compress(block, options=self._options), 0

    def add(self, checksum: int, size: int) -> None:
        pass  # each frame has its own

    def tail(self) -> bytes:
        return b""


CODECS = (
    Codec(
        name="gzip",
        suffix=".gz",
        magics=(GZIP_MAGIC,),
        # deflate makes at most 1032 bytes of one (zlib's notes); the rest is for the container
        largest_inflation=1040,
        open=_open_gzip,
        packer=GzipPacker,
    ),
    Codec(
        name="zstd",
        suffix=".zst",
        # pzstd begins with a skippable frame
        magics=(ZSTD_MAGIC, *(bytes([kind]) + SKIPPABLE for kind in range(0x50, 0x60))),
        # RFC 8878: a block has at most 128 KiB, and a block of that size takes at least 4 bytes
        largest_inflation=1 << 15,
        open=_open_zstd,
        packer=ZstdPacker,
        require=need_zstd,
        window_bytes=_zstd_window_bytes,
    ),
)
# not in `CODECS`: the format says where its stream is, no magic does
ZLIB = Codec(
    name="zlib",
    suffix=".zlib",
    magics=(),
    largest_inflation=1040,
    open=_open_zlib,
    packer=ZlibPacker,
)
