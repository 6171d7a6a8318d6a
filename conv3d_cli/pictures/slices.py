"""Three orthogonal slices of a volume, read without the rest if the format allows it.

If the reader can read boxes (uncompressed files, Zarr stores), only the three planes are read. A
compressed stream is read forward once, plane by plane. An axis longer than `MAX_SAMPLES` voxels is
subsampled, so the memory does not depend on the size of the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, setting
from conv3d_cli.formats import open_volume
from conv3d_cli.model.grid import Spacing
from conv3d_cli.model.units import UNITS, unit_name
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader
from conv3d_cli.system.room import require_room
from conv3d_cli.system.words import count_of

Values = NDArray[np.float64]

MAX_SAMPLES = 1024  # along an axis
PIECE_BYTES = 32 << 20  # read from a file at once
PIECES = 3  # at most: as read, copied, and as values


@dataclass(frozen=True, eq=False)
class Slices:
    """Three planes through one voxel.

    path, header            of the file
    n, channel : int        volume of a series, and channel; from 0
    at : (d, h, w)          the voxel in which the planes meet
    planes : 3 arrays       (H, W), (D, W), (D, H) float64 values, across depth, height and width
    steps : (D, H, W)       every how many voxels there is a sample; 1: all voxels
    notes : tuple of str    of the reader
    """

    path: str
    header: VolumeHeader
    n: int
    channel: int
    at: tuple[int, int, int]
    planes: tuple[Values, Values, Values]
    steps: tuple[int, int, int] = (1, 1, 1)
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> Values:
        """The values of all three planes, (count,)."""
        return np.concatenate([plane.ravel() for plane in self.planes])


@dataclass(frozen=True)
class Position:
    """A voxel (d, h, w), or a point (x, y, z) of the world if it has a unit.

    numbers : 3 floats
    unit : str or None      a key of `UNITS`; None for a voxel
    """

    numbers: tuple[float, float, float]
    unit: str | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parse D,H,W in voxels, or X,Y,Z with a unit.

        Raises: SpecError for any other text.
        >>> Position.parse("16,36,32")
        Position(numbers=(16.0, 36.0, 32.0), unit=None)
        >>> Position.parse("-12,0.5,8mm")
        Position(numbers=(-12.0, 0.5, 8.0), unit='mm')
        """
        bare = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzµμ")
        word = text.strip()[len(bare) :]
        unit = unit_name(word)
        try:
            x, y, z = (float(part) for part in bare.split(","))
            if (word and unit is None) or not all(map(math.isfinite, (x, y, z))):
                raise ValueError
            if unit is None and any(number != int(number) for number in (x, y, z)):
                raise ValueError
        except ValueError:
            raise SpecError(
                "a place is a voxel D,H,W in whole numbers, as in 16,36,32, "
                "or a point X,Y,Z of the world with a unit, as in -12,0,8mm, "
                f"received '{text}'"
            ) from None
        return cls((x, y, z), unit)

    def voxel(self, header: VolumeHeader, path: str) -> tuple[int, int, int]:
        """The voxel (d, h, w) of a volume at this position.

        path : of the volume, for messages
        Raises: ShapeError if the position lies outside the volume, or needs an affine and the
            volume has none.
        """
        place = self.numbers
        if self.unit is not None:
            grid = header.grid
            if grid.affine is None or grid.unit is None:
                told = f", or tell the spacing, as in {setting('spacing', '2,1,1mm')}"
                raise ShapeError(
                    f"{path} {grid.lacks or 'has no affine'}, so it has no world coordinates; give "
                    f"the voxel, as in --at 16,36,32{told if grid.lacks else ''}"
                )
            factor = UNITS[self.unit] / UNITS[grid.unit]
            i, j, k = np.linalg.solve(
                grid.affine[:3, :3], np.multiply(place, factor) - grid.affine[:3, 3]
            )
            place = (float(k), float(j), float(i))
        # halves are rounded up, as everywhere in the package
        d, h, w = (math.floor(number + 0.5) if abs(number) < 1e15 else -1 for number in place)
        sizes = header.shape[1:4]
        if not all(0 <= index < size for index, size in zip((d, h, w), sizes, strict=True)):
            point = "" if self.unit is None else f"{_joined(self.numbers)} {self.unit}, "
            raise ShapeError(
                f"{point}voxel {d},{h},{w} lies outside {path}, "
                f"whose depth,height,width is {_joined(sizes)}"
            )
        return d, h, w


def _joined(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def read_slices(
    path: str,
    at: Position | None = None,
    n: int = 0,
    channel: int = 0,
    axes: str | None = None,
    max_samples: int = MAX_SAMPLES,
    spacing: Spacing | None = None,
) -> Slices:
    """Read three slices of a file.

    at : Position or None   where the slices meet; None: the middle of each axis, size // 2
    n, channel : int        volume of a series, and channel; from 0
    axes : str or None      letters in storage order that replace those of the file
    max_samples : int       most samples along an axis
    spacing : Spacing or None   for what the file does not tell (see `complete_grid`)
    Raises: FormatError; ShapeError if the volume has no such voxel, time point or channel.
    """
    with open_volume(path, axes=axes, spacing=spacing) as reader:
        header = reader.header
        count, *sizes, channels = header.shape
        for option, what, index, size in (
            ("-n", "time point", n, count),
            ("-c", "channel", channel, channels),
        ):
            if not 0 <= index < size:
                raise ShapeError(
                    f"{path} has {count_of(size, what)}, counted from 0, received {option} {index}"
                )
        if 0 in sizes:
            raise ShapeError(f"{path} has no voxels: its depth,height,width is {_joined(sizes)}")
        middle = (sizes[0] // 2, sizes[1] // 2, sizes[2] // 2)
        place = middle if at is None else at.voxel(header, path)
        steps = tuple(-(-size // max_samples) for size in sizes)
        cut = _Cut(n, slice(channel, channel + 1), place, (steps[0], steps[1], steps[2]))
        access = reader.box_access()
        plane = sizes[1] * sizes[2] * header.dtype.itemsize
        held = reader.buffer_bytes(1, 1) + plane if access is None else access.buffer_bytes
        require_room(held + PIECES * PIECE_BYTES, "a plane of it", path)
        planes = _read_planes(reader, cut) if access is None else _boxes(reader, cut)
        if not reader.sequential or (n, channel) == (count - 1, channels - 1):
            reader.finish()  # a stream's checksum follows the last volume
        notes = reader.notes
    slope, intercept = header.scale
    first, second, third = (plane.astype(np.float64) * slope + intercept for plane in planes)
    return Slices(path, header, n, channel, place, (first, second, third), cut.steps, notes)


@dataclass(frozen=True)
class _Cut:
    """The three planes to read; fields as of `Slices`."""

    n: int
    channels: slice
    at: tuple[int, int, int]
    steps: tuple[int, int, int]

    def plane(self, axis: int) -> slice:
        """The slice that selects the plane across an axis."""
        return slice(self.at[axis], self.at[axis] + 1)


def _boxes(reader: VolumeReader, cut: _Cut) -> list[Array]:
    """The three planes, read as boxes in pieces of `PIECE_BYTES`."""
    _, depth, height, width, _ = reader.header.shape
    steps = cut.steps

    def box(d: slice, h: slice, w: slice) -> Array:
        return reader.read_box(cut.n, d, h, w, cut.channels)[..., 0]

    across_depth = [
        box(cut.plane(0), part, slice(0, width))[0, :: steps[1], :: steps[2]].copy()
        for part in _pieces(reader, height, width, steps[1])
    ]
    across_height, across_width = [], []
    # A column of voxels in a memory map loads a page for each voxel: in the end the whole planes.
    access = reader.box_access()
    mapped = access is not None and access.unit == (1, 1, 1)
    loaded = height * width if mapped else max(height, width)
    for part in _pieces(reader, depth, loaded, steps[0]):
        across_height.append(
            box(part, cut.plane(1), slice(0, width))[:: steps[0], 0, :: steps[2]].copy()
        )
        across_width.append(
            box(part, slice(0, height), cut.plane(2))[:: steps[0], :: steps[1], 0].copy()
        )
        reader.release(cut.n, part.stop)
    return [np.concatenate(parts) for parts in (across_depth, across_height, across_width)]


def _pieces(reader: VolumeReader, length: int, voxels: int, step: int) -> list[slice]:
    """Divide an axis into pieces of at most `PIECE_BYTES`, each of which begins at a sample.

    voxels : loaded for each position along the axis
    step : from sample to sample
    """
    longest = max(1, PIECE_BYTES // max(1, voxels * reader.header.dtype.itemsize))
    longest = max(step, longest - longest % step)
    return [slice(start, min(start + longest, length)) for start in range(0, length, longest)]


def _read_planes(reader: VolumeReader, cut: _Cut) -> list[Array]:
    """The three planes, taken from one forward pass over the depth planes."""
    _, depth, height, width, _ = reader.header.shape
    d, h, w = cut.at
    steps = cut.steps
    sizes = [-(-size // step) for size, step in zip((depth, height, width), steps, strict=True)]
    dtype = reader.header.dtype
    across_depth = np.empty((sizes[1], sizes[2]), dtype)
    across_height = np.empty((sizes[0], sizes[2]), dtype)
    across_width = np.empty((sizes[0], sizes[1]), dtype)
    for position in range(depth):
        if position % steps[0] and position != d:
            continue
        plane = reader.read(cut.n, slice(position, position + 1), cut.channels)[0, :, :, 0]
        if position % steps[0] == 0:
            across_height[position // steps[0]] = plane[h, :: steps[2]]
            across_width[position // steps[0]] = plane[:: steps[1], w]
        if position == d:
            across_depth[...] = plane[:: steps[1], :: steps[2]]
        reader.release(cut.n, position + 1)
    return [across_depth, across_height, across_width]
