"""Masks: certainties or region labels, read from a volume and checked against the one they mask.

Only the ratios of a mask's values matter: a certainty is a value divided by the largest one. So the
masks 0/255 and 0/1 are equivalent, and a coverage is a fraction of 1. `check_mask` and `Mask` scale
stored values by the same function, `_scaled`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.box import Box
from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.model.units import UNITS
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader

MOST_LABELS = 1 << 16  # regions, with 0, the outside
LARGEST_LABEL = 2.0**53  # float64 holds every whole number up to here
# Largest distances of a label from a whole number, since a slope turns integers into fractions: a
# program that stores labels with a slope rounds them to multiples of it.
LABEL_TOLERANCE, LARGEST_TOLERANCE = 0.01, 0.05
# Values up to this fraction of the intercept are 0: slope and intercept are rounded to float32.
ROUNDED_ZERO = 2.0**-22
MASK_TOLERANCE = 0.01  # voxels between a corner of the mask and that of the volume
BYTES_EACH = 24  # of memory for a voxel while it is checked
PIECE = 1 << 16  # voxels scaled at a time: they fit into the caches


@dataclass(frozen=True)
class Mask:
    """A mask that fits its volume; made by `check_mask`.

    reader : VolumeReader   random access, one channel; the caller closes it
    labels : bool           values are numbers of regions, not certainties
    largest : float         the largest value, above 0
    binary : bool           stored values are 0 and one other number, without a slope
    numbers : array or None the labels in order, 0 first, if some are too large to count regions by;
                            a region's number is then its place here
    """

    reader: VolumeReader
    labels: bool = False
    largest: float = 1.0
    binary: bool = False
    numbers: NDArray[np.float64] | None = None

    def certainty(self, stored: Array, real: np.dtype[np.float32 | np.float64]) -> Array:
        """Certainties, or numbers of regions, of stored voxels.

        stored : (planes, rows, columns)    as the reader returns them
        real : dtype                        of the arithmetic, float32 or float64
        Returns an array of the same shape with contiguous rows: certainties are fractions of 1, and
        above 0 wherever the mask is. Its dtype is uint8 for a binary mask and for bytes that are
        used as they are stored, else `real`.
        """
        divisor = 1.0 if self.labels else self.largest
        is_unscaled = self._is_unscaled
        if is_unscaled and stored.dtype.kind in "bu" and stored.dtype.itemsize == 1:
            return np.ascontiguousarray(stored).view(np.uint8)
        if self.binary:
            return np.not_equal(stored, 0, order="C").view(np.uint8)
        if is_unscaled and (stored.dtype.kind != "f" or (stored.dtype == real and not self.labels)):
            return np.ascontiguousarray(stored, real)
        certainty = np.empty(stored.shape, real)
        rows = max(1, PIECE // stored.shape[2])
        for plane, start in itertools.product(range(len(stored)), range(0, stored.shape[1], rows)):
            piece = plane, slice(start, start + rows)
            certainty[piece] = self._fractions(stored[piece], divisor, real)
        return certainty

    @property
    def _is_unscaled(self) -> bool:
        """Whether stored values are certainties (or numbers of regions) without any change."""
        unchanged = (self.labels and self.numbers is None) or (
            not self.labels and self.largest == 1
        )
        return unchanged and self.reader.header.scale == (1.0, 0.0)

    def certainty_dtype(self, real: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype of the array that `certainty` returns."""
        stored = self.reader.header.dtype
        one_byte = stored.kind in "bu" and stored.itemsize == 1
        return np.dtype(np.uint8) if self.binary or (self._is_unscaled and one_byte) else real

    def certainty_in(self, box: Box, real: np.dtype[np.float32 | np.float64]) -> Array:
        """The certainties in a box (d, h, w, 1), as `certainty` gives them."""
        stored = self.reader.read_box(0, *box.slices, slice(0, 1))
        return self.certainty(stored[..., 0], real)[..., None]

    def inside(self, stored: Array) -> NDArray[np.bool_]:
        """Whether each stored voxel is above 0; an array of the same shape."""
        inside: NDArray[np.bool_] = _scaled(stored, self.reader.header.scale, self.labels) > 0
        return inside

    def _fractions(
        self, stored: Array, divisor: float, real: np.dtype[np.float32 | np.float64]
    ) -> Array:
        values = _scaled(stored, self.reader.header.scale, self.labels)
        if self.numbers is not None:
            return np.searchsorted(self.numbers, values).astype(real)
        fractions = (values / divisor).astype(real)
        # a fraction that rounds to 0 is still inside the mask
        return np.maximum(fractions, np.finfo(real).tiny, out=fractions, where=values > 0)


def label_tolerance(slope: float) -> float:
    """How far labels that are stored with a slope may be from whole numbers.

    >>> label_tolerance(1.0), label_tolerance(0.001), label_tolerance(0.03125)
    (0.01, 0.01, 0.015625625)
    """
    if abs(slope) == 1:
        return LABEL_TOLERANCE
    # a little more than half a step: slope and intercept are rounded to float32
    return min(max(LABEL_TOLERANCE, abs(slope) / 2 * (1 + 4e-5)), LARGEST_TOLERANCE)


def _scaled(stored: Array, scale: tuple[float, float], labels: bool) -> NDArray[np.float64]:
    """Values of stored voxels, an array of the same shape.

    Labels are rounded within `label_tolerance` of a whole number; for certainties, values within
    `ROUNDED_ZERO` of 0 become 0.
    """
    slope, intercept = scale
    with np.errstate(over="ignore", invalid="ignore"):  # `check_mask` refuses non-finite values
        values = stored.astype(np.float64)
        if scale != (1.0, 0.0):
            values *= slope
            values += intercept
        if labels:
            whole = np.rint(values)
            return np.where(np.abs(values - whole) <= label_tolerance(slope), whole, values)
    if intercept:
        values[np.abs(values) <= ROUNDED_ZERO * abs(intercept)] = 0
    return values


def check_mask(reader: VolumeReader, header: VolumeHeader, labels: bool = False) -> Mask:
    """Check a mask against its volume: same grid, one channel, values from 0 on, not all 0.

    reader : VolumeReader   of the mask, random access; it is read to the end
    header : VolumeHeader   of the volume
    labels : bool           values are numbers of regions: whole numbers (within `label_tolerance`),
                            less than `MOST_LABELS` different ones
    Raises: ShapeError if the mask does not fit.
    """
    _check_grid(reader, header)
    scale = reader.header.scale
    low, high = math.inf, -math.inf
    binary = scale == (1.0, 0.0) and not labels
    for block in blocks_of([reader], BYTES_EACH):
        (stored,) = block.stored
        ends = _scaled(np.array([stored.min(), stored.max()]), scale, labels)
        if not np.isfinite(ends).all():
            raise ShapeError(
                f"the mask {reader.path} holds NaN or infinity; a mask holds numbers from 0 on"
            )
        high_before = high
        low, high = min(low, float(ends.min())), max(high, float(ends.max()))
        if binary:  # planes of 0 do not tell the other number
            most = stored.max()
            binary = (
                high_before in (-math.inf, 0.0, high)
                and float(most) in (0.0, high)
                and _is_binary(stored, most)
            )
        if labels:
            _check_labels(reader, stored)
        reader.release(0, block.starts[0])
    if low < 0:
        raise ShapeError(
            f"the mask {reader.path} holds numbers below 0 ({low:g}); a mask holds numbers "
            "from 0 on"
        )
    if high <= 0:
        raise ShapeError(f"the mask {reader.path} is empty: all its voxels are 0; name another")
    numbers = _label_numbers(reader, high) if labels and high >= MOST_LABELS else None
    return Mask(reader, labels, high, binary, numbers)


def _label_numbers(reader: VolumeReader, high: float) -> NDArray[np.float64]:
    """The different labels of a mask in order, 0 first. The mask is read once more.

    Raises: ShapeError for too many of them, or for one beyond `LARGEST_LABEL`.
    """
    if high > LARGEST_LABEL:
        raise ShapeError(
            f"the labels in {reader.path} reach {high:.0f}, and those above {LARGEST_LABEL:.0f} "
            "cannot be told apart; number the regions from 1 on"
        )
    found = np.zeros(1)
    for plane in range(reader.header.shape[1]):
        stored = np.unique(reader.read(0, slice(plane, plane + 1), slice(0, 1)))
        found = np.union1d(found, _scaled(stored, reader.header.scale, labels=True))
        if len(found) > MOST_LABELS:
            raise ShapeError(
                f"the labels in {reader.path} number more than {MOST_LABELS - 1} regions, which is "
                "the limit; mask the volume by parts of them, one after another"
            )
        reader.release(0, plane)
    return found


def _check_grid(reader: VolumeReader, header: VolumeHeader) -> None:
    """Check that a mask has one channel and the volume's size and place. Raises: ShapeError."""
    size, wanted = reader.header.shape, header.shape
    differences = [
        f"{name} {a} against {b}"
        for name, a, b in zip(AXIS_NAMES, size[1:4], wanted[1:4], strict=True)
        if a != b
    ]
    several = [
        f"{count} {name}"
        for count, name in ((size[0], "time points"), (size[4], "channels"))
        if count != 1
    ]
    if several:
        raise ShapeError(
            f"the mask {reader.path} has {' and '.join(several)}, and a mask is one volume of one "
            "channel; save the one to use in a file of its own"
        )
    if differences:
        raise ShapeError(
            f"the mask {reader.path} has another grid than the volume: {', '.join(differences)}; "
            "resample it"
        )
    distances = _corner_distances(header.grid, reader.header.grid, wanted[1:4])
    worst = int(distances.argmax())
    if distances[worst] > MASK_TOLERANCE:
        raise ShapeError(
            f"the mask {reader.path} lies elsewhere in the world than the volume: up to "
            f"{distances[worst]:.3g} voxels along {AXIS_NAMES[worst]}; resample it to the volume's "
            "grid"
        )


def _is_binary(stored: Array, most: Array) -> bool:
    """Whether all voxels are 0 or `most`."""
    if stored.dtype.kind == "b" or (stored.dtype.kind == "u" and most <= 1):
        return True
    return all(bool(((plane == 0) | (plane == most)).all()) for plane in stored)


def _check_labels(reader: VolumeReader, stored: Array) -> None:
    """Check that stored voxels are whole numbers. Raises: ShapeError."""
    scale = reader.header.scale
    if stored.dtype.kind != "f" and scale == (1.0, 0.0):
        return
    for plane in stored:
        values = _scaled(plane, scale, labels=True)
        fractions = values[values != np.rint(values)]
        if fractions.size:
            stored_as = ""
            if scale != (1.0, 0.0):
                stored_as = f" (stored with the slope {scale[0]:g} and the intercept {scale[1]:g})"
            raise ShapeError(
                f"the labels in {reader.path} must be whole numbers, received {fractions[0]:.9g}"
                f"{stored_as}; store them as integers without a slope"
            )


def _corner_distances(grid: Grid, other: Grid, size: tuple[int, ...]) -> NDArray[np.float64]:
    """The largest distance between corners of two grids along D, H, W, in voxels of the first.

    size : voxels along D, H, W
    Distances are 0 if either affine is unknown or the first is singular.
    """
    if grid.affine is None or other.affine is None or abs(np.linalg.det(grid.affine)) < 1e-30:
        return np.zeros(3)
    factor = 1.0
    if grid.unit is not None and other.unit is not None:
        factor = UNITS[other.unit] / UNITS[grid.unit]
    corners = np.array([(*c[::-1], 1.0) for c in itertools.product(*((0, n - 1) for n in size))]).T
    other_affine = np.diag([factor, factor, factor, 1.0]) @ other.affine
    distances = np.linalg.solve(grid.affine, (other_affine - grid.affine) @ corners)[:3]
    return np.asarray(np.abs(distances).max(axis=1)[::-1])
