"""Cropping the borders of a kernel that hold next to nothing: measured PSFs have wide ones, and they cost time.

The same number of planes goes from both ends of an axis, so that the centre stays where it is and `same` padding keeps the
output's place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.kernel import Kernel

MOST = 0.1  # of Σ|w|: what is more is no border


@dataclass(frozen=True)
class Cropped:
    """A kernel without its borders.

    removed : 3 ints    planes from each end along D, H, W
    lost : float        Σ|w| of them
    whole : float       Σw of the kernel with them
    """

    kernel: Kernel
    removed: tuple[int, int, int]
    lost: float
    whole: float

    def bound(self, normalized: bool) -> float:
        """What times the largest |x| no sum Σ w·x is off by.

        normalized : bool       whether both kernels are scaled to sum 1; then the loss is made good by what is left
        """
        if not normalized:
            return self.lost
        # |A/S' - (A + B)/S|, with A over what is left and B over what is lost
        left = float(np.abs(self.kernel.weights).sum())
        return left * abs(1 / self.kernel.sum - 1 / self.whole) + self.lost / abs(self.whole)


def check_tolerance(tolerance: float) -> float:
    """A tolerance as `crop_kernel` takes it.

    Raises: SpecError.
    """
    if not (isinstance(tolerance, int | float) and 0 <= tolerance <= MOST):
        raise SpecError(
            f"crop_kernel is the part of Σ|w| that may be lost, from 0 (borders of zeros) to {MOST:g}, as in 1e-6, received "
            f"{tolerance}"
        )
    return float(tolerance)


def crop_kernel(kernel: Kernel, tolerance: float) -> Cropped:
    """A 3-D kernel without the outer planes whose weights sum, in absolute value, to at most `tolerance`·Σ|w|.

    tolerance : float       from 0, which takes planes of zeros alone, to 0.1
    Pairs of planes are taken, one from each end of an axis, the pair with the least Σ|w| first. An even size stays even; the
    kernel's centre stays within it. Raises: SpecError for the tolerance; ShapeError for a layer (5-D).

    >>> wide = Kernel(np.pad(np.ones((3, 3, 3)), 4))
    >>> cropped = crop_kernel(wide, 0)
    >>> cropped.kernel.size, cropped.removed, cropped.lost
    ((3, 3, 3), (4, 4, 4), 0.0)
    """
    check_tolerance(tolerance)
    if kernel.is_layer:
        raise ShapeError(
            f"kernel {kernel.name} is a layer, and only filters (3-D kernels) are cropped"
        )
    absolute = np.abs(kernel.weights)
    if kernel.is_bank:
        # what one of its filters loses is no more than what all do
        absolute = absolute.sum(axis=-1)
    budget = tolerance * float(absolute.sum())
    if not absolute.any():  # no part of nothing is more than another
        return Cropped(kernel, (0, 0, 0), 0.0, 0.0)
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    most = [
        min(math.floor(c), math.floor(k - 1 - c), (k - 1) // 2)
        for c, k in zip(centre, kernel.size, strict=True)
    ]
    removed, lost = [0, 0, 0], 0.0
    while True:
        left = absolute[tuple(slice(n, k - n) for n, k in zip(removed, kernel.size, strict=True))]
        pairs = [(_ends(left, axis), axis) for axis in range(3) if removed[axis] < most[axis]]
        if not pairs:
            break
        least, axis = min(pairs)
        if lost + least > budget:
            break
        lost += least
        removed[axis] += 1
    kept = tuple(slice(n, k - n) for n, k in zip(removed, kernel.size, strict=True))
    moved = (
        None
        if kernel.centre is None
        else tuple(c - n for c, n in zip(kernel.centre, removed, strict=True))
    )
    d, h, w = removed
    cropped = replace(kernel, weights=kernel.weights[kept], centre=moved)  # type: ignore[arg-type]
    return Cropped(cropped, (d, h, w), lost, kernel.sum)


def _ends(absolute: np.ndarray, axis: int) -> float:
    """The sum of the first and the last plane along an axis."""
    return float(absolute.take(0, axis).sum() + absolute.take(-1, axis).sum())
