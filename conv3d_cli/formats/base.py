"""What a volume format is, and what the formats share: raw voxels in a file, and spooling.

Raw voxels are read through a memory map, whose pages are released as the work moves on. They are
written with positioned writes into space that was reserved first, so that a full disk gives an
error message and never a crash.
"""

from __future__ import annotations

import errno
import itertools
import math
import mmap
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, BinaryIO, Protocol

import numpy as np

from conv3d_cli.errors import Conv3DError, FormatError
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.formats.signatures import Signature
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
from conv3d_cli.system.atomic import OutputFile, check_target, committed_together, write_errors
from conv3d_cli.system.faults import raise_fault
from conv3d_cli.system.maps import WatchedMap, unwatch_map, watch_map
from conv3d_cli.system.parts import file_of
from conv3d_cli.system.portable import write_at
from conv3d_cli.system.scratch import temporary_folder, unnamed_file

# Boxes are copied out of a memory map in pieces of this size; the pages of each are then released.
PIECE_BYTES = 16 << 20
# The system also maps the pages around the one that is touched. Reading a run of voxels, however
# short, may therefore map this many more bytes.
FAULT_BYTES = 128 << 10
RUN_BYTES = 1 << 20  # longer runs are split
NEAR_BYTES = 16 << 10  # fetched together with a voxel

# errors of posix_fallocate on a file system that cannot reserve space
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV, errno.ESPIPE)


@dataclass(frozen=True)
class OutputOptions:
    """How an output is stored. A format uses the options that its `VolumeFormat` declares.

    gz_level : int              level of gzip and deflate, 0 to 3 (isal's scale)
    threads : int or None       threads that compress; their number changes no byte of the output.
                                None: see `machine.thread_count`
    chunks : 3 ints or None     (D, H, W) of a chunk, in voxels; None: the format chooses
    levels : int                number of resolution levels, including the full one
    levels_by : str or None     how a level is made of the one before: "mean", "gaussian", "mode" or
                                "nearest"; None: by the mean, and of labels by the mode
    compression : str           "none", or one of the format's `compressions`
    """

    gz_level: int = 1
    threads: int | None = None
    chunks: tuple[int, int, int] | None = None
    levels: int = 1
    levels_by: str | None = None
    compression: str = "none"


DEFAULT_OPTIONS = OutputOptions()


class OpenVolume(Protocol):
    """Open a file for reading: see `conv3d_cli.formats.open_volume`."""

    def __call__(
        self, path: str, *, axes: str | None = None, channels_first: bool = False
    ) -> VolumeReader: ...


class CreateVolume(Protocol):
    """Start an output: see `conv3d_cli.formats.create_volume`.

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
    """Raise OutputExistsError or WriteError if an output of this name cannot be written."""

    def __call__(self, path: str, overwrite: bool, make_folder: bool = False) -> None: ...


def late(name: str) -> Callable[..., Any]:
    """A function "package.module:function" that is imported when it is first called.

    So a run loads the modules of the formats that it reads and writes, and no others.

    >>> late("os.path:basename")("a/b")
    'b'
    """

    def call(*arguments: Any, **options: Any) -> Any:
        module, _, function = name.partition(":")
        return getattr(import_module(module), function)(*arguments, **options)

    return call


def _any_box(header: VolumeHeader, options: OutputOptions) -> BoxAccess:
    """The access of a writer to whose file each voxel can be written by itself."""
    return BoxAccess((1, 1, 1), 0)


def one_extra_axis(axes: Axes) -> bool:
    """True if at most one axis besides space is longer than 1: a series, or channels.

    >>> one_extra_axis(Axes("tzyx", (2, 3, 4, 5))), one_extra_axis(Axes("tzyxc", (2, 3, 4, 5, 6)))
    (True, False)
    """
    return sum(axes.size(a) > 1 for a in axes.letters if a not in SPATIAL) < 2


@dataclass(frozen=True)
class VolumeFormat:
    """One file format: its functions, and the facts that the rest of the package needs about it.

    name : str              for messages only
    suffixes : tuple        lower case, with the dot; double ones such as ".nii.gz" first
    read_suffixes : tuple   of files that are read, and never written
    target_suffix : str     of an output that is named after a file that is only read
    summary : str           one line for help and the README
    open                    see `OpenVolume`
    open_again : callable or None
                            as `open`, with voxels that are found and read by another way, for
                            checks; None: there is no other way
    create : callable or None
                            see `CreateVolume`; None: the format is only read
    output_letters : callable
                            (letters, channels, dtype) -> letters: the storage order of an output
                            for a volume with these axes; adds a channel axis if `channels` needs it

    How a file of this format is recognized:

    signature : callable    (start) -> bool: True if a file that begins so is of this format
    header_file : callable  (path) -> path of the file whose first bytes say what the volume is
    reads_packed : bool     True if it is read from gzip and zstd streams, too

    What a file of this format can store:

    names_axes : bool       axis letters; if False, readers need `--axes` to know them
    holds_spacing : bool    voxel spacing
    holds_affine : bool     an affine with rotation
    holds_scale : bool      slope and intercept of integer voxels (`--scale auto`)
    holds_history : bool    the lines of `VolumeHeader.history`
    holds_float64 : bool    float64; kernels are written as such
    holds_axes : callable   (axes) -> bool: True if an output can have these axes
    keeps : callable        (path, header) -> names of the fields of `Facts` that an output holds,
                            and words of `Facts` that it repeats

    How it stores voxels:

    chunked : bool          in chunks and resolution levels, which `OutputOptions` may set
    compressions : tuple    values of `OutputOptions.compression` that it supports besides "none"
    streamed : callable     (path, options) -> bool: True if the output is written forward only
    libraries : tuple       distributions whose version may change the bytes of an output;
                            sidecars record them
    reads_urls : bool       True if a name may be a URL
    has_parts : bool        True if `FILE::PART` names one of several volumes in a file; see
                            `system/parts.py`
    kernels : bool          False if a kernel with its suffixes is a file of another kind

    Its files:

    claims_also : callable  (path) -> bool: True for names of this format whatever their suffix
    content : callable      (path) -> "labels" or "cifti" if the file's header says that its values
                            are not an image, else ""
    lost_meaning : callable (output header) -> a note if the file says what its values mean, and
                            those of an output, being filtered, do not mean that; else ""
    files : callable        (path) -> names of the files that a volume is read from, the named one
                            first, or its folder
    whole_files : bool      True if no file is read for two volumes
    holds_more : callable   (path) -> bool: True if the file holds volumes besides the named one
    written : callable      (path) -> names of the files that an output consists of, or its folder
    check_target            see `CheckTarget`

    What writing costs:

    output_bytes : callable (header, channels, options) -> int: bytes of memory, not counting the
                            blocks of `channels` channels that the caller passes in
    box_access : callable   (header, options) -> BoxAccess or None: how the writer takes boxes,
                            unless `streamed`
    """

    name: str
    suffixes: tuple[str, ...]
    summary: str
    open: OpenVolume
    create: CreateVolume | None = None
    output_letters: Callable[[str, int, np.dtype[Any]], str] = lambda letters, channels, dtype: (
        letters
    )
    open_again: OpenVolume | None = None
    signature: Signature = lambda start: False
    header_file: Callable[[str], str] = lambda path: path
    reads_packed: bool = False
    names_axes: bool = True
    holds_spacing: bool = True
    holds_affine: bool = False
    holds_scale: bool = False
    holds_history: bool = True
    holds_float64: bool = True
    holds_axes: Callable[[Axes], bool] = lambda axes: True
    keeps: Callable[[str, VolumeHeader], frozenset[str]] = lambda path, header: frozenset()
    chunked: bool = False
    compressions: tuple[str, ...] = ()
    streamed: Callable[[str, OutputOptions], bool] = lambda path, options: (
        options.compression != "none"
    )
    libraries: tuple[str, ...] = ()
    read_suffixes: tuple[str, ...] = ()
    target_suffix: str = ""
    reads_urls: bool = False
    has_parts: bool = False
    kernels: bool = True
    claims_also: Callable[[str], bool] = lambda path: False
    content: Callable[[str], str] = lambda path: ""
    lost_meaning: Callable[[VolumeHeader], str] = lambda header: ""
    files: Callable[[str], tuple[str, ...]] = lambda path: (path,)
    whole_files: bool = False
    holds_more: Callable[[str], bool] = lambda path: False
    written: Callable[[str], tuple[str, ...]] = lambda path: (path,)
    check_target: CheckTarget = check_target
    output_bytes: Callable[[VolumeHeader, int, OutputOptions], int] = (
        lambda header, channels, options: 0
    )
    box_access: Callable[[VolumeHeader, OutputOptions], BoxAccess | None] = _any_box

    def claims(self, path: str) -> bool:
        """True if the file name ends with one of the suffixes, in any case; "-" alone is a pipe."""
        if path == "-":
            return "-" in self.suffixes
        name = file_of(path) if self.has_parts else path
        return name.lower().endswith(
            tuple(s for s in self.suffixes if s != "-")
        ) or self.claims_also(path)

    def only_reads(self, path: str) -> bool:
        """True if the file name ends with a suffix of files that are read, and never written."""
        return file_of(path).lower().endswith(self.read_suffixes) if self.read_suffixes else False


def repeated(header: VolumeHeader, name: str) -> frozenset[str]:
    """The words of `Facts` that an output of a format repeats: all those of its own kind.

    name : str      of the format
    """
    own = header.format == name and header.metadata is not None
    return frozenset((*header.facts.others, *header.facts.provenance) if own else ())


MICROSCOPE = "what the file tells of microscope and experiment"
"""Words for `Facts.provenance`."""


def entries_of(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Words for `Facts` on entries that only their own format has; () if there are none.

    >>> entries_of("the keys", ["dw_scheme", "b", "c", "d"]), entries_of("the keys", [])
    (('the keys dw_scheme, b, c and 1 more',), ())
    """
    shown = ", ".join(name[:40] for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"{what} {shown}{more}",) if names else ()


@contextmanager
def library_errors(path: str, what: str) -> Iterator[None]:
    """Whatever a library raises for a damaged file becomes a FormatError; no warnings.

    what : str      name of the format
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Conv3DError:
        raise
    except Exception as error:
        raise_fault(error, path)
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise FormatError(f"cannot read {path}: damaged {what}: {text}") from error


def real_dtype(dtype: np.dtype[Any], path: str) -> np.dtype[Any]:
    """The native-order dtype that a reader returns for a stored dtype.

    It is the stored dtype, but float32 for float16, and float64 for long double.
    Raises: FormatError if the stored dtype is not one of real numbers.
    >>> real_dtype(np.dtype(">i2"), "a.npy"), real_dtype(np.dtype(np.float16), "a.npy")
    (dtype('int16'), dtype('float32'))
    """
    if dtype.kind == "c":
        raise FormatError(
            f"cannot read {path}: its voxels are complex ({dtype}); "
            "save the real and imaginary parts as two volumes"
        )
    if dtype.kind not in "buif":
        raise FormatError(f"cannot read {path}: its voxels are not numbers ({dtype})")
    if dtype.kind == "f" and dtype.itemsize not in (4, 8):
        return np.dtype(np.float32 if dtype.itemsize == 2 else np.float64)
    return dtype.newbyteorder("=")


class RawReader(ArrayReader):
    """A reader of uncompressed voxels in a file, through a memory map.

    stored : numpy dtype    of the voxels in the file, in either byte order; reads return
                            `header.dtype`
    offset : int            bytes before the first voxel
    fortran : bool          True if the first of the header's axes is the fastest, False if the last
    Raises: FormatError if the file is shorter than its header says.
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
                f"cannot read {path}: truncated: its header promises "
                f"{offset + count * stored.itemsize} bytes "
                f"(shape {header.axes.shape}, {stored}), the file has {size}; copy it again"
            )
        self._file = file
        try:
            # its length is given, so that a file system that fails now is not taken for a bad map
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if count else None
        except ValueError:
            raise FormatError(
                f"cannot read {path}: it became shorter while it was read; run again"
            ) from None
        # np.frombuffer keeps the map open as long as a view exists; np.ndarray(buffer=map) does not
        buffer = np.frombuffer(self._map, np.uint8) if self._map is not None else b""
        try:
            array = np.ndarray(
                header.axes.shape,
                stored,
                buffer,
                offset if count else 0,
                order="F" if fortran else "C",
            )
        except ValueError as error:  # 0 voxels, but sizes that overflow: (0, 2^62, 2^62)
            raise FormatError(
                f"cannot read {path}: its shape {header.axes.shape} is impossible ({error})"
            ) from error
        self._watched: WatchedMap | None = None
        if isinstance(buffer, np.ndarray):
            start = buffer.__array_interface__["data"][0]
            name = (
                file.name if isinstance(file.name, str) else path
            )  # an unnamed file's is a number
            self._watched = watch_map(start, buffer.nbytes, name)
        self._released = self._channel = 0
        self._start = offset
        super().__init__(array, header, path)

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        self._channel = channels.start
        return super().read(n, depth, channels)

    def box_access(self) -> BoxAccess:
        fastest = self.header.axes.letters[self._fastest]
        near = max(1, NEAR_BYTES // self.array.itemsize)
        depth, height, width = (
            min(near, self.header.axes.size(a)) if a == fastest else 1 for a in SPATIAL
        )
        return BoxAccess((depth, height, width), 2 * PIECE_BYTES)

    @property
    def _fastest(self) -> int:
        """Index of the axis along which neighbouring voxels are adjacent in the file."""
        sizes, strides = self.array.shape, self.array.strides
        return min(range(len(sizes)), key=lambda i: strides[i] if sizes[i] > 1 else math.inf)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        """A copy (d, h, w, c) of a box, not a view.

        The pages under a view would count as memory until they are released, and pages that boxes
        side by side share could not be.
        """
        axes, itemsize = self.header.axes, self.array.itemsize
        starts = (depth.start, rows.start, columns.start)
        shape = tuple(s.stop - s.start for s in (depth, rows, columns, channels))
        place = axes.place(n, starts, channels.start, shape)
        fastest = self._fastest
        run = min(max(1, RUN_BYTES // itemsize), place[fastest].stop - place[fastest].start)
        unit = [run if i == fastest else 1 for i in range(len(place))]
        most = PIECE_BYTES // (run * itemsize + FAULT_BYTES)
        return read_pieces(
            self.array, axes, self.header.dtype, place, unit, most, self._release_pages
        )

    def _release_pages(self, part: Array) -> None:
        """Release the pages under a view of the map."""
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
        """Release the pages before a plane of volume n, of the channel that was read last.

        A later read maps them again.
        """
        axes = self.header.axes
        if self._map is None or not hasattr(self._map, "madvise") or "z" not in axes.letters:
            return
        first = self.array.__array_interface__["data"][0]
        depth = slice(min(depth_stop, axes.size("z") - 1), None)
        block = axes.block(self.array, n, depth, slice(self._channel, self._channel + 1))
        stop = self._start + block.__array_interface__["data"][0] - first
        stop -= stop % mmap.PAGESIZE
        if stop - self._released >= 1 << 20:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, stop - self._released)
            self._released = stop
        elif stop < self._released:  # a new pass over earlier planes
            self._released = stop

    def close(self) -> None:
        self.array = np.empty(0)
        if self._watched is not None:
            unwatch_map(self._watched)
            self._watched = None
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                pass  # a caller still holds a view; the map is freed with it
            self._map = None
        self._file.close()


class RawWriter(VolumeWriter):
    """A writer of uncompressed voxels into a file, in any order of slabs.

    output : OutputFile     this writer commits it
    offset : int            bytes before the first voxel, which the format itself writes
    stored : numpy dtype or None
                            of the voxels in the file, in either byte order; None: `header.dtype`
    fortran : bool          True if the first of the header's axes is the fastest, False if the last
    """

    def __init__(
        self,
        output: OutputFile,
        header: VolumeHeader,
        path: str,
        offset: int = 0,
        stored: np.dtype[Any] | None = None,
        fortran: bool = False,
    ) -> None:
        self.output, self.header, self.path = output, header, path
        self.offset, self.fortran = offset, fortran
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
    """The writer of a voxel file and its header file, which are put in place together.

    An old header is removed first and the new one is put in place last, so that no header ever
    describes the voxels of another volume.
    """

    def __init__(self, voxels: VolumeWriter, head: OutputFile) -> None:
        self.voxels, self.head = voxels, head
        self.header, self.path, self.sequential = voxels.header, voxels.path, voxels.sequential

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        self.voxels.write(n, depth_start, channel_start, block)

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        self.voxels.write_box(n, starts, channel_start, block)

    def commit(self) -> None:
        with committed_together():
            self.voxels.commit()
            self.head.commit()

    def abort(self) -> None:
        self.voxels.abort()
        self.head.abort()


def reserve_space(file: BinaryIO, size: int) -> None:
    """Make a file at least `size` bytes long, and reserve its space where the file system can.

    Raises: OSError; for a full disk here, not while voxels are written.
    """
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
    # never shortened: TIFF directories may follow the voxels
    if os.fstat(file.fileno()).st_size < size:
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
    """Write a block (d, h, w, c) of volume n to its position in a file of uncompressed voxels.

    axes : Axes             storage order; the last axis is the fastest, under `fortran` the first
    stored : numpy dtype    of the voxels in the file
    offset : int            bytes before the first voxel
    starts : 3 ints         (D, H, W) of the block's first voxel
    """
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
    # the trailing axes that the block covers completely, and the axis before them, are one run
    split = len(shape) - 1
    while split > 0 and values.shape[split] == shape[split]:
        split -= 1
    base = sum(start * stride for start, stride in zip(first, strides, strict=True))
    for index in np.ndindex(*values.shape[:split]):
        position = base + sum(i * stride for i, stride in zip(index, strides[:split], strict=True))
        run = np.ascontiguousarray(values[index], dtype=stored)
        write_at(file, run.reshape(-1).view(np.uint8).data, offset + position * stored.itemsize)


def pieces(place: Sequence[slice], unit: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Split a box of an array into pieces, in storage order.

    place : slices      the box, a slice for each axis
    unit : ints         size of a cell along each axis (a chunk); pieces end at cell borders
    most : int          largest number of cells in a piece; each has at least one
    >>> found = pieces((slice(1, 5), slice(0, 3)), (2, 2), 2)
    >>> [tuple((s.start, s.stop) for s in piece) for piece in found]
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
    """The slices of a piece of a box, relative to the box.

    >>> within((slice(4, 5), slice(0, 3)), (slice(1, 5), slice(0, 3)))
    (slice(3, 4, None), slice(0, 3, None))
    """
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
    """Read a box of a stored array, piece by piece, into a new array (d, h, w, c).

    array : array           NumPy's, or one that is indexed alike
    axes : Axes             of `array`
    dtype : numpy dtype     of the result
    place, unit, most       see `pieces`
    after : callable        called with each piece of `array` when it has been copied
    """
    found = np.empty([s.stop - s.start for s in place], dtype)
    for piece in pieces(place, unit, most):
        part = array[piece]
        found[within(piece, place)] = part
        after(part)
    return Axes(axes.letters, found.shape).block(found, 0, slice(None), slice(None))


# --------------------------------------------------------------------------------------------------
# Spooling: random access for what can only be streamed


def spool_reader(reader: VolumeReader, beside: str | None = None) -> VolumeReader:
    """Random access to the voxels of a sequential reader, through an uncompressed copy in $TMPDIR.

    beside : str or None    an output, whose folder serves if no temporary folder is writable
    Takes over `reader` and closes it.
    Raises: FormatError if the input is corrupt; WriteError if the disk is full.
    """
    header = reader.header
    file = unnamed_file(beside)  # the new reader closes it
    folder = temporary_folder(beside)
    try:
        with reader, write_errors(f"a temporary copy of {reader.path} in {folder}"):
            reserve_space(file, header.nbytes)
            for n, starts, channel, (block,) in blocks_of([reader], header.dtype.itemsize):
                write_block(file, header.axes, header.dtype, 0, n, starts, channel, block)
            reader.finish()
        copy = RawReader(file, header, reader.path, header.dtype, 0)
        copy.notes, copy.losses = reader.notes, reader.losses
        return copy
    except BaseException:
        file.close()
        raise


def random_access(reader: VolumeReader, beside: str | None = None) -> VolumeReader:
    """A reader that reads planes in any order: `reader` itself, or `spool_reader` of it."""
    return spool_reader(reader, beside) if reader.sequential else reader


class SpooledWriter(VolumeWriter):
    """Take slabs in any order for a sequential writer; an unnamed file in $TMPDIR holds them.

    Takes over `writer`: `commit` writes it, and no space for the file aborts it.
    """

    def __init__(self, writer: VolumeWriter) -> None:
        self.writer, self.header, self.path = writer, writer.header, writer.path
        self.notes, self.remarks = writer.notes, writer.remarks
        try:
            with self._errors():
                self._file = unnamed_file(self.path)  # closed by abort
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
        return write_errors(f"a temporary copy of {self.path} in {temporary_folder(self.path)}")

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
    """Take real numbers for an integer output, and scale them to use its full range.

    The slope and intercept need the range of all values, so an unnamed file in $TMPDIR holds them
    as float32 until `commit`.

    header : VolumeHeader   of the integer output; this writer itself takes float32
    create : callable       (scale) -> the writer of the integers; called by `commit`
    known : tuple of str    notes that it will have, whatever the values are
    """

    def __init__(
        self,
        header: VolumeHeader,
        path: str,
        create: Callable[[tuple[float, float]], VolumeWriter],
        known: tuple[str, ...] = (),
    ) -> None:
        self.notes = self._known = known
        self.stored, self.path, self._create = header.dtype, path, create
        self.header = replace(header, dtype=np.dtype(np.float32))
        self._low, self._high, self._nonfinite = math.inf, -math.inf, 0
        with self._errors():
            self._file = unnamed_file(self.path)  # closed by abort
            reserve_space(self._file, self.header.nbytes)

    def _errors(self) -> write_errors:
        return write_errors(f"a temporary copy of {self.path} in {temporary_folder(self.path)}")

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        known = np.isfinite(block)
        finite = block if known.all() else block[known]
        self._nonfinite += block.size - finite.size
        if self._nonfinite:
            self.notes = (
                *self._known,
                f"{self._nonfinite} voxels are NaN or infinite, which integers cannot hold: "
                "they become 0",
            )
        if finite.size:
            self._low = min(self._low, float(finite.min()))
            self._high = max(self._high, float(finite.max()))
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
        """The slope and intercept, exact in float32, that map the values onto the integer range."""
        limits = np.iinfo(self.stored)
        if self._low > self._high:
            return 1.0, 0.0
        if self._low == self._high:
            return 1.0, self._low  # exact: the value is a float32
        least, most = float(limits.min), float(limits.max)
        # round the intercept as the header does, then choose the slope that keeps both ends inside
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
            self.remarks = writer.remarks
            self.notes = (
                *self.notes,
                *(note for note in writer.notes if note not in self.notes),
                f"scale: slope {slope:.7g}, intercept {intercept:.7g}",
            )

    def abort(self) -> None:
        self._file.close()
