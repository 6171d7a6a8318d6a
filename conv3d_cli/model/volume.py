"""Volumes, and the reader and writer interfaces that formats implement.

Inside the package every volume has the canonical shape (N, D, H, W, C). N counts everything that is
neither space nor channel (time, repetitions, Keras' extended batch). `Axes` maps a file's own axis
order to this view and back. A format implements `VolumeReader` and `VolumeWriter`, which read and
write slabs of depth planes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import VoxelTransform
from conv3d_cli.model.units import seconds_of

Array = NDArray[Any]

SPATIAL = "zyx"
CHANNEL = "cs"  # c = channel, s = sample of an RGB pixel, stored together


@dataclass(frozen=True)
class Axes:
    """Axis letters of an array in storage order, slowest first, with their sizes.

    letters : str       z, y, x: depth, height, width; c, s: channels; any other lower-case letter
                        (t, r, q, ...) is a batch axis
    shape : tuple       the size of each axis

    Raises: SpecError for repeated letters, a missing y or x, or not as many letters as sizes.
    >>> Axes("tczyx", (5, 2, 10, 20, 30)).canonical_shape
    (5, 10, 20, 30, 2)
    """

    letters: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        letters = self.letters
        if len(letters) != len(self.shape):
            raise SpecError(
                f"axes '{letters}' name {len(letters)} axes, "
                f"but the volume has {len(self.shape)}: "
                f"{self.shape}; name each once"
            )
        if len(set(letters)) != len(letters) or not letters.isalpha() or not letters.islower():
            raise SpecError(f"axes must be different letters such as 'tczyx', received '{letters}'")
        if "y" not in letters or "x" not in letters:
            raise SpecError(f"axes must hold y and x (and z for a volume), received '{letters}'")

    def size(self, letter: str) -> int:
        """The size of an axis; 1 if it is absent."""
        return self.shape[self.letters.index(letter)] if letter in self.letters else 1

    @property
    def batch_letters(self) -> str:
        """The letters of the batch axes, in storage order.

        >>> Axes("tczyx", (5, 2, 10, 20, 30)).batch_letters
        't'
        """
        return "".join(a for a in self.letters if a not in SPATIAL + CHANNEL)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The sizes of the batch axes; their product is the N of (N, D, H, W, C)."""
        return tuple(self.size(a) for a in self.batch_letters)

    @property
    def channel_letters(self) -> str:
        """The letters of the channel axes (c, s), in storage order.

        The product of their sizes is the C of (N, D, H, W, C).
        """
        return "".join(a for a in self.letters if a in CHANNEL)

    @cached_property
    def canonical_shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C); absent axes count as 1."""
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
        """True if storage holds all channels of a depth plane before the next plane.

        The channels of a volume then stream together.
        """
        # without a depth axis a volume is one plane, whose slowest axis is height or width
        plane = min(self.letters.index(a) for a in ("z" if "z" in self.letters else "yx"))
        return all(self.letters.index(a) > plane for a in self.channel_letters)

    @property
    def planes_follow(self) -> bool:
        """True if a forward pass over storage meets the whole planes of each part in order.

        See `parts_in_storage_order` for the parts.
        >>> [Axes(a, (2,) * len(a)).planes_follow for a in ("tczyx", "ztyx", "xyz")]
        [True, False, False]
        """
        inner = SPATIAL + (self.channel_letters if self.channels_within_plane else "")
        letters = "".join(a for a in self.letters if self.size(a) > 1)
        planes = "".join(a for a in letters if a in inner)
        return letters.endswith(planes) and "z" not in planes[1:]

    def renamed(self, letters: str, sizes: dict[str, int]) -> Axes:
        """Axes with other letters.

        sizes : size of a letter; a letter without one keeps its size here, a new one gets 1
        >>> Axes("zyx", (4, 5, 6)).renamed("zyxc", {"z": 2, "c": 8}).shape
        (2, 5, 6, 8)
        """
        return Axes(letters, tuple(sizes.get(a, self.size(a)) for a in letters))

    def letters_after(self, shape: Sequence[int]) -> str:
        """The letters that describe a volume of another size (N, D, H, W, C), in the same order.

        Samples of a pixel (s) stay samples only if their number is unchanged. A depth axis is added
        where it is needed, a channel axis is not.
        >>> Axes("yxs", (8, 9, 3)).letters_after((1, 1, 8, 9, 4))
        'yxc'
        """
        letters = self.letters
        if shape[4] != self.canonical_shape[4]:
            letters = letters.replace("s", "" if "c" in letters else "c")
        if "z" not in letters and shape[1] > 1:
            letters = letters.replace("y", "zy")
        return letters

    def resized(self, shape: Sequence[int], channels_first: bool = False) -> Axes:
        """The axes of a volume in the same order but of another size, such as an output.

        shape : (N, D, H, W, C)     with the same N
        channels_first : bool       place of a channel axis that is new: first, else last
        >>> Axes("tzyx", (5, 7, 8, 9)).resized((5, 3, 8, 9, 2)).letters
        'tzyxc'
        """
        letters, channels = self.letters_after(shape), shape[4]
        sizes = dict(zip(SPATIAL, shape[1:4], strict=True))
        if channels > 1 and not any(a in CHANNEL for a in letters):
            letters = f"c{letters}" if channels_first else f"{letters}c"
        own = [a for a in letters if a in CHANNEL]
        if len(own) == 1:
            sizes[own[0]] = channels
        return self.renamed(letters, sizes)

    def block(
        self,
        array: Array,
        n: int,
        depth: slice,
        channels: slice,
        rows: slice = slice(None),
        columns: slice = slice(None),
    ) -> Array:
        """A block (d, h, w, c) of volume `n`, as a view of an array with these axes.

        array : in storage order
        depth, channels, rows, columns : slices of the canonical axes
        Returns a copy if the channels have two axes (c and s) and several are selected; to write
        those, use `assign`.
        >>> a = np.arange(24).reshape(2, 3, 2, 2)
        >>> Axes("czyx", a.shape).block(a, 0, slice(0, 2), slice(1, 2))[:, 0, 0, 0].tolist()
        [12, 16]
        """
        fixed = self._unravel(self.batch_letters, n)
        index: list[Any] = []
        kept = ""
        start, stop, _ = channels.indices(self.canonical_shape[4])
        if len(self.channel_letters) > 1 and stop - start == 1:
            fixed |= self._unravel(self.channel_letters, start)
        for letter in self.letters:
            if letter in fixed:
                index.append(fixed[letter])
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
            if letter not in kept:  # only z may be absent
                view, kept = view[np.newaxis], letter + kept
        channel = "".join(a for a in kept if a in CHANNEL)
        view = view.transpose([kept.index(a) for a in SPATIAL + channel])
        if len(channel) == 2:
            return view.reshape(*view.shape[:3], -1)[..., start:stop]
        return view if channel else view[..., np.newaxis]

    def assign(self, array: Array, n: int, depth: slice, channels: slice, values: Array) -> None:
        """Write a block of `values` (d, h, w, c); parameters as of `block`."""
        if len(self.channel_letters) < 2:
            self.block(array, n, depth, channels)[...] = values
        else:
            for position, c in enumerate(range(*channels.indices(self.canonical_shape[4]))):
                self.block(array, n, depth, slice(c, c + 1))[..., 0] = values[..., position]

    def place(
        self, n: int, starts: tuple[int, int, int], channel_start: int, shape: tuple[int, ...]
    ) -> tuple[slice, ...]:
        """The slices, in storage order, of a box of volume `n`; one for each letter.

        starts : (d, h, w) of the first voxel
        shape : (d, h, w, c) of the box, with one channel or all if the channels have two axes
        >>> where = Axes("tczyx", (2, 3, 4, 5, 6)).place(1, (0, 2, 3), 1, (4, 2, 1, 2))
        >>> [(s.start, s.stop) for s in where]
        [(1, 2), (1, 3), (0, 4), (2, 4), (3, 4)]
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
        """An uninitialized array (d, h, w, c) whose memory is in storage order.

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
        """A block with one axis for each letter, in storage order; batch axes have size 1.

        block : (d, h, w, c), with one channel or all if the channels have two axes
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
        absent = [a for a in letters if a not in present]
        values = values.transpose([letters.index(a) for a in (*absent, *present)])
        shape = dict(zip(present, values.shape[len(absent) :], strict=True))
        return values.reshape([shape.get(a, 1) for a in self.letters])

    def storage_start(
        self,
        n: int,
        depth_start: int,
        channel_start: int,
        row_start: int = 0,
        column_start: int = 0,
    ) -> list[int]:
        """The index, in storage order, of a voxel of volume `n`: one number for each letter."""
        starts = {"z": depth_start, "y": row_start, "x": column_start}
        starts |= self._unravel(self.batch_letters, n)
        starts |= self._unravel(self.channel_letters, channel_start)
        return [starts[a] for a in self.letters]

    def _unravel(self, letters: str, number: int) -> dict[str, int]:
        """The index along each of some axes of the voxel with a number, counted over these axes."""
        if not letters:
            return {}
        indices = np.unravel_index(number, tuple(self.size(a) for a in letters))
        return dict(zip(letters, map(int, indices), strict=True))


@dataclass(frozen=True)
class Facts:
    """What a file tells of its image besides voxels and geometry; all formats share it.

    A reader fills in what its file tells. A writer stores what its format holds
    (`VolumeFormat.keeps`); `create_volume` says what is lost.

    name : str                  of the image; "" if it has none
    time_step : (step, unit)    between time points; the unit is one of `units.TIME_UNITS`, the
                                file's own word, or "" if it gives none. None if unknown
    channel_names : tuple       of str, one for each channel, "" for one without; () if the file
                                names none
    channel_colors : tuple      of str "RRGGBB", as `channel_names`
    others : tuple of str       what else the file tells that only an output of its own kind
                                repeats, in words: "slice labels"
    dropped : tuple of str      what else it tells that no output repeats, in words
    provenance : tuple of str   what it tells of its making (patient, device, programs, dates), in
                                words; programs replace it as a matter of course. Its loss is a
                                note, but no error under --strict
    """

    name: str = ""
    time_step: tuple[float, str] | None = None
    channel_names: tuple[str, ...] = ()
    channel_colors: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """The time step in seconds; None if it, or its unit, is unknown.

        >>> Facts(time_step=(2.0, "min")).seconds, Facts(time_step=(2.0, "frames")).seconds
        (120.0, None)
        """
        unit = seconds_of(self.time_step[1]) if self.time_step else None
        # rounded, so that decimal numbers stay decimal
        return float(f"{self.time_step[0] * unit:.12g}") if self.time_step and unit else None


@dataclass(frozen=True)
class VolumeHeader:
    """Everything about a volume except its voxels.

    axes : Axes                 storage order and sizes
    dtype : numpy dtype         of the stored voxels, in native byte order
    grid : Grid                 place in the world
    scale : (slope, intercept)  the value of a voxel is stored · slope + intercept
    file_dtype : dtype or None  of the voxels in the file that was read, where readers hand out
                                another one; None: `dtype`
    format : str                name of the format that read it ("NIfTI", "TIFF", "NumPy", ...), or
                                "" for an array
    metadata : object           the format's own data, for writing; other formats ignore it
    transform : VoxelTransform  of an output: from its voxels to the volume that `metadata`
                                describes
    components : tuple of str   of an output: names of the channels that one input channel became,
                                in order; () if they have no names
    channel_places : tuple or None      of an output: the places of its channels among those that
                                `metadata` describes; None if it has these, all and in order, ()
                                if its channels are others
    is_filtered : bool          of an output: its values are computed, not copied, so what they mean
                                may be another thing than `metadata` says
    is_copy : bool              of an output: each value is one of the input
    is_labels : bool            of an output: its values are labels
    history : tuple of str      the steps that made it, oldest first: lines "PROGRAM STEP: COMMAND"
    facts : Facts               what the file tells besides
    """

    axes: Axes
    dtype: np.dtype[Any]
    grid: Grid = field(default_factory=Grid)
    scale: tuple[float, float] = (1.0, 0.0)
    format: str = ""
    metadata: Any = None
    transform: VoxelTransform = field(default_factory=VoxelTransform)
    components: tuple[str, ...] = ()
    channel_places: tuple[int, ...] | None = None
    history: tuple[str, ...] = ()
    facts: Facts = field(default_factory=Facts)
    is_filtered: bool = False
    is_copy: bool = False
    is_labels: bool = False
    file_dtype: np.dtype[Any] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C)."""
        return self.axes.canonical_shape

    @property
    def channel_names(self) -> list[str]:
        """A name for each channel; [] if they have none.

        An output with `components` has one for each pair of an input channel and a component. An
        input channel without a name is called by its number; a single one is left out.
        >>> axes, components = Axes("czyx", (4, 1, 1, 1)), ("sobel x", "sobel y")
        >>> facts = Facts(channel_names=("DAPI", ""))
        >>> VolumeHeader(axes, np.dtype("f4"), components=components, facts=facts).channel_names
        ['DAPI: sobel x', 'DAPI: sobel y', '2: sobel x', '2: sobel y']
        """
        channels, sources = self.shape[4], self.facts.channel_names
        if not self.components:
            return list(sources) if len(sources) == channels and any(sources) else []
        count = channels // len(self.components)
        names = list(sources) if len(sources) == count else [""] * count
        first = [name or str(number + 1) for number, name in enumerate(names)]
        return [
            f"{one}: {own}" if count > 1 or names[0] else own
            for one in first
            for own in self.components
        ]

    @property
    def channel_colors(self) -> list[str]:
        """A colour "RRGGBB" for each channel, "" where there is none; [] if none has one."""
        colors = list(self.facts.channel_colors)
        same = len(colors) == self.shape[4] and not self.components
        return colors if same and any(colors) else []

    def places_among(self, count: int) -> Sequence[int]:
        """The places of an output's channels among the `count` ones that `metadata` describes."""
        return range(count) if self.channel_places is None else self.channel_places

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels in their stored type, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize


def is_history(text: str) -> bool:
    """True if a comment in a file is a line of a `VolumeHeader`'s history."""
    return text.startswith("conv3d ") and ": " in text


@dataclass(frozen=True)
class BoxAccess:
    """The cost of reading or writing boxes of a volume.

    unit : (D, H, W)        voxels that are decoded, encoded or stored together (a chunk); 1 if
                            every voxel can be reached alone
    buffer_bytes : int      memory that a reader or writer needs meanwhile, without the box itself
    """

    unit: tuple[int, int, int]
    buffer_bytes: int


class VolumeReader(abc.ABC):
    """An open volume: a header, and slabs on demand.

    header : VolumeHeader
    path : str                  for messages
    sequential : bool           planes can be read only forward in storage order (a compressed
                                stream)
    in_memory : bool            `read` gives views of an array that the caller has in memory, so
                                planes are read again, and not kept
    channels_together : bool    several channels are stored in one piece; reading them one by one
                                would read each piece several times
    notes : tuple of str        short sentences on how the file was understood; `finish` may add
                                more
    losses : tuple of str       those of the notes that tell of missing data: errors under --strict

    Call `finish` after the last read, and `close` at the end, or use it as a context manager.
    """

    header: VolumeHeader
    path: str
    sequential: bool = False
    in_memory: bool = False
    channels_together: bool = False
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, n: int, depth: slice, channels: slice) -> Array:
        """Stored voxels of volume `n`, (d, h, w, c), in the native byte order.

        depth, channels : slices with start and stop, within the volume
        Returns an array that may be a view of the file: do not write to it.
        Raises: FormatError if the file is truncated or corrupt.
        """

    def read_into(self, n: int, depth: slice, out: Array) -> None:
        """Fill `out` with planes of all channels, as `read` returns them.

        out : (d, H, W, C)      of the stored dtype, with any strides
        A reader that computes its planes computes them there.
        """
        out[...] = self.read(n, depth, slice(0, self.header.shape[4]))

    def empty(self, planes: int) -> Array:
        """An uninitialised array for `read_into`, in the memory order that suits the reader."""
        return np.empty((planes, *self.header.shape[2:]), self.header.dtype)

    def read_at_once(self, n: int, depth: slice, out: Array) -> None:
        """As `read_into`; a reader that computes its planes computes all of these in one call."""
        self.read_into(n, depth, out)

    def read_box(self, n: int, depth: slice, rows: slice, columns: slice, channels: slice) -> Array:
        """Stored voxels of some rows and columns, (d, h, w, c); else as `read`.

        If `box_access` is not None, the array is a copy, and only the units that overlap the box
        are read from the file.
        """
        return self.read(n, depth, channels)[:, rows, columns]

    def box_access(self) -> BoxAccess | None:
        """The cost of `read_box`; None if the format reads whole planes only."""
        return None

    def release(self, n: int, depth_stop: int) -> None:  # noqa: B027 - optional
        """Promise not to read planes of volume `n` before `depth_stop` again.

        A reader may free the memory that they take.
        """

    def buffer_bytes(self, planes: int, channels: int) -> int:
        """Bytes that the reader needs, without the blocks that it returns.

        planes, channels : of each block, in a forward pass over the volume
        """
        return 0

    def storage(self) -> dict[str, str]:
        """How the file stores its voxels, for people: names and values in words."""
        return {}

    def finish(self) -> None:  # noqa: B027 - optional
        """Check what can only be checked at the end of the file, such as a checksum.

        Called after the last read, before an output is committed.
        Raises: FormatError if the rest of the file shows that it is corrupt.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Close the file."""

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
    """A volume being written, slab by slab; `commit` makes the file appear, `abort` removes it.

    header : VolumeHeader
    path : str              for messages
    sequential : bool       takes slabs only in storage order and without gaps
    notes : tuple of str    short sentences on what the format could not store (no spacing in .npy,
                            no float64 in ImageJ TIFF): errors under --strict
    remarks : tuple of str  on what is stored in an unusual way, and whole

    Used as a context manager, it aborts unless `commit` was called.
    """

    header: VolumeHeader
    path: str
    sequential: bool = False
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @abc.abstractmethod
    def write(self, n: int, depth_start: int, channel_start: int, block: Array) -> None:
        """Write planes of volume `n`.

        depth_start, channel_start : of the first voxel
        block : (d, h, w, c) of whole planes, stored values in `header.dtype`
        Raises: WriteError if the file system refuses them (disk full, ...).
        """

    def write_box(
        self, n: int, starts: tuple[int, int, int], channel_start: int, block: Array
    ) -> None:
        """Write a box; else as `write`. Only for formats whose `box_access` is not None.

        starts : (d, h, w) of the first voxel
        block : (d, h, w, c)
        """
        raise NotImplementedError(f"{self.path} takes whole planes")

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        """An array (d, h, w, c) to fill and pass to `write`; it may be a view of the target."""
        _, _, height, width, _ = self.header.shape
        shape = (depth.stop - depth.start, height, width, channels.stop - channels.start)
        return np.empty(shape, self.header.dtype)

    @abc.abstractmethod
    def commit(self) -> None:
        """Complete the file and move it to its place. Raises: WriteError."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Remove the unfinished file. Does nothing after `commit` and when called again."""

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

    data : array            in the order of `axes`: (z, y, x) for a 3-D scan; scaled values, native
                            byte order
    axes : str              letters of its axes as in `Axes`, for example "zyx", "tzyx", "zyxc"
    grid : Grid             spacing, unit, affine
    format, metadata        of the file it was read from, for writing in the same format again
    transform, components   of a result of `conv3d`, see `VolumeHeader`
    facts : Facts           what the file tells besides

    Raises: SpecError if `axes` does not fit `data`, or `grid` is no Grid.
    >>> Volume(np.zeros((4, 5, 6)), "zyx").shape
    (1, 4, 5, 6, 1)
    """

    data: Array
    axes: str
    grid: Grid = field(default_factory=Grid)
    format: str = ""
    metadata: Any = None
    transform: VoxelTransform = field(default_factory=VoxelTransform)
    components: tuple[str, ...] = ()
    facts: Facts = field(default_factory=Facts)

    def __post_init__(self) -> None:
        Axes(self.axes, np.shape(self.data))
        if not isinstance(self.grid, Grid):
            raise SpecError(
                "the grid of a Volume must be a Grid, as in Grid((3.0, 1.0, 1.0), 'mm'), "
                f"received {self.grid!r}"
            )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, D, H, W, C)."""
        return Axes(self.axes, self.data.shape).canonical_shape

    @property
    def header(self) -> VolumeHeader:
        """The header of a file with these voxels.

        >>> Volume(np.zeros((2, 3, 4), np.int16), "zyx").header.nbytes
        48
        """
        axes = Axes(self.axes, self.data.shape)
        return VolumeHeader(
            axes,
            self.data.dtype,
            self.grid,
            format=self.format,
            metadata=self.metadata,
            transform=self.transform,
            components=self.components,
            facts=self.facts,
        )


class ArrayReader(VolumeReader):
    """A `VolumeReader` of an array in memory or in a memory map.

    array : in the storage order of `header.axes`
    path : name for messages
    Raises: ShapeError if the array does not have the shape of the header.
    """

    def __init__(self, array: Array, header: VolumeHeader, path: str = "array") -> None:
        if array.shape != header.axes.shape:
            raise ShapeError(
                f"{path}: an array must have the shape of its header, {header.axes.shape}, "
                f"received shape {array.shape}"
            )
        self.array, self.header, self.path = array, header, path

    def read(self, n: int, depth: slice, channels: slice) -> Array:
        block = self.header.axes.block(self.array, n, depth, channels)
        if block.dtype == self.header.dtype and block.dtype.isnative:
            return block
        return block.astype(self.header.dtype)


class ArrayWriter(VolumeWriter):
    """A `VolumeWriter` into an array in memory; `block` returns views of it where it can.

    array : in the storage order of `header.axes`
    path : name for messages
    """

    def __init__(self, array: Array, header: VolumeHeader, path: str = "array") -> None:
        self.array, self.header, self.path = array, header, path

    def block(self, n: int, depth: slice, channels: slice) -> Array:
        view = self.header.axes.block(self.array, n, depth, channels)
        return view if np.may_share_memory(view, self.array) else super().block(n, depth, channels)

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
    """Parts (n, channels) of a volume in the order of a forward pass over storage.

    channels_together : bool    True: every part has all channels. False: one part for each channel
                                if the channel axis is slower than depth, else all together
    >>> axes = Axes("ctzyx", (2, 2, 1, 1, 1))
    >>> [(n, c.start) for n, c in parts_in_storage_order(axes, channels_together=False)]
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
