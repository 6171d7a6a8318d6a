"""Masks: a volume's values as certainties, or as the numbers of regions, checked against the volume they are for.

Only ratios of a mask's values matter: certainties are its values divided by the largest. So the masks 0/255 and
0/1 are the same, and a coverage is a fraction of 1. The check and the use of a mask read it by the same function,
`_scaled`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError
from conv3d_cli.model.grid import UNITS, Grid
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader

MOST_LABELS = 1 << 16
LABEL_TOLERANCE = 0.01  # from a whole number: what integers with a slope make of labels
# Of an intercept: what the rounding of slope and intercept to float32 may leave of a 0.
ROUNDED_ZERO = 2.0**-22
MASK_TOLERANCE = 0.01  # voxels that a mask's corner may lie from the volume's
PLANES = 16  # read at a time to be checked
PIECE = 1 << 16  # voxels that are scaled at a time: they stay in the caches


@dataclass(frozen=True)
class Mask:
    """A mask that fits its volume; made by `check_mask`.

    reader : VolumeReader   random access, one channel; stays the caller's to close
    labels : bool           its numbers are regions
    largest : float         of its values, above 0
    binary : bool           it is stored as 0 and one other number alone, without a slope
    """

    reader: VolumeReader
    labels: bool = False
    largest: float = 1.0
    binary: bool = False

    def certainty(self, stored: Array, real: np.dtype[np.float32 | np.float64]) -> Array:
        """The certainty of stored voxels, a fraction of 1; of regions, their numbers. Above 0 wherever the mask is.

        stored : (planes, rows, columns)    as the reader gives them
        Returns the same shape, rows contiguous: uint8 for a binary mask, and for bytes that need no change; else `real`.
        """
        divisor = 1.0 if self.labels else self.largest
        as_stored = self._as_stored
        if as_stored and stored.dtype.kind in "bu" and stored.dtype.itemsize == 1:
            return np.ascontiguousarray(stored).view(np.uint8)
        if self.binary:
            return np.not_equal(stored, 0, order="C").view(np.uint8)
        if as_stored and (stored.dtype.kind != "f" or (stored.dtype == real and not self.labels)):
            return np.ascontiguousarray(stored, real)
        certainty = np.empty(stored.shape, real)
        rows = max(1, PIECE // stored.shape[2])
        for plane, start in itertools.product(range(len(stored)), range(0, stored.shape[1], rows)):
            here = plane, slice(start, start + rows)
            certainty[here] = self._fractions(stored[here], divisor, real)
        return certainty

    @property
    def _as_stored(self) -> bool:
        """Whether stored values are what voxels weigh."""
        return (self.labels or self.largest == 1) and self.reader.header.scale == (1.0, 0.0)

    def weight_itemsize(self, real: np.dtype[np.float32 | np.float64]) -> int:
        """Bytes of a voxel in what `weights` returns."""
        stored = self.reader.header.dtype
        one_byte = stored.kind in "bu" and stored.itemsize == 1
        return 1 if self.binary or (self._as_stored and one_byte) else real.itemsize

    def inside(self, stored: Array) -> NDArray[np.bool_]:
        """Where stored voxels are above 0."""
        inside: NDArray[np.bool_] = _scaled(stored, self.reader.header.scale, self.labels) > 0
        return inside

    def _fractions(
        self, stored: Array, divisor: float, real: np.dtype[np.float32 | np.float64]
    ) -> Array:
        values = _scaled(stored, self.reader.header.scale, self.labels)
        fractions = (values / divisor).astype(real)
        # a fraction too small for the dtype is inside the mask none the less
        return np.maximum(fractions, np.finfo(real).tiny, out=fractions, where=values > 0)


def _scaled(stored: Array, scale: tuple[float, float], labels: bool) -> NDArray[np.float64]:
    """The values of stored voxels, any shape. Labels are whole where they are near it; what rounding leaves of a 0 is 0."""
    slope, intercept = scale
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        values = stored.astype(np.float64)
        if scale != (1.0, 0.0):
            values *= slope
            values += intercept
    if labels:
        whole = np.rint(values)
        return np.where(np.abs(values - whole) <= LABEL_TOLERANCE, whole, values)
    if intercept:
        values[np.abs(values) <= ROUNDED_ZERO * abs(intercept)] = 0
    return values


def check_mask(reader: VolumeReader, header: VolumeHeader, labels: bool = False) -> Mask:
    """Check that a mask fits a volume: the same grid, one channel, numbers from 0 on, and one of them above 0.

    reader : VolumeReader   random access; all of it is read
    labels : bool           its numbers are regions: whole, or within `LABEL_TOLERANCE` of it, and below `MOST_LABELS`
    Raises: ShapeError.
    """
    size, wanted = reader.header.shape, header.shape
    if size[1:4] != wanted[1:4] or size[0] * size[4] != 1:
        differing = [
            f"{name} {a} against {b}" for name, a, b in zip(AXIS_NAMES, size[1:4], wanted[1:4], strict=True)
            if a != b
        ] + ([f"{size[0]} time points and {size[4]} channels against 1"] if size[0] * size[4] != 1 else [])  # fmt: skip
        raise ShapeError(
            f"the mask {reader.path} has another grid than the volume: {', '.join(differing)}; resample it"
        )
    distances = _corner_distances(header.grid, reader.header.grid, wanted[1:4])
    worst = int(distances.argmax())
    if distances[worst] > MASK_TOLERANCE:
        raise ShapeError(
            f"the mask {reader.path} lies elsewhere in the world than the volume: up to {distances[worst]:.3g} voxels along "
            f"{AXIS_NAMES[worst]}; resample it to the volume's grid"
        )
    scale = reader.header.scale
    low, high = math.inf, -math.inf
    binary = scale == (1.0, 0.0) and not labels
    for start in range(0, size[1], PLANES):
        stored = reader.read(0, slice(start, min(start + PLANES, size[1])), slice(0, 1))
        ends = _scaled(np.array([stored.min(), stored.max()]), scale, labels)
        if not np.isfinite(ends).all():
            raise ShapeError(
                f"the mask {reader.path} holds NaN or infinity; weights are numbers from 0 on"
            )
        before, low, high = high, min(low, float(ends.min())), max(high, float(ends.max()))
        if binary:  # blocks of 0 leave the other number open
            most = stored.max()
            binary = (
                before in (-math.inf, 0.0, high)
                and float(most) in (0.0, high)
                and _holds_two(stored, most)
            )
        if labels:
            _check_labels(reader, stored, high)
        reader.release(0, start)
    if low < 0:
        raise ShapeError(
            f"the mask {reader.path} holds numbers below 0 ({low:g}); weights are numbers from 0 on"
        )
    if high <= 0:
        raise ShapeError(f"the mask {reader.path} is empty: it holds 0 alone")
    return Mask(reader, labels, high, binary)


def _holds_two(stored: Array, most: Array) -> bool:
    """Whether voxels are all 0 or `most`."""
    if stored.dtype.kind == "b" or (stored.dtype.kind == "u" and most <= 1):
        return True
    return all(bool(((plane == 0) | (plane == most)).all()) for plane in stored)


def _check_labels(reader: VolumeReader, stored: Array, high: float) -> None:
    """Check that voxels are numbers of regions, the highest of which is `high`. Raises: ShapeError."""
    scale = reader.header.scale
    broken = None
    if stored.dtype.kind == "f" or scale != (1.0, 0.0):
        for plane in stored:
            values = _scaled(plane, scale, labels=True)
            if (values != np.rint(values)).any():
                broken = float(values[values != np.rint(values)][0])
                break
    if high < MOST_LABELS and broken is None:
        return
    slope = (
        ""
        if scale == (1.0, 0.0)
        else f" (stored with the slope {scale[0]:g} and the intercept {scale[1]:g})"
    )
    cure = (
        "number the regions from 1 on"
        if broken is None
        else "store them as integers without a slope"
    )
    raise ShapeError(
        f"the labels in {reader.path} must be whole numbers from 0 to {MOST_LABELS - 1}, received "
        f"{high if broken is None else broken:.9g}{slope}; {cure}"
    )


def _corner_distances(grid: Grid, other: Grid, size: tuple[int, ...]) -> NDArray[np.float64]:
    """The largest distances between the corners of two grids along D, H, W, in voxels; 0 if either is unknown."""
    if grid.affine is None or other.affine is None or abs(np.linalg.det(grid.affine)) < 1e-30:
        return np.zeros(3)
    factor = (
        1.0 if grid.unit is None or other.unit is None else UNITS[other.unit] / UNITS[grid.unit]
    )
    corners = np.array([(*c[::-1], 1.0) for c in itertools.product(*((0, n - 1) for n in size))]).T
    theirs = np.diag([factor, factor, factor, 1.0]) @ other.affine
    moved = np.linalg.solve(grid.affine, (theirs - grid.affine) @ corners)[:3]
    return np.asarray(np.abs(moved).max(axis=1)[::-1])
