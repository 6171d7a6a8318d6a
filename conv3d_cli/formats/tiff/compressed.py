"""Compressed TIFF: decoding strips and tiles in parallel, and writing pages in packed strips.

tifffile finds strips and tiles, and undoes their predictors. This module unpacks deflate, zstd,
LZMA and PackBits, never into more bytes than a strip's own. tifffile decodes the other codecs, and
needs imagecodecs for them; of pictures such as JPEG, their size is checked first.

Other programs must be able to read an output. Integers of up to 32 bits are written with the
horizontal predictor, which makes a noisy scan a quarter smaller; floating-point numbers without a
predictor, since ImageJ does not know theirs.
"""

from __future__ import annotations

import collections
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np

from conv3d_cli.errors import WriteError
from conv3d_cli.formats.codecs import ZSTD_LEVEL, codec_threads, need_zstd, zstd_module
from conv3d_cli.formats.packed import first_voxel
from conv3d_cli.formats.tiff import COMPRESSIONS, DEFLATE, OLD_DEFLATE, ZSTD
from conv3d_cli.formats.tiff.pictures import check_picture
from conv3d_cli.model.volume import Array, Axes, VolumeHeader, VolumeWriter
from conv3d_cli.system.atomic import OutputFile, write_errors

HORIZONTAL = 2  # predictor for integers
PACKBITS, LZMA = 32773, 34925  # numbers of codecs
LZMA_BYTES = 66 << 20  # of a dictionary, which the strongest of xz's levels takes
PICTURE_SLACK, PICTURE_BYTES = 2, 1 << 20
MSB_FIRST = 1  # order of bits in all but old fax files
# Voxels of a strip, as in tifffile; affects an output's bytes.
STRIP_BYTES = 1 << 18


# --------------------------------------------------------------------------------------------------
# Reading


def unpack_deflate(data: bytes, size: int) -> bytes:
    """The first `size` unpacked bytes of a zlib stream, fewer if it has no more.

    Raises: ValueError if it breaks off.
    """
    from isal import isal_zlib

    stream = isal_zlib.decompressobj()
    values: bytes = stream.decompress(data, size)
    # the checksum may follow
    if not stream.eof and not stream.decompress(stream.unconsumed_tail, 1) and not stream.eof:
        raise ValueError("its deflate stream breaks off")
    return values


def unpack_zstd(data: bytes, size: int) -> bytes:
    """The first `size` unpacked bytes of a zstd frame, fewer if it has no more.

    Raises: ValueError if it breaks off.
    """
    return _unpack_stream(zstd_module().ZstdDecompressor(), data, size, "zstd")


def unpack_lzma(data: bytes, size: int) -> bytes:
    """The first `size` unpacked bytes of an LZMA stream, fewer if it has no more.

    Raises: ValueError if it breaks off; LZMAError if it is damaged, or needs much memory.
    """
    import lzma

    return _unpack_stream(lzma.LZMADecompressor(memlimit=LZMA_BYTES), data, size, "LZMA")


def _unpack_stream(stream: Any, data: bytes, size: int, name: str) -> bytes:
    values: bytes = stream.decompress(data, max_length=size)
    while not stream.eof and len(values) < size:
        if stream.needs_input:
            raise ValueError(f"its {name} stream breaks off")
        values += stream.decompress(b"", max_length=size - len(values))
    if not stream.eof and not stream.decompress(b"", max_length=1) and not stream.eof:
        raise ValueError(f"its {name} stream breaks off")
    return values


def unpack_packbits(data: bytes, size: int) -> bytes:
    """The first `size` bytes of runs, fewer if there are no more.

    >>> unpack_packbits(bytes([2, 1, 2, 3, 128, 255, 9]), 5)
    b'\\x01\\x02\\x03\\t\\t'
    """
    parts, done, at = [], 0, 0
    while done < size and at < len(data):
        count = data[at]
        if count < 128:
            part = data[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            part = data[at + 1 : at + 2] * (257 - count if count > 128 else 0)
            at += 2 if count > 128 else 1
        parts.append(part)
        done += len(part)
    return b"".join(parts)[:size]


def _unpacker(compression: int) -> Callable[[bytes, int], bytes] | None:
    if compression in (DEFLATE, OLD_DEFLATE):
        return unpack_deflate
    if compression == ZSTD:
        try:
            zstd_module()
        except ImportError:
            return None
        return unpack_zstd
    if compression == LZMA:
        return unpack_lzma
    if compression == PACKBITS:
        return unpack_packbits if find_spec("imagecodecs") is None else _unpack_packbits_quickly
    return None


def _unpack_packbits_quickly(data: bytes, size: int) -> bytes:
    """As `unpack_packbits`."""
    import imagecodecs

    try:
        values: bytes = imagecodecs.packbits_decode(data, out=size)
    except imagecodecs.PackbitsError:  # newer ones refuse more than `size` bytes
        return unpack_packbits(data, size)
    return values


def unpack_here(keyframe: Any) -> None:
    """Make tifffile unpack a page, and the pages like it, with this module, if it knows the codec.

    tifffile then treats the strips as uncompressed. A second call changes nothing.

    keyframe : TiffPage     of tifffile; changed
    """
    unpack = _unpacker(keyframe.compression)
    if keyframe.dtype is None or getattr(keyframe.__dict__.get("decode"), "bounded", False):
        return
    if unpack is None:
        _check_pictures(keyframe)
        return
    if keyframe.fillorder != MSB_FIRST:
        return
    unpacked = copy.copy(keyframe)
    unpacked.compression = 1
    for name in ("decode", "hash"):  # cached properties that depend on the compression
        unpacked.__dict__.pop(name, None)
    size = segment_bytes(keyframe)

    def decode(data: bytes | None, index: int, **options: Any) -> Any:
        return unpacked.decode(None if data is None else unpack(data, size), index, **options)

    decode.bounded = True  # type: ignore[attr-defined]
    keyframe.__dict__["decode"] = decode


def _check_pictures(keyframe: Any) -> None:
    """Make tifffile check the size of each picture of a page before it is decoded."""
    decoded = keyframe.decode
    # one that is padded to whole blocks, or has a channel more
    most = PICTURE_SLACK * segment_bytes(keyframe) + PICTURE_BYTES

    def decode(data: bytes | None, index: int, **options: Any) -> Any:
        if data is not None:
            check_picture(data, most)
        return decoded(data, index, **options)

    decode.bounded = True  # type: ignore[attr-defined]
    keyframe.__dict__["decode"] = decode


def segment_bytes(keyframe: Any) -> int:
    """Bytes of an unpacked strip or tile of a page."""
    if keyframe.is_tiled:
        voxels = keyframe.tiledepth * keyframe.tilelength * keyframe.tilewidth
    else:
        voxels = min(keyframe.rowsperstrip, keyframe.imagelength) * keyframe.imagewidth
    samples = keyframe.samplesperpixel if keyframe.planarconfig == 1 else 1
    return int(voxels * samples * keyframe.dtype.itemsize)


# --------------------------------------------------------------------------------------------------
# Writing


def differences(values: Array) -> Array:
    """Each voxel minus its left neighbour, modulo 2^bits: TIFF's horizontal predictor.

    values : integers (rows, width, samples)
    >>> differences(np.array([[[5], [7], [4]]], np.uint8)).ravel().tolist()
    [5, 2, 253]
    """
    result = values.copy()
    np.subtract(values[:, 1:], values[:, :-1], out=result[:, 1:])
    return result


def predictor_of(dtype: np.dtype[Any]) -> int | None:
    """TIFF's code of the predictor for voxels of a dtype; None without one."""
    return HORIZONTAL if dtype.kind in "iu" and dtype.itemsize <= 4 else None


def _pack(data: memoryview, compression: int, level: int) -> bytes:
    if compression == ZSTD:
        packed: bytes = zstd_module().compress(data, ZSTD_LEVEL)
        return packed
    import zlib

    from isal import isal_zlib

    packed = isal_zlib.compress(data, level)
    # isal's fastest levels make noise a fifth longer. Store it instead, so that the file stays
    # within the reach of its offsets.
    return packed if len(packed) < len(data) else zlib.compress(data, 0)


def ahead(
    pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], count: int
) -> Iterator[Any]:
    """function(item) for each item, in order, computed at most `count` items ahead.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(ahead(pool, abs, [-1, 2, -3], 2))
    [1, 2, 3]
    """
    begun: collections.deque[Future[Any]] = collections.deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) >= count:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class PackedStackWriter(VolumeWriter):
    """A writer of compressed TIFF, page after page in storage order.

    A few threads pack the strips. Strips are cut and packed in the same way whatever the slabs and
    threads, so that these change no byte.

    output : OutputFile     this writer commits it
    axes : Axes             as stored; the same volumes, planes and channels as the header's
    dtype : numpy dtype     as stored, little-endian
    big : bool              64-bit offsets (BigTIFF)
    page, first : dict      arguments of tifffile's `write`: for each page, and for the first alone
    compression : str       one of COMPRESSIONS
    level : int             of deflate, 0 to 3 (isal's scale)
    threads : int or None   threads that pack; None: see `machine.thread_count`
    """

    sequential = True

    def __init__(
        self,
        output: OutputFile,
        header: VolumeHeader,
        path: str,
        axes: Axes,
        dtype: np.dtype[Any],
        *,
        big: bool,
        page: dict[str, Any],
        first: dict[str, Any],
        compression: str,
        level: int,
        threads: int | None = None,
    ) -> None:
        import tifffile

        self.output, self.header, self.path = output, header, path
        self._axes, self._dtype = axes, dtype
        self._code, self._level = COMPRESSIONS[compression], level
        self._page_shape = tuple(axes.size(a) for a in axes.letters if a in "yxs")
        self._rows = strip_rows(self._page_shape, dtype)
        self._first = first
        self._next = 0  # number of the next page
        self._workers = codec_threads(threads)
        self._pool = ThreadPoolExecutor(self._workers, "conv3d-pack")
        self._page = {
            "shape": self._page_shape,
            "dtype": dtype,
            "compression": self._code,
            "predictor": predictor_of(dtype),
            "rowsperstrip": self._rows,
            "metadata": None,
            "software": False,
            **page,
        }
        with write_errors(path):
            self._tiff = tifffile.TiffWriter(
                output.file, bigtiff=big, byteorder="<", ome=False, shaped=False
            )

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        start = first_voxel(self._axes, n, depth_start, channel_start)
        in_one_piece = block.shape[3] == self._axes.canonical_shape[4] or block.shape[0] == 1
        if start != self._next * math.prod(self._page_shape) or not in_one_piece:
            raise RuntimeError(
                f"{self.path} is compressed and takes slabs only in storage order: "
                f"page {self._next} comes next, "
                f"received voxel {start} with {block.shape[3]} channels"
            )
        values = self._axes.storage_order(block)
        outer = values.ndim - len(self._page_shape)
        pages = [values[index] for index in np.ndindex(*values.shape[:outer])]
        height = self._page_shape[0]
        strips = (
            page[row : row + self._rows] for page in pages for row in range(0, height, self._rows)
        )
        packed = ahead(self._pool, self._pack_strip, strips, 2 * self._workers)
        with write_errors(self.path):
            for _ in pages:
                own = self._first if self._next == 0 else {}
                try:
                    self._tiff.write(
                        islice(packed, -(-height // self._rows)), **{**self._page, **own}
                    )
                except (ValueError, RuntimeError) as error:
                    raise WriteError(f"cannot write {self.path}: {error}") from error
                self._next += 1

    def _pack_strip(self, strip: Array) -> bytes:
        values = np.ascontiguousarray(strip, self._dtype)
        if self._page["predictor"] is not None:
            values = differences(values.reshape(*values.shape[:2], -1))
        return _pack(values.reshape(-1).view(np.uint8).data, self._code, self._level)

    def commit(self) -> None:
        pages = math.prod(self._axes.shape) // math.prod(self._page_shape)
        if self._next != pages:
            raise RuntimeError(f"{self.path}: {self._next} of {pages} pages were written")
        self._pool.shutdown()
        with write_errors(self.path):
            self._tiff.close()
        self.output.commit()

    def abort(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.output.abort()


def strip_rows(page_shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Rows of a strip, for pages of shape (height, width[, samples]).

    >>> strip_rows((500, 1024), np.dtype(np.float32))
    64
    """
    row = math.prod(page_shape[1:]) * dtype.itemsize
    return int(min(page_shape[0], max(1, STRIP_BYTES // row)))


def packing_bytes(header: VolumeHeader, compression: str) -> int:
    """Memory that packing takes: strips in flight, with their differences and packed bytes."""
    if compression == "none":
        return 0
    row = header.shape[3] * header.shape[4] * header.dtype.itemsize
    return 2 * codec_threads() * 3 * max(STRIP_BYTES, row)


def need_codec(path: str, compression: str) -> None:
    """Check that a codec is installed. Raises: WriteError with the cure if it is missing."""
    if compression == "zstd":
        need_zstd(path, WriteError)
