"""Comparing two volumes, plane by plane: voxels within tolerances, grids to a small part of a voxel, dtypes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.formats import open_volume
from conv3d_cli.formats.base import spool_reader
from conv3d_cli.model.grid import UNITS, Grid
from conv3d_cli.model.volume import VolumeHeader, VolumeReader, parts_in_storage_order

GRID_TOLERANCE = 1e-5  # of a voxel
PLANES = 8


@dataclass
class Comparison:
    """The outcome: `differences` in words (empty if the volumes agree) and figures about the voxels."""

    first: str
    second: str
    differences: list[str] = field(default_factory=list)
    voxels: int = 0
    unequal: int = 0
    largest: float = 0.0
    largest_at: tuple[int, ...] | None = None
    rms: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        if not self.differences:
            equal = (
                "all equal"
                if not self.unequal
                else f"within tolerance, largest difference {self.largest:.6g}"
            )
            return [f"{self.first} and {self.second} agree: {self.voxels} voxels {equal}"]
        return [f"{self.first} and {self.second} differ:", *(f"  {d}" for d in self.differences)]

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "first": self.first,
            "second": self.second,
            "agree": not self.differences,
            "differences": self.differences,
            "voxels": self.voxels,
            "unequal_voxels": self.unequal,
            "largest_difference": self.largest
            if math.isfinite(self.largest)
            else str(self.largest),
            "largest_at": None if self.largest_at is None else list(self.largest_at),
            "rms_difference": self.rms if math.isfinite(self.rms) else str(self.rms),
        }


def compare_volumes(first: str, second: str, *, rtol: float = 0.0, atol: float = 0.0) -> Comparison:
    """Compare two files of any formats.

    Voxels agree where |a - b| <= atol + rtol·|b|, or both are NaN, or both the same infinity.
    Raises: FormatError if one cannot be read.
    """
    result = Comparison(first, second)
    with open_volume(first) as a, open_volume(second) as b:
        if a.header.shape != b.header.shape:
            result.differences.append(
                f"shape (N, D, H, W, C): {a.header.shape} against {b.header.shape}"
            )
            return result
        result.differences += grid_differences(a.header.grid, b.header.grid, a.header)
        if a.header.dtype != b.header.dtype and not (rtol or atol):
            result.differences.append(f"dtype: {a.header.dtype} against {b.header.dtype}")
        order = [
            list(parts_in_storage_order(r.header.axes, channels_together=False)) for r in (a, b)
        ]
        with spool_reader(b) if b.sequential and order[0] != order[1] else b as second_reader:
            _compare_voxels(result, a, second_reader, rtol, atol)
    return result


def _compare_voxels(
    result: Comparison, a: VolumeReader, b: VolumeReader, rtol: float, atol: float
) -> None:
    squares, beyond = 0.0, 0
    for n, channels in parts_in_storage_order(a.header.axes, channels_together=False):
        for start in range(0, a.header.shape[1], PLANES):
            depth = slice(start, min(start + PLANES, a.header.shape[1]))
            left, right = (_values(r, n, depth, channels) for r in (a, b))
            difference = _difference(left, right)
            with np.errstate(invalid="ignore", over="ignore"):
                allowed = atol + rtol * np.abs(right.astype(np.float64))
                squares += float(np.sum(difference**2))
            # NaN and infinities agree with themselves alone, whatever the tolerance
            never = (difference > 0) & ~(np.isfinite(left) & np.isfinite(right))
            beyond += int(np.count_nonzero(never | (difference > allowed)))
            result.unequal += int(np.count_nonzero(difference))
            result.voxels += difference.size
            worst = float(difference.max(initial=0))
            if worst > result.largest:
                d, h, w, c = (
                    int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape)
                )
                result.largest, result.largest_at = worst, (n, start + d, h, w, channels.start + c)
    for reader in (a, b):
        reader.finish()
    result.rms = math.sqrt(squares / result.voxels) if result.voxels else 0.0
    if beyond:
        result.differences.append(
            f"voxels: {beyond} of {result.voxels} differ, most by {result.largest:.6g} at (n, d, h, w, c) = {result.largest_at}, "
            f"root mean square {result.rms:.6g}"
        )


def _values(reader: VolumeReader, n: int, depth: slice, channels: slice) -> NDArray[Any]:
    """Values in float64, but integers of 64 bits, which it cannot hold, as they are."""
    slope, intercept = reader.header.scale
    stored = reader.read(n, depth, channels)
    if (slope, intercept) == (1.0, 0.0) and stored.dtype in (np.int64, np.uint64):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _difference(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """|left - right|; 0 for NaN and NaN, infinity for NaN and a number."""
    if left.dtype == right.dtype and left.dtype.kind in "iu":
        # modulo 2^64 the difference of the larger and the smaller is exact
        larger: NDArray[np.uint64] = np.maximum(left, right).astype(np.uint64)
        smaller: NDArray[np.uint64] = np.minimum(left, right).astype(np.uint64)
        return (larger - smaller).astype(np.float64)
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference: NDArray[np.float64] = np.abs(left - right)
    difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0
    difference[np.isnan(difference)] = np.inf  # one is NaN, or infinities of other signs
    return difference


def grid_differences(a: Grid, b: Grid, header: VolumeHeader) -> list[str]:
    """How two grids differ beyond `GRID_TOLERANCE` of a voxel anywhere in the volume, in words."""
    if (a.spacing is None) != (b.spacing is None):
        return ["grid: only one of them has a voxel spacing"]
    if (a.unit is None) != (b.unit is None):
        return ["grid: only one of them has a unit of length"]
    if a.spacing is None or b.spacing is None:
        return []
    factor = 1.0 if a.unit is None or b.unit is None else UNITS[b.unit] / UNITS[a.unit]
    _, depth, height, width, _ = header.shape
    if a.affine is None or b.affine is None:
        other = tuple(s * factor for s in b.spacing)
        close = all(
            abs(s - o) * n <= GRID_TOLERANCE * s
            for s, o, n in zip(a.spacing, other, header.shape[1:4], strict=True)
        )
        return (
            []
            if close
            else [f"spacing: {a.spacing} {a.unit or ''} against {b.spacing} {b.unit or ''}"]
        )
    corners = np.array(
        [[i, j, k, 1] for i in (0, width - 1) for j in (0, height - 1) for k in (0, depth - 1)],
        np.float64,
    ).T
    scaled = np.diag([factor, factor, factor, 1.0]) @ b.affine
    moved = np.linalg.norm(((a.affine - scaled) @ corners)[:3], axis=0).max()
    if moved <= GRID_TOLERANCE * min(a.spacing):
        return []
    return [
        f"grid: a corner lies {moved:.6g} {a.unit or 'units'} away (spacing {a.spacing} against {b.spacing}, depth,height,width)"
    ]
