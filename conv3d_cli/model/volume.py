"""Volumes, and the contracts by which formats hand them out and take them in.

Inside the package every volume is seen as (N, D, H, W, C): N counts everything that is neither space nor channel (time,
repetitions, Keras' extended batch). `Axes` maps a file's own axis order to this view and back; `VolumeReader` and
`VolumeWriter` are what a format implements: slabs of depth planes in, slabs out, then commit.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import VoxelTransform

Array = NDArray[Any]

SPATIAL = "zyx"
CHANNEL = "cs"  # c = channel, s = sample of an RGB pixel, stored together


@dataclass(frozen=True)
class Axes:
    """Axis letters of an array in storage order, slowest first, with their sizes.

    letters : str       z y x = depth, height, width; c, s = channels; every other letter (t, r, q, ...) counts as batch
    shape : tuple       size of each

    Raises SpecError for repeated letters, a missing y or x, or a letter count that is not the shape's.
    >>> Axes("tczyx", (5, 2, 10, 20, 30)).canonical_shape
    (5, 10, 20, 30, 2)
    """

    letters: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        letters = self.letters
        if len(letters) != len(self.shape):
            raise SpecError(
                f"axes '{letters}' name {len(letters)} axes, but the volume has {len(self.shape)}: {self.shape}"
            )
        if len(set(letters)) != len(letters) or not letters.isalpha() or not letters.islower():
            raise SpecError(f"axes must be different letters such as 'tczyx', received '{letters}'")
        if "y" not in letters or "x" not in letters:
            raise SpecError(f"axes must hold y and x (and z for a volume), received '{letters}'")

    def size(self, letter: str) -> int:
        """Size of an axis, 1 if it is absent."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1

    @property
    def batch_letters(self) -> str:
        """The axes that are neither spatial nor channels, in storage order.

        >>> Axes("tczyx", (5, 2, 10, 20, 30)).batch_letters
        't'
        """
        return "".join(a for a in self.letters if a not in SPATIAL + CHANNEL)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the batch axes; their product is the N of (N, D, H, W, C)."""
        return tuple(self.size(a) for a in self.batch_letters)

    @property
    def channel_letters(self) -> str:
        """The channel axes, c and s, in storage order; the product of their sizes is the C of (N, D, H, W, C)."""
        return "".join(a for a in self.letters if a in CHANNEL)

    @property
    def canonical_shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C)."""
        channels = math.prod(self.size(a) for a in self.channel_letters)
        return (
            math.prod(self.batch_shape),
            self.size("z"),
            self.size("y"),
            self.size("x"),
            channels,
        )

    @property
    def channels_within_plane(self) -> bool:
        """True if all channels of a depth plane lie before the next plane in storage, so that they stream together."""
        # without depth a volume is one plane, which begins with height or width
        plane = min(self.letters.index(a) for a in ("z" if "z" in self.letters else "yx"))
        return all(self.letters.index(a) > plane for a in self.channel_letters)

    @property
    def planes_follow(self) -> bool:
        """True if a forward pass over storage meets whole planes in turn: see `parts_in_storage_order`.

        >>> Axes("tczyx", (2,) * 5).planes_follow, Axes("ztyx", (2,) * 4).planes_follow, Axes("xyz", (2,) * 3).planes_follow
        (True, False, False)
        """
        inner = SPATIAL + (self.channel_letters if self.channels_within_plane else "")
        letters = "".join(a for a in self.letters if self.size(a) > 1)
        planes = "".join(a for a in letters if a in inner)
        return letters.endswith(planes) and "z" not in planes[1:]

    def renamed(self, letters: str, sizes: dict[str, int]) -> Axes:
        """Axes of these letters, sized from `sizes`, else as here, else 1."""
        return Axes(letters, tuple(sizes.get(a, self.size(a)) for a in letters))

    def block(
        self,
        array: Array,
        n: int,
        depth: slice,
        channels: slice,
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> Array:
        """The (d, h, w, c) view of planes and channels (and of some rows and columns) of volume `n` in an array with these axes.

        Where two axes make up the channels (c and s) and more than one of each is asked for, it is a copy; see `assign`.
        >>> a = np.arange(24).reshape(2, 3, 2, 2)
        >>> Axes("czyx", a.shape).block(a, 0, slice(0, 2), slice(1, 2))[:, 0, 0, 0].tolist()
        [12, 16]
        """
        batch = (
            dict(zip(self.batch_letters, np.unravel_index(n, self.batch_shape), strict=True))
            if self.batch_shape
            else {}
        )
        index: list[Any] = []
        kept = ""
        start, stop, _ = channels.indices(self.canonical_shape[4])
        single: dict[str, int] = {}
        if len(self.channel_letters) > 1 and stop - start == 1:
            sizes = tuple(self.size(a) for a in self.channel_letters)
            single = {
                a: int(i)
                for a, i in zip(self.channel_letters, np.unravel_index(start, sizes), strict=True)
            }
        for letter in self.letters:
            if letter in batch:
                index.append(int(batch[letter]))
                continue
            if letter in single:
                index.append(single[letter])
                continue
            if letter in SPATIAL:
                index.append({"z": depth, "y": rows, "x": columns}[letter])
            elif letter in CHANNEL and len(self.channel_letters) == 1:
                index.append(slice(start, stop))
            else:
                index.append(slice(None))
            kept += letter
        view: NDArray[Any] = array[tuple(index)]
        for letter in SPATIAL:
            if letter not in kept:  # only z may be missing
                view, kept = view[np.newaxis], letter + kept
        channel = "".join(a for a in kept if a in CHANNEL)
        view = view.transpose([kept.index(a) for a in SPATIAL + channel])
        if len(channel) == 2:
            return view.reshape(*view.shape[:3], -1)[..., start:stop]
        return view if channel else view[..., np.newaxis]

    def assign(self, array: Array, n: int, depth: slice, channels: slice, values: Array) -> None:
        """Write `values` (d, h, w, c) where `block` would read them."""
        if len(self.channel_letters) < 2:
            self.block(array, n, depth, channels)[...] = values
        else:
            for position, c in enumerate(range(*channels.indices(self.canonical_shape[4]))):
                self.block(array, n, depth, slice(c, c + 1))[..., 0] = values[..., position]

    def place(
        self, n: int, starts: tuple[int, int, int], channel_start: int, shape: tuple[int, ...]
    ) -> tuple[slice, ...]:
        """Where a box (d, h, w, c) of volume `n` lies in storage order: a slice for each letter.

        Where c and s make up the channels, the box holds one channel or all of them.
        >>> Axes("tczyx", (2, 3, 4, 5, 6)).place(1, (0, 2, 3), 1, (4, 2, 1, 2))
        (slice(1, 2, None), slice(1, 3, None), slice(0, 4, None), slice(2, 4, None), slice(3, 4, None))
        """
        first = self.storage_start(n, starts[0], channel_start, *starts[1:])
        whole = shape[3] == self.canonical_shape[4]
        sizes = dict(zip(SPATIAL, shape, strict=False)) | dict.fromkeys(self.batch_letters, 1)
        for letter in self.channel_letters:
            sizes[letter] = (
                self.size(letter) if whole else (shape[3] if len(self.channel_letters) == 1 else 1)
            )
        return tuple(
            slice(start, start + sizes[a]) for start, a in zip(first, self.letters, strict=True)
        )

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A box (d, h, w, c) to be filled, its memory in the order of storage.

        >>> Axes("czyx", (2, 3, 4, 5)).empty((1, 4, 5, 2), np.dtype(np.uint8)).strides
        (20, 5, 1, 20)
        """
        order = [
            SPATIAL.find(a) if a in SPATIAL else 3
            for a in self.letters
            if a in SPATIAL + self.channel_letters[:1]
        ]
        order = [axis for axis in range(4) if axis not in order] + order
        return np.empty([shape[axis] for axis in order], dtype).transpose(
            [order.index(axis) for axis in range(4)]
        )

    def storage_order(self, block: Array) -> Array:
        """Block (d, h, w, c) with one axis for each letter, in storage order; batch axes have size 1.

        Where c and s make up the channels, the block holds one channel or all of them.
        """
        depth, height, width, channels = block.shape
        whole = channels == self.canonical_shape[4]
        letters = SPATIAL + self.channel_letters
        if len(self.channel_letters) == 2:
            sizes = [self.size(a) if whole else 1 for a in self.channel_letters]
        else:
            sizes = [channels] * len(self.channel_letters)
        values = block.reshape(depth, height, width, *sizes)
        present = [a for a in self.letters if a in letters]
        values = values.transpose(
            [letters.index(a) for a in letters if a not in present]
            + [letters.index(a) for a in present]
        )
        return values.reshape(
            [
                values.shape[len(letters) - len(present) + present.index(a)] if a in present else 1
                for a in self.letters
            ]
        )

    def storage_start(
        self,
        n: int,
        depth_start: int,
        channel_start: int,
        row_start: int = 0,
        column_start: int = 0,
    ) -> list[int]:
        """Index, in storage order, of the first voxel of volume n at a plane, row, column and channel."""
        starts = {"z": depth_start, "y": row_start, "x": column_start}
        for letters, position in ((self.batch_letters, n), (self.channel_letters, channel_start)):
            sizes = tuple(self.size(a) for a in letters)
            starts.update(
                (a, int(i))
                for a, i in zip(
                    letters, np.unravel_index(position, sizes) if sizes else (), strict=True
                )
            )
        return [starts[a] for a in self.letters]


@dataclass(frozen=True)
class VolumeHeader:
    """Everything about a volume but its voxels.

    axes : Axes                 storage order and sizes
    dtype : numpy dtype         of the stored voxels, in native byte order
    grid : Grid                 place in the world
    scale : (slope, intercept)  a voxel's value is stored · slope + intercept
    format : str                name of the format that read it ("NIfTI", "TIFF", "NumPy", or "" for an array)
    metadata : object           what that format wants to keep for writing; other formats ignore it
    transform : VoxelTransform  of an output: where its voxels lie in the volume `metadata` describes
    components : tuple of str   of an output: what the channels made of one input channel are, in turn; () if they have no names
    history : tuple of str      how it was made, the oldest step first, a line each: "PROGRAM STEP: COMMAND"
    """

    axes: Axes
    dtype: np.dtype[Any]
    grid: Grid = field(default_factory=Grid)
    scale: tuple[float, float] = (1.0, 0.0)
    format: str = ""
    metadata: Any = None
    transform: VoxelTransform = field(default_factory=VoxelTransform)
    components: tuple[str, ...] = ()
    history: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C)."""
        return self.axes.canonical_shape

    def component_labels(self, sources: Sequence[str | None] = ()) -> list[str]:
        """A name for each channel, where they are components; after the input channel's own name where there are several of
        them.

        >>> axes = Axes("czyx", (4, 1, 1, 1))
        >>> VolumeHeader(axes, np.dtype(np.float32), components=("sobel x", "sobel y")).component_labels(["DAPI"])
        ['1: sobel x', '1: sobel y', '2: sobel x', '2: sobel y']
        """
        channels = self.shape[4]
        count = channels // max(1, len(self.components))
        names = list(sources) if len(sources) == count else [None] * count
        first = [name or str(number + 1) for number, name in enumerate(names)]
        return [
            f"{one}: {own}" if count > 1 or names[0] else own
            for one in first
            for own in self.components
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels in their stored type, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_history(text: str) -> bool:
    """Whether a comment in a file is a line of a `VolumeHeader`'s history."""
    return text.startswith("conv3d ") and ": " in text


@dataclass(frozen=True)
class BoxAccess:
    """What boxes of a volume cost that can be read or written anywhere.

    unit : (D, H, W)    voxels that are decoded, encoded or stored as one; 1 where each voxel has its place
    held : int          bytes taken meanwhile, beside the box
    """

    unit: tuple[int, int, int]
    held: int


class VolumeReader(abc.ABC):
    """An open volume: a header, and slabs of it on demand.

    `sequential` readers (a compressed stream) can be read only forward in storage order: never a plane that lies before
    the last one read. `finish` is called after the last read and raises FormatError if what remains of the file shows it
    to be corrupt (a wrong checksum), so that no output is committed from it. `channels_together` readers store several
    channels in one piece, so that one by one each would be read several times. `notes` are short sentences about how the file
    was understood; more may come with `finish`.
    Close it, or use it as a context manager.
    """

    header: VolumeHeader
    path: str
    sequential: bool = False
    channels_together: bool = False
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, n: int, depth: slice, channels: slice) -> Array:
        """Stored voxels of volume n: (d, h, w, c), native byte order, perhaps a view of the file. Never written to.

        depth, channels : slices with start and stop, within the volume
        Raises: FormatError if the file is truncated or corrupt.
        """

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        """As `read`, of some rows and columns; where `box_access` is not None, in memory of its own, and no more is touched."""
        return self.read(n, depth, channels)[:, rows, columns]

    def box_access(self) -> BoxAccess | None:
        """What `read_box` costs; None if only whole planes can be had."""
        return None

    def release(self, n: int, depth_stop: int) -> None:  # noqa: B027 - optional
        """Planes of volume n before `depth_stop` will not be read again; a memory map may drop them."""

    def buffer_bytes(self, planes: int, channels: int) -> int:
        """Memory the reader takes beside the blocks it hands out, in a forward pass over runs of so many planes."""
        return 0

    def storage(self) -> dict[str, str]:
        """How the file stores its voxels, for people: names and values in words."""
        return {}

    def finish(self) -> None:  # noqa: B027 - optional
        """Check what can only be checked at the end of the file."""

    def close(self) -> None:  # noqa: B027 - optional
        """Release the file."""

    def __enter__(self) -> VolumeReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class VolumeWriter(abc.ABC):
    """A volume being written: slabs in, then `commit`, which makes the file appear; `abort` leaves nothing.

    A `sequential` writer takes slabs only in storage order without gaps; others may take boxes, too.
    `notes` are short sentences about what the format could not hold (no spacing in .npy, no float64 in ImageJ TIFF). Used as
    a context manager it aborts unless committed.
    """

    header: VolumeHeader
    path: str
    sequential: bool = False
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        """Write planes of volume n: block (d, h, w, c) in `header.dtype`, values in final form.

        Raises: WriteError if the disk is full or the like.
        """

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        """As `write`, of a box whose first voxel is at `starts` (D, H, W); only where the format says so (`box_access`)."""
        raise NotImplementedError(f"{self.path} takes whole planes")

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        """An array (d, h, w, c) for the caller to fill and hand to `write`: memory of its own, or a view of the target."""
        _, _, height, width, _ = self.header.shape
        shape = (depth.stop - depth.start, height, width, channels.stop - channels.start)
        return np.empty(shape, self.header.dtype)

    @abc.abstractmethod
    def commit(self) -> None:
        """Complete the file and put it in its place."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Leave nothing behind. Harmless after `commit` and when called twice."""

    def __enter__(self) -> VolumeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


@dataclass(frozen=True, eq=False)
class Volume:
    """A whole volume in memory.

    data : array            in the order of `axes`: for a 3-D scan (z, y, x); scaled values, native byte order
    axes : str              letters of its axes, for example "zyx", "tzyx", "zyxc"
    grid : Grid             spacing, unit, affine
    format, metadata        kept from the file it came from, used when it is written in the same format again

    >>> Volume(np.zeros((4, 5, 6)), "zyx").shape
    (1, 4, 5, 6, 1)
    """

    data: Array
    axes: str
    grid: Grid = field(default_factory=Grid)
    format: str = ""
    metadata: Any = None

    def __post_init__(self) -> None:
        Axes(self.axes, np.shape(self.data))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C)."""
        return Axes(self.axes, self.data.shape).canonical_shape

    @property
    def header(self) -> VolumeHeader:
        """The header that a file with these voxels would have.

        >>> Volume(np.zeros((2, 3, 4), np.int16), "zyx").header.nbytes
        48
        """
        axes = Axes(self.axes, self.data.shape)
        return VolumeHeader(
            axes, self.data.dtype, self.grid, format=self.format, metadata=self.metadata
        )


class ArrayReader(VolumeReader):
    """A `VolumeReader` over an array in memory or in a memory map."""

    def __init__(self, array: Array, header: VolumeHeader, path: str = "array") -> None:
        if array.shape != header.axes.shape:
            raise ShapeError(
                f"{path}: array of shape {array.shape} does not have its header's shape {header.axes.shape}"
            )
        self.array, self.header, self.path = array, header, path

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        block = self.header.axes.block(self.array, n, depth, channels)
        return (
            block
            if block.dtype == self.header.dtype and block.dtype.isnative
            else block.astype(self.header.dtype)
        )


class ArrayWriter(VolumeWriter):
    """A `VolumeWriter` into an array in memory; slabs are views of it, so nothing is copied."""

    def __init__(self, array: Array, header: VolumeHeader, path: str = "array") -> None:
        self.array, self.header, self.path = array, header, path

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        block = self.header.axes.block(self.array, n, depth, channels)
        return (
            block if np.may_share_memory(block, self.array) else super().block(n, depth, channels)
        )

    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        if not np.may_share_memory(block, self.array):
            depth = slice(depth_start, depth_start + block.shape[0])
            channels = slice(channel_start, channel_start + block.shape[3])
            self.header.axes.assign(self.array, n, depth, channels, block)

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


def parts_in_storage_order(axes: Axes, channels_together: bool) -> Iterator[tuple[int, slice]]:
    """Volumes (n, channels) in the order a forward pass over storage meets them.

    channels_together : bool    True: every part holds all channels; False: one part a channel where channels lie
                                slower than depth, else all of them together
    >>> [(n, c.start) for n, c in parts_in_storage_order(Axes("ctzyx", (2, 2, 1, 1, 1)), channels_together=False)]
    [(0, 0), (1, 0), (0, 1), (1, 1)]
    """
    count, *_, channels = axes.canonical_shape
    if channels_together or axes.channels_within_plane:
        for n in range(count):
            yield n, slice(0, channels)
        return
    outer = [a for a in axes.letters if a not in SPATIAL]
    for position in np.ndindex(*(axes.size(a) for a in outer)):
        where = dict(zip(outer, position, strict=True))
        n = c = 0
        for letter in axes.batch_letters:
            n = n * axes.size(letter) + where[letter]
        for letter in axes.channel_letters:
            c = c * axes.size(letter) + where[letter]
        yield n, slice(c, c + 1)
