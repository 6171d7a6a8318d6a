"""Cropping: cut off planes of near-zero weights at a kernel's borders, which only cost time.

Measured PSFs often have wide borders of this kind. Each end of an axis loses the same number of
planes, so that the kernel keeps its centre and `same` padding keeps the position of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError, named
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system import elementary

# Largest fraction of Σ|w| to crop; planes with more are part of the kernel, not its border.
MAX_TOLERANCE = 0.1


@dataclass(frozen=True)
class CroppedKernel:
    """A kernel without its borders.

    removed : 3 ints        planes removed from each end of D, H, W
    removed_sum : float     Σ|w| of the removed planes
    original_sum : float    Σw of the kernel before cropping
    """

    kernel: Kernel
    removed: tuple[int, int, int]
    removed_sum: float
    original_sum: float

    def error_bound(self, normalized: bool) -> float:
        """Largest change of any output Σ w·x that cropping can cause, divided by the largest |x|.

        normalized : bool       whether both kernels, before and after, are scaled to sum 1
        """
        if not normalized:
            return self.removed_sum
        # |A/S' - (A + B)/S|: A sums the remaining weights times x, B the removed ones
        remaining_sum = elementary.total(np.abs(self.kernel.weights))
        scaling = abs(1 / self.kernel.sum - 1 / self.original_sum)
        return remaining_sum * scaling + self.removed_sum / abs(self.original_sum)


def check_tolerance(tolerance: float) -> float:
    """Return a tolerance for `crop_kernel` as a float.

    Raises: SpecError unless it is a number from 0 to 0.1.
    """
    if not (isinstance(tolerance, int | float) and 0 <= tolerance <= MAX_TOLERANCE):
        raise SpecError(
            f"{named('crop_kernel')} must be the part of Σ|w| that may be lost, from 0 "
            f"(borders of zeros) to {MAX_TOLERANCE:g}, as in 1e-6, received {tolerance}"
        )
    return float(tolerance)


def crop_kernel(kernel: Kernel, tolerance: float) -> CroppedKernel:
    """Remove outer planes of a 3-D kernel whose Σ|w| is at most `tolerance` times the kernel's.

    tolerance : float       0 to 0.1; 0 removes planes of zeros only

    Planes are removed in pairs, one from each end of an axis, the pair with the smallest Σ|w|
    first. An even size stays even, and the kernel's centre stays inside the kernel.
    Raises: SpecError for the tolerance; ShapeError for a layer (5-D).

    >>> wide = Kernel(np.pad(np.ones((3, 3, 3)), 4))
    >>> cropped = crop_kernel(wide, 0)
    >>> cropped.kernel.size, cropped.removed, cropped.removed_sum
    ((3, 3, 3), (4, 4, 4), 0.0)
    """
    check_tolerance(tolerance)
    if kernel.is_layer:
        raise ShapeError(f"{kernel.title} is a layer, and only filters (3-D kernels) are cropped")
    magnitude = np.abs(kernel.weights)
    if kernel.is_bank:
        # one filter loses no more than all filters of the bank together
        magnitude = magnitude.sum(axis=-1)
    budget = tolerance * elementary.total(magnitude)
    if not magnitude.any():  # in a kernel of zeros no plane is border
        return CroppedKernel(kernel, (0, 0, 0), 0.0, 0.0)
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    most = [
        min(math.floor(c), math.floor(k - 1 - c), (k - 1) // 2)
        for c, k in zip(centre, kernel.size, strict=True)
    ]
    removed, removed_sum = [0, 0, 0], 0.0
    while True:
        remaining = magnitude[_inner(kernel.size, removed)]
        pairs = [(_outer_sum(remaining, a), a) for a in range(3) if removed[a] < most[a]]
        if not pairs:
            break
        least, axis = min(pairs)
        if removed_sum + least > budget:
            break
        removed_sum += least
        removed[axis] += 1
    d, h, w = removed
    moved = None
    if kernel.centre is not None:
        moved = kernel.centre[0] - d, kernel.centre[1] - h, kernel.centre[2] - w
    weights = kernel.weights[_inner(kernel.size, removed)]
    cropped = replace(kernel, weights=weights, centre=moved)
    return CroppedKernel(cropped, (d, h, w), removed_sum, kernel.sum)


def _inner(size: tuple[int, int, int], removed: list[int]) -> tuple[slice, ...]:
    """Slices of a kernel without `removed` planes at each end of each axis."""
    return tuple(slice(n, k - n) for n, k in zip(removed, size, strict=True))


def _outer_sum(magnitude: np.ndarray, axis: int) -> float:
    """Sum of the first and the last plane of an axis."""
    return elementary.total(magnitude.take((0, -1), axis))
