"""Compare two volumes plane by plane: voxels within tolerances, grids, and dtypes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.formats import open_volume
from conv3d_cli.formats.base import spool_reader
from conv3d_cli.formats.passes import blocks_of
from conv3d_cli.model.grid import Grid, Spacing
from conv3d_cli.model.units import UNITS
from conv3d_cli.model.volume import Array, VolumeHeader, VolumeReader, parts_in_storage_order

GRID_TOLERANCE = 1e-5  # fraction of a voxel
BYTES_EACH = 88  # of memory for a voxel while two are compared


@dataclass
class Comparison:
    """The result of a comparison.

    first, second : str         the paths
    differences : list of str   one sentence per difference; empty if the volumes agree
    voxels, unequal : int       voxels compared, and those that are not exactly equal
    largest : float             the largest |a - b|
    largest_at : tuple of int   the (n, d, h, w, c) of that voxel; None if all voxels are equal
    rms : float                 root mean square of a - b
    largest_value : float       the largest finite |b|
    """

    first: str
    second: str
    differences: list[str] = field(default_factory=list)
    voxels: int = 0
    unequal: int = 0
    largest: float = 0.0
    largest_at: tuple[int, ...] | None = None
    rms: float = 0.0
    largest_value: float = 0.0

    def lines(self) -> list[str]:
        """The result as text for the terminal, one line per difference."""
        if not self.differences:
            equal = "all equal"
            if self.unequal:
                equal = f"within tolerance, largest difference {self.largest:.6g}"
            return [f"{self.first} and {self.second} agree: {self.voxels} voxels {equal}"]
        return [f"{self.first} and {self.second} differ:", *(f"  {d}" for d in self.differences)]

    def record(self) -> dict[str, Any]:
        """The result as a JSON object. JSON has no infinity: infinite figures are strings."""

        def number(value: float) -> float | str:
            return value if math.isfinite(value) else str(value)

        return {
            "first": self.first,
            "second": self.second,
            "agree": not self.differences,
            "differences": self.differences,
            "voxels": self.voxels,
            "unequal_voxels": self.unequal,
            "largest_difference": number(self.largest),
            "largest_at": None if self.largest_at is None else list(self.largest_at),
            "rms_difference": number(self.rms),
            "largest_value": number(self.largest_value),
        }


def compare_volumes(
    first: str,
    second: str,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    spacing: Spacing | None = None,
) -> Comparison:
    """Compare two files, each in any supported format.

    first, second : str     the paths
    rtol, atol : float      two voxels agree if |a - b| <= atol + rtol·|b|, if both are NaN, or if
                            both are the same infinity. Dtypes may differ only if rtol or atol is
                            above 0.
    spacing : Spacing or None   for what the files do not tell (see `complete_grid`)

    Raises: FormatError if a file cannot be read; ShapeError if it tells another spacing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/a.npy", np.zeros((2, 3, 4)))
    ...     np.save(f"{folder}/b.npy", np.full((2, 3, 4), 0.5))
    ...     result = compare_volumes(f"{folder}/a.npy", f"{folder}/b.npy", atol=0.1)
    >>> result.unequal, result.largest
    (24, 0.5)
    """
    result = Comparison(first, second)
    with open_volume(first, spacing=spacing) as a, open_volume(second, spacing=spacing) as b:
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
    squares, beyond, largest_value = 0.0, 0, 0.0
    for block in blocks_of((a, b), BYTES_EACH):
        left, right = map(values_of, block.stored, (a.header, b.header))
        difference = _difference(left, right)
        with np.errstate(invalid="ignore", over="ignore"):
            allowed = atol + rtol * np.abs(right.astype(np.float64))
            squares += float(np.sum(difference**2))
        finite = np.abs(right[np.isfinite(right)].astype(np.float64))
        largest_value = max(largest_value, float(finite.max(initial=0)))
        # no tolerance makes NaN or an infinity agree with another value
        nonfinite = (difference > 0) & ~(np.isfinite(left) & np.isfinite(right))
        beyond += int(np.count_nonzero(nonfinite | (difference > allowed)))
        result.unequal += int(np.count_nonzero(difference))
        result.voxels += difference.size
        worst = float(difference.max(initial=0))
        if worst > result.largest:
            place = np.unravel_index(int(difference.argmax()), difference.shape)
            starts = (*block.starts, block.channel)
            within = (first + int(i) for first, i in zip(starts, place, strict=True))
            result.largest, result.largest_at = worst, (block.n, *within)
    for reader in (a, b):
        reader.finish()
    result.largest_value = largest_value
    result.rms = math.sqrt(squares / result.voxels) if result.voxels else 0.0
    if beyond:
        result.differences.append(
            f"voxels: {beyond} of {result.voxels} differ, most by {result.largest:.6g} "
            f"at (n, d, h, w, c) = {result.largest_at}, root mean square {result.rms:.6g}"
            f"{_share(result)}"
        )
        result.differences += rounding_notes(result, a.header, b.header)


def _share(result: Comparison) -> str:
    """The largest difference as a part of the largest value of B; "" if there is none."""
    if not 0 < result.largest_value < math.inf or not math.isfinite(result.largest):
        return ""
    percent = 100 * result.largest / result.largest_value
    share = f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"
    return f"; the largest is {share} % of B's largest value"


def rounding_notes(result: Comparison, a: VolumeHeader, b: VolumeHeader) -> list[str]:
    """What the differences owe to values that one volume rounded, and the other did not.

    a, b : VolumeHeader     of the volumes that were compared
    """
    notes = []
    for path, header, other in ((result.first, a, b), (result.second, b, a)):
        step = abs(header.scale[0])
        finer = other.dtype.kind == "f" or abs(other.scale[0]) < step
        if header.dtype.kind in "iu" and finer:
            alone = (
                "rounding alone explains them"
                if result.largest <= step / 2 * (1 + 1e-3)
                else "rounding alone does not explain them"
            )
            notes.append(
                f"rounding: {path} stores {header.dtype} in steps of {step:.6g}, half a step is "
                f"{step / 2:.6g}: {alone}"
            )
    return notes


def values_of(stored: Array, header: VolumeHeader) -> NDArray[Any]:
    """Voxel values as float64; unscaled 64-bit integers, which float64 would round, as stored."""
    slope, intercept = header.scale
    if (slope, intercept) == (1.0, 0.0) and stored.dtype in (np.int64, np.uint64):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _difference(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """|left - right|: 0 between two NaN, infinity between NaN and a number."""
    if left.dtype == right.dtype and left.dtype.kind in "iu":
        # larger - smaller is exact modulo 2^64
        larger: NDArray[np.uint64] = np.maximum(left, right).astype(np.uint64)
        smaller: NDArray[np.uint64] = np.minimum(left, right).astype(np.uint64)
        return (larger - smaller).astype(np.float64)
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference: NDArray[np.float64] = np.abs(left - right)
    difference[(left == right) | (np.isnan(left) & np.isnan(right))] = 0
    difference[np.isnan(difference)] = np.inf  # one is NaN, or the infinities have opposite signs
    return difference


def grid_differences(a: Grid, b: Grid, header: VolumeHeader) -> list[str]:
    """How two grids differ, in words; empty if no corner is off by more than GRID_TOLERANCE voxels.

    header : VolumeHeader   of the first volume; its shape places the corners
    """
    if (a.spacing is None) != (b.spacing is None):
        return ["grid: only one of them has a voxel spacing"]
    if (a.unit is None) != (b.unit is None):
        return ["grid: only one of them has a unit of length"]
    if a.spacing is None or b.spacing is None:
        return []
    factor = 1.0 if a.unit is None or b.unit is None else UNITS[b.unit] / UNITS[a.unit]
    _, depth, height, width, _ = header.shape
    if a.affine is None or b.affine is None:
        scaled_spacing = [s * factor for s in b.spacing]
        if all(
            abs(s - o) * n <= GRID_TOLERANCE * s
            for s, o, n in zip(a.spacing, scaled_spacing, header.shape[1:4], strict=True)
        ):
            return []
        return [f"spacing: {a.spacing_words} against {b.spacing_words} (depth,height,width)"]
    corners = np.array(
        [[i, j, k, 1] for i in (0, width - 1) for j in (0, height - 1) for k in (0, depth - 1)],
        np.float64,
    ).T
    scaled_affine = np.diag([factor, factor, factor, 1.0]) @ b.affine
    distance = np.linalg.norm(((a.affine - scaled_affine) @ corners)[:3], axis=0).max()
    if distance <= GRID_TOLERANCE * min(a.spacing):
        return []
    return [
        f"grid: corners are up to {distance:.6g} {a.unit or 'of their unit'} apart "
        f"(spacing {a.spacing_words} against {b.spacing_words}, depth,height,width)"
    ]
