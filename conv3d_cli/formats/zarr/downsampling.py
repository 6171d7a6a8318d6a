"""How a level of resolution is made of the next finer one: one function for each method.

A voxel of a level stands for a cell of 2 voxels along each halved axis. The last voxel of an odd
axis is in no cell, so that all voxels of a level cover the same number of voxels of the finest
level. Each level is made of the level before it, as it is stored. So a mean is one of rounded
means, and a mode one of modes, as with other programs; a voxel of `nearest` is one of the finest
level.

All methods are elementwise NumPy in a fixed order: the result has the same bits on every machine,
however an array is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from conv3d_cli.model.volume import Array

# Standard deviation of the Gaussian in voxels of the finer level, sqrt(3 / (8 ln 2)): what has a
# FWHM of one voxel there then has that of one voxel of the next level, as 1 + 3 = 2^2.
SIGMA = 0.7355
# The Gaussian at 0.5, 1.5 and 2.5 voxels from the middle of a cell, on each of its sides, as far as
# 4 standard deviations reach. These are numbers, since libraries of mathematics differ.
WEIGHTS = (0.43051623724495514, 0.06780205870330679, 0.0016817040517381053)


@dataclass(frozen=True)
class Downsampling:
    """A method that makes a level.

    reduce : callable       (block, axes) -> the level's voxels, in the dtype of `block`. Along
                            `axes`, the block has the voxels of whole cells, and `halo` more on each
                            side
    kind : str              "type" of an NGFF image with such levels
    description : str       of the method, for the image's metadata
    halo : int              voxels of the finer level that are needed on each side of a cell
    is_centred : bool       True if a voxel lies in the middle of its cell, False if it is the
                            cell's first voxel
    """

    reduce: Callable[[Array, Sequence[int]], Array]
    kind: str
    description: str
    halo: int = 0
    is_centred: bool = True


def mean(block: Array, axes: Sequence[int]) -> Array:
    """Means of the voxels of each cell. Means of integers are exact, and rounded half to even.

    >>> mean(np.array([[1, 3], [5, 8]], np.uint8), (0, 1)).tolist()
    [[4]]
    """
    if block.dtype.kind == "b":
        return mean(block.view(np.uint8), axes).view(np.bool_)
    count = len(axes)
    if block.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):  # inf + -inf
            return (_sums(block, axes, np.dtype(np.float64)) / 2.0**count).astype(block.dtype)
    if block.dtype.itemsize < 8:
        sums = _sums(block, axes, _wider(block.dtype))
        return _rounded(sums >> count, sums, count).astype(block.dtype)
    # The sum of 64-bit integers may not fit: those of the quotients and of the remainders do.
    remainders = _sums(block & (2**count - 1), axes, block.dtype)
    quotients = _sums(block >> count, axes, block.dtype) + (remainders >> count)
    return _rounded(quotients, remainders, count)


def gaussian(block: Array, axes: Sequence[int]) -> Array:
    """A Gaussian around the middle of each cell, in float64; integers are rounded half to even.

    >>> gaussian(np.array([0, 0, 8, 0, 0, 0], np.uint8), [0]).tolist()  # 2 on each side of a cell
    [3]
    """
    values: Array = block.view(np.uint8) if block.dtype.kind == "b" else block
    for axis in axes:
        cells = values.shape[axis] // 2 - len(WEIGHTS) + 1
        total: Array | None = None
        for distance, weight in enumerate(WEIGHTS):
            first = len(WEIGHTS) - 1 - distance  # of the pair around the first cell's middle
            pair = [
                values[_along(axis, slice(start, start + 2 * cells - 1, 2), values.ndim)]
                for start in (first, first + 2 * distance + 1)
            ]
            with np.errstate(invalid="ignore", over="ignore"):
                term = np.add(*pair, dtype=np.float64)
                term *= weight
                total = term if total is None else np.add(total, term, out=total)
        assert total is not None
        values = total
    return _stored(values, block.dtype)


def mode(block: Array, axes: Sequence[int]) -> Array:
    """The most frequent value of each cell; of equally frequent ones the smallest.

    NaN counts as a value, and as the largest.

    >>> mode(np.array([[7, 2, 5, 5], [7, 2, 0, 9]]), (0, 1)).tolist()
    [[2, 5]]
    """
    voxels = _voxels_of_cells(block, axes)
    found = voxels[0].copy()
    mixed = np.zeros(found.shape, bool)
    for other in voxels[1:]:
        mixed |= other != found
    if mixed.any():  # at borders between labels, which are few
        found[mixed] = _most_frequent(np.stack([voxel[mixed] for voxel in voxels], axis=-1))
    return found


def nearest(block: Array, axes: Sequence[int]) -> Array:
    """The first voxel of each cell.

    >>> nearest(np.arange(6), [0]).tolist()
    [0, 2, 4]
    """
    return block[tuple(slice(None, None, 2 if i in axes else 1) for i in range(block.ndim))]


DOWNSAMPLINGS: dict[str, Downsampling] = {
    "mean": Downsampling(
        mean,
        "local mean",
        "a voxel is the mean of 2 voxels of the level before, along each axis that is half as long",
    ),
    "gaussian": Downsampling(
        gaussian,
        "gaussian",
        f"a voxel is a Gaussian (sigma {SIGMA} voxels of the level before) around the middle "
        "of 2 of them, along each axis that is half as long",
        halo=len(WEIGHTS) - 1,
    ),
    "mode": Downsampling(
        mode,
        "mode",
        "a voxel is the most frequent value, or the smallest of these, of 2 voxels of the level "
        "before along each axis that is half as long",
    ),
    "nearest": Downsampling(
        nearest,
        "nearest",
        "a voxel is every second voxel of the level before, from the first on, along each axis "
        "that is half as long",
        is_centred=False,
    ),
}
"""All methods by name."""


def default_method(is_labels: bool) -> str:
    """The method of a volume for which none is given: no mean of two labels is a label."""
    return "mode" if is_labels else "mean"


# --------------------------------------------------------------------------------------------------
# Arithmetic


def _along(axis: int, part: slice, dimensions: int) -> tuple[slice, ...]:
    """The index of a part of one axis and of all of the others."""
    return tuple(part if i == axis else slice(None) for i in range(dimensions))


def _sums(block: Array, axes: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """The sums of the voxels of each cell, in a dtype."""
    sums: Array = block
    for axis in axes:
        even, odd = (sums[_along(axis, slice(s, None, 2), block.ndim)] for s in (0, 1))
        sums = np.add(even, odd, dtype=dtype)
    return sums if axes else sums.astype(dtype)


def _wider(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The integers of twice the size, of the same sign.

    >>> _wider(np.dtype(np.uint8)), _wider(np.dtype(np.int32))
    (dtype('uint16'), dtype('int64'))
    """
    return np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")


def _rounded(quotients: Array, sums: Array, count: int) -> Array:
    """Sums of 2^count integers divided by their number, rounded half to even.

    quotients : array       rounded down
    sums : array            or what remains of them, whose last bits are the same
    >>> sums = np.array([-3, -1, 1, 2, 3])
    >>> _rounded(sums >> 1, sums, 1).tolist()
    [-2, 0, 0, 1, 2]
    """
    up = (sums & (2**count - 1)) + (quotients & 1) > 2**count // 2
    rounded: Array = quotients + up
    return rounded


def _stored(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in float64 in a dtype; integers are rounded half to even and saturated."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        whole = np.rint(values)
        # the largest integers of 64 bits are no float64, which rounds them up
        below = np.nextafter(float(limits.max), 0) if dtype.itemsize == 8 else limits.max
        found = whole.clip(limits.min, below).astype(dtype)
        return np.where(whole > below, dtype.type(limits.max), found)
    if dtype.kind == "b":
        return np.rint(values).astype(dtype)
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _voxels_of_cells(block: Array, axes: Sequence[int]) -> list[Array]:
    """The first voxel of each cell, the second one, and so on."""
    starts = product(*((0, 1) if i in axes else (None,) for i in range(block.ndim)))
    return [
        block[tuple(slice(start, None, None if start is None else 2) for start in where)]
        for where in starts
    ]


def _most_frequent(values: Array) -> Array:
    """The most frequent value of each row, the smallest of equally frequent ones."""
    ordered = np.sort(values, axis=-1)
    before, after = ordered[:, :-1], ordered[:, 1:]
    same = before == after
    if values.dtype.kind == "f":
        same |= (before != before) & (after != after)
    counts = np.zeros(ordered.shape, np.int8)  # of equal values before each one
    for place in range(same.shape[1]):
        counts[:, place + 1] = (counts[:, place] + 1) * same[:, place]
    found: Array = ordered[np.arange(len(ordered)), counts.argmax(axis=-1)]
    return found
