"""What a format is, and the parts formats share: checking input files, raw voxels in a file, spooling.

Raw voxels are read through a memory map whose pages are given back as the work moves on, and written with positioned
writes into space that was reserved first, so that a full disk is an error message and never a crash.
"""

from __future__ import annotations

import errno
import itertools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol

import numpy as np

from conv3d_cli.errors import FormatError
from conv3d_cli.model.volume import (
    SPATIAL,
    Array,
    ArrayReader,
    Axes,
    BoxAccess,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    parts_in_storage_order,
)
from conv3d_cli.system.atomic import AtomicFile, check_target, together, write_errors

# Boxes of a memory map are copied, in pieces of this size, whose pages are then given back.
PIECE_BYTES = 16 << 20
# The system maps pages around the one that is touched: a run of voxels, however short, may have this much beside it.
FAULT_BYTES = 128 << 10
RUN_BYTES = 1 << 20  # and a long one is taken in parts
NEAR_BYTES = 16 << 10  # what is fetched with a voxel

# what posix_fallocate says on a file system that cannot reserve space
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.ESPIPE)


@dataclass(frozen=True)
class OutputOptions:
    """How an output is stored. A format uses those options that its `VolumeFormat` says it has.

    gz_level : int              0 to 3, isal's levels, of gzip and deflate
    threads : int or None       that pack; they change no byte. None: see `machine.thread_count`
    chunks : 3 ints or None     D, H, W of a chunk; None leaves them to the format
    levels : int                of resolution, the full one included
    compression : str           "none", or one of the format's `compressions`
    """

    gz_level: int = 1
    threads: int | None = None
    chunks: tuple[int, int, int] | None = None
    levels: int = 1
    compression: str = "none"


DEFAULT_OPTIONS = OutputOptions()


class OpenVolume(Protocol):
    """Opens a file for reading: see `conv3d_cli.formats.open_volume`."""

    def __call__(
        self, path: str, *, axes: str | None = None, channels_first: bool = False
    ) -> VolumeReader: ...


class CreateVolume(Protocol):
    """Starts an output: see `conv3d_cli.formats.create_volume`.

    The axes of `header` are in the order that the format's `output_letters` gives.
    """

    def __call__(
        self,
        path: str,
        header: VolumeHeader,
        *,
        overwrite: bool = False,
        options: OutputOptions = DEFAULT_OPTIONS,
    ) -> VolumeWriter: ...


class CheckTarget(Protocol):
    """Raises OutputExistsError or WriteError if an output of this name cannot be written."""

    def __call__(self, path: str, overwrite: bool, make_folder: bool = False) -> None: ...


@dataclass(frozen=True)
class VolumeFormat:
    """One file format: its functions, and the facts about it that the rest of the package asks for.

    name : str              as people call it; for messages only
    suffixes : tuple        lower case, with the dot; double ones first
    summary : str           one line for help and the manual
    open, create            see `OpenVolume`, `CreateVolume`
    output_letters : callable
                            (letters, channels, dtype) -> letters: the storage order this format gives to a volume that
                            has these axes, with a channel axis added where `channels` needs one

    What a file of this format can hold:

    names_axes : bool       the letters of its axes; if not, `--axes` has to repeat them
    holds_spacing : bool    the distance of voxels
    holds_affine : bool     a rotation
    holds_scale : bool      a slope and an intercept for integer voxels (`--scale auto`)
    holds_history : bool    the lines of `VolumeHeader.history`

    How it is stored:

    chunked : bool          in chunks and levels, which `OutputOptions` may choose
    compressions : tuple    values of `OutputOptions.compression` that it has beside "none"
    streamed : callable     (path, options) -> bool: an output can only be written forward
    libraries : tuple       distributions whose version may change the bytes of an output; sidecars record them
    reads_urls : bool       a name may be a URL

    Its files:

    claims_also : callable  (path) -> bool: names that are this format's whatever their suffix
    content : callable      (path) -> "labels" or "cifti" where a file's header says that it is no image, else ""
    files : callable        (path) -> names: the files that a volume is read from, the named one first; or the folder
    written : callable      (path) -> names: the files that an output of this name consists of, or the folder
    check_target            see `CheckTarget`

    What writing takes:

    output_bytes : callable (header, channels, options) -> int: memory beside the blocks of `channels` that are handed in
    box_access : callable   (header, options) -> BoxAccess or None: how the writer takes boxes, unless `streamed`
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str
    open: OpenVolume
    create: CreateVolume
    output_letters: Callable[[str, int, np.dtype[Any]], str]
    names_axes: bool = True
    holds_spacing: bool = True
    holds_affine: bool = False
    holds_scale: bool = False
    holds_history: bool = True
    chunked: bool = False
    compressions: tuple[str, ...] = ()
    streamed: Callable[[str, OutputOptions], bool] = lambda path, options: (
        options.compression != "none"
    )
    libraries: tuple[str, ...] = ()
    reads_urls: bool = False
    claims_also: Callable[[str], bool] = lambda path: False
    content: Callable[[str], str] = lambda path: ""
    files: Callable[[str], tuple[str, ...]] = lambda path: (path,)
    written: Callable[[str], tuple[str, ...]] = lambda path: (path,)
    check_target: CheckTarget = check_target
    output_bytes: Callable[[VolumeHeader, int, OutputOptions], int] = (
        lambda header, channels, options: 0
    )
    box_access: Callable[[VolumeHeader, OutputOptions], BoxAccess | None] = lambda header, options: (
        BoxAccess((1, 1, 1), 0)
    )

    def claims(self, path: str) -> bool:
        """Whether the file name ends with one of the suffixes, in any case; "-" alone is a pipe."""
        if path == "-":
            return "-" in self.suffixes
        return path.lower().endswith(
            tuple(s for s in self.suffixes if s != "-")
        ) or self.claims_also(path)


def real_dtype(dtype: np.dtype[Any], path: str) -> np.dtype[Any]:
    """The native-order dtype in which a file's voxels are handed out: float16 and long double as float32 and float64.

    Raises: FormatError for what is not a real number.
    """
    if dtype.kind == "c":
        raise FormatError(
            f"cannot read {path}: its voxels are complex ({dtype}); save the real and imaginary parts as two volumes"
        )
    if dtype.kind not in "buif":
        raise FormatError(f"cannot read {path}: its voxels are not numbers ({dtype})")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize == 2 else np.float64)
    return dtype.newbyteorder("=")


class RawReader(ArrayReader):
    """A reader over uncompressed voxels in a file: a memory map.

    stored : numpy dtype    as in the file (either byte order); `header.dtype` is what is handed out
    offset : int            bytes before the first voxel
    fortran : bool          the first of the header's axes lies fastest; else the last
    Raises: FormatError if the file is shorter than the header says.
    """

    def __init__(
        self,
        file: BinaryIO,
        header: VolumeHeader,
        path: str,
        stored: np.dtype[Any],
        offset: int,
        fortran: bool = False,
    ) -> None:
        count = math.prod(header.axes.shape)
        size = os.fstat(file.fileno()).st_size
        if offset + count * stored.itemsize > size:
            raise FormatError(
                f"cannot read {path}: truncated: its header promises {offset + count * stored.itemsize} bytes "
                f"(shape {header.axes.shape}, {stored}), the file has {size}"
            )
        self._file = file
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if count else None
        # np.frombuffer keeps the map open while views of it live; np.ndarray(buffer=map) would not
        buffer = np.frombuffer(self._map, np.uint8) if self._map is not None else b""
        try:
            array = np.ndarray(
                header.axes.shape,
                stored,
                buffer,
                offset if count else 0,
                order="F" if fortran else "C",
            )
        except ValueError as error:  # no voxels, but (0, 2^62, 2^62) of them
            raise FormatError(
                f"cannot read {path}: its shape {header.axes.shape} cannot be ({error})"
            ) from error
        self._released = 0
        self._start = offset
        super().__init__(array, header, path)

    def box_access(self) -> BoxAccess:
        fastest = self.header.axes.letters[self._fastest]
        near = max(1, NEAR_BYTES // self.array.itemsize)
        depth, height, width = (
            min(near, self.header.axes.size(a)) if a == fastest else 1 for a in SPATIAL
        )
        return BoxAccess((depth, height, width), 2 * PIECE_BYTES)

    @property
    def _fastest(self) -> int:
        """The axis along which voxels lie side by side in the file."""
        sizes, strides = self.array.shape, self.array.strides
        return min(range(len(sizes)), key=lambda i: strides[i] if sizes[i] > 1 else math.inf)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        """A copy: pages of the map would count as memory until they are given back, and cannot be for boxes side by side."""
        axes, itemsize = self.header.axes, self.array.itemsize
        starts, shape = (
            (depth.start, rows.start, columns.start),
            [s.stop - s.start for s in (depth, rows, columns, channels)],
        )
        place = axes.place(n, starts, channels.start, tuple(shape))
        fastest = self._fastest
        run = min(max(1, RUN_BYTES // itemsize), place[fastest].stop - place[fastest].start)
        unit = [run if i == fastest else 1 for i in range(len(place))]
        most = PIECE_BYTES // (run * itemsize + FAULT_BYTES)
        return read_pieces(self.array, axes, self.header.dtype, place, unit, most, self._give_back)

    def _give_back(self, part: Array) -> None:
        """Drop the pages that a part of the map lies in."""
        if self._map is None or not hasattr(self._map, "madvise") or not part.size:
            return
        start = (
            self._start
            + part.__array_interface__["data"][0]
            - self.array.__array_interface__["data"][0]
        )
        stop = (
            start
            + sum((n - 1) * step for n, step in zip(part.shape, part.strides, strict=True))
            + part.itemsize
        )
        start = max(start - FAULT_BYTES, 0) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(
            mmap.MADV_DONTNEED, start, min(stop + FAULT_BYTES, len(self._map)) - start
        )

    def release(self, n: int, depth_stop: int) -> None:
        """Give the pages before a plane back; should one be asked for again, it is read anew."""
        axes = self.header.axes
        if self._map is None or not hasattr(self._map, "madvise") or "z" not in axes.letters:
            return
        first = self.array.__array_interface__["data"][0]
        block = axes.block(
            self.array, n, slice(min(depth_stop, axes.size("z") - 1), None), slice(0, 1)
        )
        stop = self._start + block.__array_interface__["data"][0] - first
        stop -= stop % mmap.PAGESIZE
        if stop - self._released >= 1 << 20:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, stop - self._released)
            self._released = stop
        elif stop < self._released:  # a new pass over earlier planes
            self._released = stop

    def close(self) -> None:
        self.array = np.empty(0)
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                pass  # a caller still holds a view; the map goes when the view does
            self._map = None
        self._file.close()


class RawWriter(VolumeWriter):
    """A writer of uncompressed voxels at a place in a file, in any order of slabs.

    output : AtomicFile     committed by this writer
    offset : int            bytes before the first voxel; what lies there is the format's to write
    stored : numpy dtype    as in the file (either byte order)
    fortran : bool          the first of the header's axes lies fastest; else the last
    """

    def __init__(
        self,
        output: AtomicFile,
        header: VolumeHeader,
        path: str,
        offset: int = 0,
        stored: np.dtype[Any] | None = None,
        fortran: bool = False,
    ) -> None:
        self.output, self.header, self.path, self.offset, self.fortran = (
            output,
            header,
            path,
            offset,
            fortran,
        )
        self.stored = stored or header.dtype
        self.stored_axes = header.axes
        with write_errors(path):
            reserve_space(output.file, offset + header.nbytes)

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        self.write_box(n, (depth_start, 0, 0), channel_start, block)

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        with write_errors(self.path):
            write_block(
                self.output.file,
                self.stored_axes,
                self.stored,
                self.offset,
                n,
                starts,
                channel_start,
                block,
                self.fortran,
            )

    def commit(self) -> None:
        self.output.commit()

    def abort(self) -> None:
        self.output.abort()


class PairWriter(VolumeWriter):
    """The writer of a pair's voxels and its header file, which take their places together.

    An old header goes first and the new one comes last, so no header ever stands beside voxels that are not its own.
    """

    def __init__(self, voxels: VolumeWriter, head: AtomicFile) -> None:
        self.voxels, self.head = voxels, head
        self.header, self.path, self.sequential = voxels.header, voxels.path, voxels.sequential

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        self.voxels.write(n, depth_start, channel_start, block)

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        self.voxels.write_box(n, starts, channel_start, block)

    def commit(self) -> None:
        with together():
            self.voxels.commit()
            self.head.commit()

    def abort(self) -> None:
        self.voxels.abort()
        self.head.abort()


def reserve_space(file: BinaryIO, size: int) -> None:
    """Make a file at least `size` bytes long, its space reserved where the file system can: a full disk shows at once."""
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    if os.fstat(file.fileno()).st_size < size:  # what lies behind (TIFF directories) stays
        file.truncate(size)


def write_block(
    file: BinaryIO,
    axes: Axes,
    stored: np.dtype[Any],
    offset: int,
    n: int,
    starts: tuple[int, int, int],
    channel_start: int,
    block: Array,
    fortran: bool = False,
) -> None:
    """Write block (d, h, w, c) of volume n, whose first voxel is at `starts` (D, H, W), where it belongs in a file of voxels with
    these axes, the last one (under `fortran` the first) fastest."""
    channels = block.shape[3]
    if len(axes.channel_letters) == 2 and channels not in (1, axes.canonical_shape[4]):
        for c in range(channels):
            write_block(
                file,
                axes,
                stored,
                offset,
                n,
                starts,
                channel_start + c,
                block[..., c : c + 1],
                fortran,
            )
        return
    first = axes.storage_start(n, starts[0], channel_start, *starts[1:])
    values, shape = axes.storage_order(block), axes.shape
    if fortran:
        first, values, shape = first[::-1], values.transpose(), shape[::-1]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    # the trailing axes that the block covers whole, and the axis before them, lie together in the file
    split = len(shape) - 1
    while split > 0 and values.shape[split] == shape[split]:
        split -= 1
    base = sum(start * stride for start, stride in zip(first, strides, strict=True))
    for index in np.ndindex(*values.shape[:split]):
        position = base + sum(i * stride for i, stride in zip(index, strides[:split], strict=True))
        run = np.ascontiguousarray(values[index], dtype=stored)
        write_at(file, run.reshape(-1).view(np.uint8).data, offset + position * stored.itemsize)


def pieces(place: Sequence[slice], unit: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """A box of an array in pieces, in storage order, of at most `most` units (cells of a grid) each, and one at least.

    >>> [tuple((s.start, s.stop) for s in piece) for piece in pieces((slice(1, 5), slice(0, 3)), (2, 2), 2)]
    [((1, 2), (0, 3)), ((2, 4), (0, 3)), ((4, 5), (0, 3))]
    """
    steps, left = [], max(1, most)
    for part, n in zip(reversed(place), reversed(unit), strict=True):
        taken = min(left, -(-part.stop // n) - part.start // n)
        left //= max(1, taken)
        steps.append(max(1, taken) * n)
    spans = []
    for part, step, n in zip(place, reversed(steps), unit, strict=True):
        first = part.start // n * n
        starts = range(first, part.stop, step)
        spans.append(
            [slice(max(start, part.start), min(start + step, part.stop)) for start in starts]
        )
    yield from itertools.product(*spans)


def within(piece: Sequence[slice], place: Sequence[slice]) -> tuple[slice, ...]:
    """Where a piece of a box lies in it."""
    return tuple(
        slice(p.start - s.start, p.stop - s.start) for p, s in zip(piece, place, strict=True)
    )


def read_pieces(
    array: Any,
    axes: Axes,
    dtype: np.dtype[Any],
    place: tuple[slice, ...],
    unit: Sequence[int],
    most: int,
    after: Callable[[Array], None] = lambda part: None,
) -> Array:
    """A box (d, h, w, c) of a stored array, read in `pieces` into memory of its own.

    array : NumPy's, or another that is indexed alike
    after : told each piece when it is copied
    """
    found = np.empty([s.stop - s.start for s in place], dtype)
    for piece in pieces(place, unit, most):
        part = array[piece]
        found[within(piece, place)] = part
        after(part)
    return Axes(axes.letters, found.shape).block(found, 0, slice(None), slice(None))


def write_at(file: BinaryIO, data: memoryview, position: int) -> None:
    """Write all bytes at a position (a single system call may write fewer)."""
    while len(data):
        written = os.pwrite(file.fileno(), data, position)
        data, position = data[written:], position + written


# ---------------------------------------------------------------------------------------------------------------------
# Spooling: random access for what can only be streamed


def unnamed_file() -> BinaryIO:
    """A file without a name in the temporary folder; it is gone when it is closed."""
    import tempfile  # late: it brings much along, and few jobs need it

    return tempfile.TemporaryFile(prefix="conv3d-")


def temporary_folder() -> str:
    """Where `unnamed_file` is: $TMPDIR, or what the system has."""
    import tempfile

    return tempfile.gettempdir()


def spool_reader(reader: VolumeReader) -> VolumeReader:
    """Random access to a sequential reader's voxels, through an unnamed temporary file ($TMPDIR) of their full size.

    Takes the reader over (it is closed). Raises: FormatError if the input is corrupt; WriteError if the disk is full.
    """
    header = reader.header
    file = unnamed_file()  # the reader made of it closes it
    try:
        with reader, write_errors(f"a temporary copy of {reader.path} in {temporary_folder()}"):
            reserve_space(file, header.nbytes)
            for n, channels in parts_in_storage_order(header.axes, channels_together=False):
                for start in range(0, header.shape[1], 8):
                    depth = slice(start, min(start + 8, header.shape[1]))
                    block = reader.read(n, depth, channels)
                    write_block(
                        file, header.axes, header.dtype, 0, n, (start, 0, 0), channels.start, block
                    )
            reader.finish()
        return RawReader(file, header, reader.path, header.dtype, 0)
    except BaseException:
        file.close()
        raise


def random_access(reader: VolumeReader) -> VolumeReader:
    """A reader that may be asked for planes in any order: itself, or one of `spool_reader`, which takes it over."""
    return spool_reader(reader) if reader.sequential else reader


class SpooledWriter(VolumeWriter):
    """Slabs in any order for a sequential writer: they wait in an unnamed temporary file until `commit`.

    Takes the writer over: it is aborted if there is no room to wait in.
    """

    def __init__(self, writer: VolumeWriter) -> None:
        self.writer, self.header, self.path = writer, writer.header, writer.path
        self.notes = writer.notes
        try:
            with self._errors():
                self._file = unnamed_file()  # closed by abort
        except BaseException:
            writer.abort()
            raise
        try:
            with self._errors():
                reserve_space(self._file, self.header.nbytes)
        except BaseException:
            self.abort()
            raise

    def _errors(self) -> write_errors:
        return write_errors(f"a temporary copy of {self.path} in {temporary_folder()}")

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        with self._errors():
            header = self.header
            write_block(
                self._file,
                header.axes,
                header.dtype,
                0,
                n,
                (depth_start, 0, 0),
                channel_start,
                block,
            )

    def commit(self) -> None:
        header = self.header
        with RawReader(
            self._file, replace(header, scale=(1.0, 0.0)), self.path, header.dtype, 0
        ) as reader:
            for n, channels in parts_in_storage_order(header.axes, channels_together=False):
                for start in range(0, header.shape[1], 8):
                    depth = slice(start, min(start + 8, header.shape[1]))
                    self.writer.write(n, start, channels.start, reader.read(n, depth, channels))
                    reader.release(n, depth.stop)
        self.writer.commit()

    def abort(self) -> None:
        self._file.close()
        self.writer.abort()


class ScaledWriter(VolumeWriter):
    """Real numbers for an integer output that holds a slope and an intercept, chosen so that the values fill the integers.

    The range is known when all values are: until then they wait in an unnamed temporary file, as float32.

    create : callable       (scale) -> the writer of integers; called at `commit`
    header : VolumeHeader   of the integers; this writer takes float32
    """

    def __init__(
        self, header: VolumeHeader, path: str, create: Callable[[tuple[float, float]], VolumeWriter]
    ) -> None:
        self.stored, self.path, self._create = header.dtype, path, create
        self.header = replace(header, dtype=np.dtype(np.float32))
        self._low, self._high, self._lost = math.inf, -math.inf, 0
        with self._errors():
            self._file = unnamed_file()  # closed by abort
            reserve_space(self._file, self.header.nbytes)

    def _errors(self) -> write_errors:
        return write_errors(f"a temporary copy of {self.path} in {temporary_folder()}")

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        known = np.isfinite(block)
        finite = block if known.all() else block[known]
        self._lost += block.size - finite.size
        if self._lost:
            self.notes = (
                f"{self._lost} voxels are NaN or infinite, which integers do not hold: they become 0",
            )
        if finite.size:
            self._low, self._high = (
                min(self._low, float(finite.min())),
                max(self._high, float(finite.max())),
            )
        with self._errors():
            header = self.header
            write_block(
                self._file,
                header.axes,
                header.dtype,
                0,
                n,
                (depth_start, 0, 0),
                channel_start,
                block,
            )

    def scale(self) -> tuple[float, float]:
        """The slope and intercept, as float32 numbers, under which the values fill the dtype."""
        limits = np.iinfo(self.stored)
        if self._low > self._high:
            return 1.0, 0.0
        if self._low == self._high:
            return 1.0, self._low  # a float32 number
        least, most = float(limits.min), float(limits.max)
        # the intercept as the header holds it; then the slope that keeps both ends inside
        if least == 0:
            intercept = float(np.nextafter(np.float32(self._low), np.float32(-np.inf)))
            needed = (self._high - intercept) / most
        else:
            intercept = float(np.float32((self._low + self._high) / 2))
            needed = max((self._high - intercept) / most, (self._low - intercept) / least)
        slope = float(np.nextafter(np.float32(needed), np.float32(np.inf)))
        return slope, intercept

    def commit(self) -> None:
        limits, (slope, intercept) = np.iinfo(self.stored), self.scale()
        header = self.header
        with self._create((slope, intercept)) as writer:
            with RawReader(self._file, header, self.path, header.dtype, 0) as reader:
                for n, channels in parts_in_storage_order(header.axes, channels_together=False):
                    for start in range(0, header.shape[1], 8):
                        depth = slice(start, min(start + 8, header.shape[1]))
                        values = reader.read(n, depth, channels).astype(np.float64)
                        whole = np.rint(
                            (np.where(np.isfinite(values), values, 0.0) - intercept) / slope
                        )
                        whole = np.clip(whole, float(limits.min), float(limits.max)).astype(
                            self.stored
                        )
                        writer.write(n, start, channels.start, whole)
                        reader.release(n, depth.stop)
            writer.commit()
            self.notes = (
                *self.notes,
                *writer.notes,
                f"scale: slope {slope:.7g}, intercept {intercept:.7g}",
            )

    def abort(self) -> None:
        self._file.close()
