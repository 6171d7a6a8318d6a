"""Three orthogonal slices of a volume, read without the rest where the format allows it.

A volume whose voxels all have their place, and a Zarr store, are asked for the three planes alone. A stream is read forward
once, one plane at a time. Of an axis longer than `MOST` voxels every n-th is kept, so memory does not depend on the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.formats import open_volume
from conv3d_cli.model.grid import UNITS, unit_name
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader

Values = NDArray[np.float64]

MOST = 1024  # samples of an axis
PIECE_BYTES = 32 << 20  # of a file, read at once


@dataclass(frozen=True, eq=False)
class Slices:
    """Three planes through one voxel.

    planes : 3 arrays       (H, W), (D, W), (D, H) float64 values, across depth, height and width
    at : (d, h, w)          the voxel they meet in
    steps : (D, H, W)       of each axis every so many voxels were kept; 1: all
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
        """All their voxels, (count,)."""
        return np.concatenate([plane.ravel() for plane in self.planes])


@dataclass(frozen=True)
class Place:
    """A voxel (d, h, w), or with a unit a point (x, y, z) of the world.

    >>> Place.parse("16,36,32"), Place.parse("-12,0.5,8mm")
    (Place(numbers=(16.0, 36.0, 32.0), unit=None), Place(numbers=(-12.0, 0.5, 8.0), unit='mm'))
    """

    numbers: tuple[float, float, float]
    unit: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises: SpecError for anything else."""
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
                f"a place is a voxel D,H,W in whole numbers, as in 16,36,32, or a point of the world X,Y,Z with a unit, "
                f"as in -12,0,8mm, received '{text}'"
            ) from None
        return cls((x, y, z), unit)

    def voxel(self, header: VolumeHeader, path: str) -> tuple[int, int, int]:
        """The voxel of a volume that lies there. Raises: ShapeError if none does."""
        place = self.numbers
        if self.unit is not None:
            grid = header.grid
            if grid.affine is None or grid.unit is None:
                raise ShapeError(
                    f"{path} has no place in the world; give the voxel, as in --at 16,36,32"
                )
            factor = UNITS[self.unit] / UNITS[grid.unit]
            i, j, k = np.linalg.solve(
                grid.affine[:3, :3], np.multiply(place, factor) - grid.affine[:3, 3]
            )
            place = (float(k), float(j), float(i))
        # halves go up, as everywhere in the package
        d, h, w = (math.floor(number + 0.5) if abs(number) < 1e15 else -1 for number in place)
        sizes = header.shape[1:4]
        if not all(0 <= index < size for index, size in zip((d, h, w), sizes, strict=True)):
            where = (
                f"voxel {d},{h},{w}"
                if self.unit is None
                else f"{_triple(self.numbers)} {self.unit}, voxel {d},{h},{w}"
            )
            raise ShapeError(
                f"{where} lies outside {path}, whose depth,height,width is {_triple(sizes)}"
            )
        return d, h, w


def _triple(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def read_slices(
    path: str,
    at: Place | None = None,
    n: int = 0,
    channel: int = 0,
    axes: str | None = None,
    most: int = MOST,
) -> Slices:
    """Read three slices of a file.

    at : Place or None      None: the middle of each axis, k // 2
    n, channel : int        which volume of a series, which channel; from 0
    axes : str or None      letters in storage order that replace what the file says
    most : int              samples kept of an axis
    Raises: FormatError; ShapeError where there is no such voxel, time point or channel.
    """
    with open_volume(path, axes=axes) as reader:
        header = reader.header
        count, *sizes, channels = header.shape
        for option, what, index, size in (
            ("-n", "time points", n, count),
            ("-c", "channels", channel, channels),
        ):
            if not 0 <= index < size:
                raise ShapeError(
                    f"{path} has {size} {what}, counted from 0, received {option} {index}"
                )
        if 0 in sizes:
            raise ShapeError(f"{path} has no voxels: its depth,height,width is {_triple(sizes)}")
        place = (
            (sizes[0] // 2, sizes[1] // 2, sizes[2] // 2) if at is None else at.voxel(header, path)
        )
        steps = tuple(-(-size // most) for size in sizes)
        where = _Where(n, slice(channel, channel + 1), place, (steps[0], steps[1], steps[2]))
        planes = (
            _by_planes(reader, where) if reader.box_access() is None else _by_boxes(reader, where)
        )
        if not reader.sequential or (n, channel) == (count - 1, channels - 1):
            reader.finish()  # of a stream: what is left behind these planes holds its checksum
        notes = reader.notes
    slope, intercept = header.scale
    first, second, third = (plane.astype(np.float64) * slope + intercept for plane in planes)
    return Slices(path, header, n, channel, place, (first, second, third), where.steps, notes)


@dataclass(frozen=True)
class _Where:
    n: int
    channels: slice
    at: tuple[int, int, int]
    steps: tuple[int, int, int]

    def one(self, axis: int) -> slice:
        return slice(self.at[axis], self.at[axis] + 1)


def _by_boxes(reader: VolumeReader, where: _Where) -> list[Array]:
    """The planes alone, in pieces of `PIECE_BYTES`."""
    _, depth, height, width, _ = reader.header.shape
    steps = where.steps

    def box(d: slice, h: slice, w: slice) -> Array:
        return reader.read_box(where.n, d, h, w, where.channels)[..., 0]

    across_depth = [
        box(where.one(0), part, slice(0, width))[0, :: steps[1], :: steps[2]].copy()
        for part in _pieces(reader, height, width, steps[1])
    ]
    across_height, across_width = [], []
    # a column of voxels in a file that is mapped takes a page for each: as much as the whole planes, in the end
    access = reader.box_access()
    beside = (
        height * width if access is not None and access.unit == (1, 1, 1) else max(height, width)
    )
    for part in _pieces(reader, depth, beside, steps[0]):
        across_height.append(
            box(part, where.one(1), slice(0, width))[:: steps[0], 0, :: steps[2]].copy()
        )
        across_width.append(
            box(part, slice(0, height), where.one(2))[:: steps[0], :: steps[1], 0].copy()
        )
        reader.release(where.n, part.stop)
    return [np.concatenate(parts) for parts in (across_depth, across_height, across_width)]


def _pieces(reader: VolumeReader, length: int, beside: int, step: int) -> list[slice]:
    """An axis in pieces whose planes of `beside` voxels fit into `PIECE_BYTES`; each begins at a sample."""
    longest = max(1, PIECE_BYTES // max(1, beside * reader.header.dtype.itemsize))
    longest = max(step, longest - longest % step)
    return [slice(start, min(start + longest, length)) for start in range(0, length, longest)]


def _by_planes(reader: VolumeReader, where: _Where) -> list[Array]:
    """Forward through the volume, one plane at a time."""
    _, depth, height, width, _ = reader.header.shape
    d, h, w = where.at
    steps = where.steps
    sizes = [-(-size // step) for size, step in zip((depth, height, width), steps, strict=True)]
    dtype = reader.header.dtype
    across_depth = np.empty((sizes[1], sizes[2]), dtype)
    across_height, across_width = (
        np.empty((sizes[0], sizes[2]), dtype),
        np.empty((sizes[0], sizes[1]), dtype),
    )
    for position in range(depth):
        if position % steps[0] and position != d:
            continue
        plane = reader.read(where.n, slice(position, position + 1), where.channels)[0, :, :, 0]
        if position % steps[0] == 0:
            across_height[position // steps[0]] = plane[h, :: steps[2]]
            across_width[position // steps[0]] = plane[:: steps[1], w]
        if position == d:
            across_depth[...] = plane[:: steps[1], :: steps[2]]
        reader.release(where.n, position + 1)
    return [across_depth, across_height, across_width]
