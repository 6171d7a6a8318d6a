"""Volumes in a compressed stream, of any format and codec; read forward and written forward.

A reader unpacks no more than the slab that is asked for. A writer packs blocks of a fixed size on a
few threads; the same volume always gives the same bytes.
"""

from __future__ import annotations

import collections
import io
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.formats.base import (
    RawReader,
    reserve_space,
)
from conv3d_cli.formats.codecs import WINDOW_BYTES, Codec, codec_threads
from conv3d_cli.model.volume import SPATIAL, Array, Axes, VolumeHeader, VolumeReader, VolumeWriter
from conv3d_cli.system.atomic import OutputFile, write_errors
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.portable import write_at
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

# Unpacked at a time, then copied into the slab: measured as fast as unpacking into the slab itself.
READ_BYTES = 1 << 18
# Packed at a time; affects an output's bytes. (zstd packs blocks of 4 MiB at most 0.3 % tighter.)
BLOCK_BYTES = 1 << 20


class PackedStream:
    """A packed file, unpacked forward; any damage raises a FormatError that names the file.

    start : int         bytes of the file before the stream
    position : int      unpacked bytes read so far
    Raises: FormatError if the codec's package is missing.
    """

    def __init__(self, path: str, codec: Codec, start: int = 0) -> None:
        self.path, self.codec, self.position = path, codec, 0
        codec.require(path, FormatError)
        self._packed = open(path, "rb")  # noqa: SIM115 - closed by `close`
        try:
            self._packed.seek(start)
            self._file, self._errors = codec.open(path, self._packed)
        except BaseException:
            self._packed.close()
            raise

    def read(self, count: int) -> bytes:
        """The next `count` unpacked bytes; fewer only at the end. Raises: FormatError."""
        try:
            data: bytes = self._file.read(count)
        except EOFError as error:
            raise FormatError(
                f"cannot read {self.path}: truncated: its {self.codec.name} stream breaks off "
                f"after {self._file.tell()} unpacked bytes; copy it again"
            ) from error
        except self._errors as error:
            raise_fault(error, self.path)
            raise FormatError(
                f"cannot read {self.path}: corrupt {self.codec.name} stream "
                f"after {self._file.tell()} unpacked bytes ({error}); copy it again"
            ) from error
        self.position += len(data)
        return data

    def fill(self, target: memoryview) -> int:
        """Fill a buffer. Returns the bytes filled, fewer only at the end. Raises: FormatError."""
        done = 0
        while done < len(target):
            data = self.read(min(READ_BYTES, len(target) - done))
            if not data:
                break
            target[done : done + len(data)] = data
            done += len(data)
        return done

    def skip_to(self, position: int) -> None:
        """Unpack and discard the bytes before a position. Raises: FormatError."""
        while self.position < position and self.read(min(READ_BYTES, position - self.position)):
            pass

    def finish(self) -> None:
        """Unpack and discard the rest, which checks the checksum. Raises: FormatError."""
        while self.read(READ_BYTES):
            pass

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what follows the stream, once `finish` has reached its end."""
        if not getattr(self._file, "has_bytes_after", False):
            return ()
        from conv3d_cli.formats.deviations import deviation_note

        return (deviation_note("after-gzip"),)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._packed.close()

    def __enter__(self) -> PackedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --------------------------------------------------------------------------------------------------
# Reading


def open_packed(
    stream: PackedStream, header: VolumeHeader, stored: np.dtype[Any], offset: int
) -> VolumeReader:
    """A reader of C-ordered voxels in a packed file.

    Where the planes of `header.axes` are not contiguous, the file is unpacked into $TMPDIR first.

    stream : PackedStream   not yet read beyond `offset`; the reader closes it
    stored : numpy dtype    of the voxels in the file, in either byte order; reads return
                            `header.dtype`
    offset : int            unpacked bytes before the first voxel
    Raises: FormatError; WriteError if $TMPDIR is full.
    """
    if _planes_are_contiguous(header.axes):
        return PackedReader(stream, header, stored, offset)
    with stream:
        return _unpacked_reader(stream, header, stored, offset)


def _planes_are_contiguous(axes: Axes) -> bool:
    """True if planes follow one another in storage, each in one piece (or one piece a channel)."""
    letters = axes.letters
    tail = letters[min(letters.index(a) for a in SPATIAL if a in letters) :]
    starts_with_depth = "z" not in letters or tail[0] == "z"
    return (
        starts_with_depth
        and not any(a in tail for a in axes.batch_letters)
        and len(axes.channel_letters) < 2
    )


def _unpacked_reader(
    stream: PackedStream, header: VolumeHeader, stored: np.dtype[Any], offset: int
) -> RawReader:
    """A reader of an unpacked copy in $TMPDIR. Raises: FormatError, WriteError."""
    path = stream.path
    size = math.prod(header.axes.shape) * stored.itemsize
    file = unnamed_file()  # the reader closes it
    try:
        with write_errors(f"an unpacked copy of {path} in {temporary_folder()}"):
            reserve_space(file, size)
            stream.skip_to(offset)
            done = 0
            while done < size and (data := stream.read(min(READ_BYTES, size - done))):
                write_at(file, memoryview(data), done)
                done += len(data)
            stream.finish()
        if done < size:
            raise _truncation_error(stream, header, stored, offset)
        reader = RawReader(file, header, path, stored, 0)
        reader.notes = stream.notes
        return reader
    except BaseException:
        file.close()
        raise


def _truncation_error(
    stream: PackedStream, header: VolumeHeader, stored: np.dtype[Any], offset: int
) -> FormatError:
    promised = offset + math.prod(header.axes.shape) * stored.itemsize
    return FormatError(
        f"cannot read {stream.path}: truncated: its header promises {promised} bytes "
        f"(shape {header.axes.shape}, {stored}), "
        f"its {stream.codec.name} stream holds {stream.position}; copy it again"
    )


class PackedReader(VolumeReader):
    """A reader of compressed voxels, forward only; it holds no more than the slab asked for.

    stream, stored, offset      see `open_packed`
    """

    sequential = True

    def __init__(
        self, stream: PackedStream, header: VolumeHeader, stored: np.dtype[Any], offset: int
    ) -> None:
        self.header, self.path = header, stream.path
        self.stream, self.stored, self._offset = stream, stored, offset

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        axes = self.header.axes
        # if so, all channels of a plane are unpacked, whichever are asked for
        together = axes.channels_within_plane
        if not together and channels.stop - channels.start > 1:
            raise RuntimeError(
                f"{self.path} stores one channel after another: read them one by one"
            )
        unpacked = slice(0, axes.canonical_shape[4]) if together else channels
        sizes = dict.fromkeys(axes.batch_letters, 1)
        sizes |= dict.fromkeys(axes.channel_letters, unpacked.stop - unpacked.start)
        part = axes.renamed(axes.letters, {**sizes, "z": depth.stop - depth.start})
        position = (
            self._offset + first_voxel(axes, n, depth.start, unpacked.start) * self.stored.itemsize
        )
        if position < self.stream.position:
            raise RuntimeError(
                f"{self.path} is compressed and read forward only: plane {depth.start} has passed"
            )
        self.stream.skip_to(position)
        values = np.empty(part.shape, self.stored)
        if self.stream.fill(values.reshape(-1).view(np.uint8).data) < values.nbytes:
            raise _truncation_error(self.stream, self.header, self.stored, self._offset)
        if not values.dtype.isnative:
            values = values.byteswap(inplace=True).view(values.dtype.newbyteorder())
        values = values.astype(self.header.dtype, copy=False)
        block = part.block(values, 0, slice(0, part.size("z")), slice(0, part.canonical_shape[4]))
        return block[..., channels] if together else block

    def buffer_bytes(self, planes: int, channels: int) -> int:
        unpacked = self._offset + math.prod(self.header.axes.shape) * self.stored.itemsize
        return min(self.stream.codec.window_bytes(self.path), unpacked)

    def finish(self) -> None:
        self.stream.finish()
        self.notes = (*self.notes, *self.stream.notes)

    def close(self) -> None:
        self.stream.close()


def first_voxel(axes: Axes, n: int, depth_start: int, channel_start: int) -> int:
    """Number of voxels in storage before a plane of a channel of volume n.

    >>> first_voxel(Axes("tczyx", (2, 3, 4, 5, 6)), 1, 2, 0)
    420
    """
    starts = axes.storage_start(n, depth_start, channel_start)
    return sum(start * math.prod(axes.shape[i + 1 :]) for i, start in enumerate(starts))


# --------------------------------------------------------------------------------------------------
# Writing


class PackedBlocks:
    """A packed stream whose bytes depend on data and level alone.

    They do not depend on the sizes of writes, the threads, the file name or the time. The data are
    cut into blocks of 1 MiB; a pool of threads packs them, and the calling thread writes them.

    file : BinaryIO             written to, not closed
    level : int                 of gzip, 0 to 3 (isal's scale)
    threads : int or None       threads that pack; None: see `machine.thread_count`
    """

    def __init__(
        self, file: BinaryIO, codec: Codec, level: int, threads: int | None = None
    ) -> None:
        self._file, self._packer = file, codec.packer(level)
        self._pending = bytearray()
        self._window = b""
        self._threads = codec_threads(threads)
        self._pool = ThreadPoolExecutor(self._threads, "conv3d-pack")
        self._blocks: collections.deque[tuple[Future[tuple[bytes, int]], int]] = collections.deque()
        file.write(self._packer.head)

    def write(self, data: memoryview) -> None:
        """Pack bytes; the caller may reuse the buffer afterwards.

        Whole blocks are packed out of the caller's buffer, and this method waits for them. The rest
        is copied, and packed with the next bytes.
        Raises: OSError if the file cannot be written, for these bytes or earlier ones.
        """
        if self._pending:
            room = BLOCK_BYTES - len(self._pending)
            self._pending += data[:room]
            data = data[room:]
            if len(self._pending) == BLOCK_BYTES:
                self._pack(memoryview(self._pending))
                self._pending = bytearray()
        borrowed = len(data) >= BLOCK_BYTES  # threads then read the caller's buffer
        while len(data) >= BLOCK_BYTES:
            self._pack(data[:BLOCK_BYTES])
            data = data[BLOCK_BYTES:]
        self._pending += data
        while borrowed and self._blocks:
            self._write_oldest()

    def finish(self) -> None:
        """Write the remaining bytes and the end of the stream. Raises: OSError."""
        if self._pending:
            self._pack(memoryview(self._pending))
        while self._blocks:
            self._write_oldest()
        self._file.write(self._packer.tail())
        self.stop()

    def stop(self) -> None:
        """End the threads and drop the blocks not yet begun. Harmless when called twice."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _pack(self, block: memoryview) -> None:
        self._blocks.append((self._pool.submit(self._packer.pack, block, self._window), len(block)))
        self._window = bytes(block[-WINDOW_BYTES:])
        if len(self._blocks) > 2 * self._threads:
            self._write_oldest()

    def _write_oldest(self) -> None:
        block, size = self._blocks.popleft()
        data, checksum = block.result()
        self._file.write(data)
        self._packer.add(checksum, size)


def packed(data: bytes, codec: Codec, level: int) -> bytes:
    """Bytes packed as one whole stream.

    >>> import gzip
    >>> from conv3d_cli.formats.codecs import codec_named
    >>> gzip.decompress(packed(b"voxels", codec_named("x.gz"), level=1))
    b'voxels'
    """
    buffer = io.BytesIO()
    blocks = PackedBlocks(buffer, codec, level)
    blocks.write(memoryview(data))
    blocks.finish()
    return buffer.getvalue()


class PackedWriter(VolumeWriter):
    """A writer of compressed voxels, slab after slab in storage order.

    output : OutputFile     this writer commits it
    prefix : bytes          packed before the voxels: the file's header
    stored : numpy dtype    of the voxels in the file
    level, threads          see `PackedBlocks`
    tail : callable         () -> bytes packed after the voxels; called by `commit`
    """

    sequential = True

    def __init__(
        self,
        output: OutputFile,
        header: VolumeHeader,
        path: str,
        prefix: bytes,
        stored: np.dtype[Any],
        codec: Codec,
        level: int,
        threads: int | None = None,
        tail: Callable[[], bytes] = bytes,
    ) -> None:
        self.output, self.header, self.path = output, header, path
        self._stored, self._tail = stored, tail
        self._next = 0  # index of the next voxel, in storage order
        with write_errors(path):
            self._blocks = PackedBlocks(output.file, codec, level, threads)
            self._blocks.write(memoryview(prefix))

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        axes = self.header.axes
        first = first_voxel(axes, n, depth_start, channel_start)
        channels = block.shape[3]
        in_one_piece = channels == (axes.canonical_shape[4] if axes.channels_within_plane else 1)
        if first != self._next or not in_one_piece:
            raise RuntimeError(
                f"{self.path} is compressed and takes slabs only in storage order: "
                f"voxel {self._next} comes next, received voxel {first} with {channels} channels"
            )
        values = axes.storage_order(block)
        with write_errors(self.path):
            if values.flags.c_contiguous and values.dtype == self._stored:
                self._blocks.write(values.reshape(-1).view(np.uint8).data)
            else:  # plane by plane, so that no second copy of the slab is made
                rows = min(axes.letters.index(a) for a in "yx")
                for index in np.ndindex(*values.shape[:rows]):
                    plane = np.ascontiguousarray(values[index], self._stored)
                    self._blocks.write(plane.reshape(-1).view(np.uint8).data)
        self._next += block.size

    def finish_stream(self) -> None:
        """Write the rest of the stream. Raises: OSError."""
        total = math.prod(self.header.axes.shape)
        if self._next != total:
            raise RuntimeError(f"{self.path}: {self._next} of {total} voxels were written")
        self._blocks.write(memoryview(self._tail()))
        self._blocks.finish()

    def commit(self) -> None:
        with write_errors(self.path):
            self.finish_stream()
        self.output.commit()

    def abort(self) -> None:
        self._blocks.stop()
        self.output.abort()
