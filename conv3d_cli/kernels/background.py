"""The background of a measured kernel: find a pedestal under a PSF, and subtract it.

A camera's offset under a measured PSF is small beside its peak, but every weight of the kernel has
it. The kernel then blurs with a box of its own size, too, which often outweighs the PSF.

A pedestal shows at the border, the outermost weights along every axis longer than 1: there it is
flat, while the rim of a kernel that was cut off falls from the middle of a face to its corners.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, named, setting
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system.words import percent

BORDER = "border"  # the word for the median of the border

# When a border is taken for a pedestal. A Gaussian that is cut off at half its peak, the flattest
# rim that may be one, falls by 1.29 from the inner half of its border to the outer one.
LEAST_SHARE = 0.05  # part of Σw that the pedestal holds, at least
LEAST_LEVEL, LARGEST_LEVEL = 0.004, 0.5  # parts of the peak: below are rings, a box has 1
LARGEST_FALL = 1.2  # inner half of the border over its outer half, and face over face, at most
LEAST_CONTRAST = 10  # peak above the pedestal, in interquartile ranges of the border; noise has 1
LEAST_SIZE = 5  # weights along an axis, at least, so that there is something between rim and peak


@dataclass(frozen=True)
class Pedestal:
    """A border that looks like a background.

    level : float       median of the border
    peak : float        the largest weight
    share : float       the part of Σw that a pedestal of this level holds
    """

    level: float
    peak: float
    share: float

    def __str__(self) -> str:
        return (
            f"flat at {percent(self.level, self.peak)} of the peak ({self.level:.4g} of "
            f"{self.peak:.4g}), in all {percent(self.share)} of the sum"
        )


def check_background(value: str | float) -> str | float:
    """Return "border", or a number as a float. Raises: SpecError for anything else.

    >>> check_background("border"), check_background("98.5")
    ('border', 98.5)
    """
    if isinstance(value, str) and value.strip().lower() == BORDER:
        return BORDER
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise SpecError(
            f"{named('subtract_background')} must be {BORDER} (the median of the kernel's border) "
            f"or a number, received '{value}'"
        )
    return number


def find_pedestal(kernel: Kernel) -> Pedestal | None:
    """The pedestal of a kernel, or None; only filters (3-D) have one.

    >>> axis = np.arange(-6, 7)
    >>> psf = np.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 4)
    >>> print(find_pedestal(Kernel(psf + 0.1)))
    flat at 9.1 % of the peak (0.1 of 1.1), in all 83 % of the sum
    >>> find_pedestal(Kernel(psf)), find_pedestal(Kernel(np.ones((9, 9, 9))))
    (None, None)
    """
    weights = kernel.weights
    long = [axis for axis in range(3) if kernel.size[axis] > 1]
    if weights.ndim != 3 or len(long) < 2 or min(kernel.size[axis] for axis in long) < LEAST_SIZE:
        return None
    border = _border(kernel.size)
    values = weights[border]
    lower, level, upper = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    peak, total = float(weights.max()), kernel.sum
    if not 0 < LEAST_LEVEL * peak <= level <= LARGEST_LEVEL * peak or not 0 < total < math.inf:
        return None
    share = level * weights.size / total
    if share < LEAST_SHARE or peak - level < LEAST_CONTRAST * (upper - lower):
        return None
    return Pedestal(level, peak, share) if _is_flat(weights, border, long) else None


def _border(size: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Where the outermost weights along the axes longer than 1 lie."""
    border = np.ones(size, bool)
    border[tuple(slice(1, -1) if n > 1 else slice(None) for n in size)] = False
    return border


def _is_flat(weights: NDArray[np.float64], border: NDArray[np.bool_], long: list[int]) -> bool:
    """Whether the median is the same in both halves of the border, and far out on all its faces.

    The halves are those nearer to the middle of the kernel and further away from it, in units of
    half its size.
    """
    middles = (np.array(weights.shape)[:, None, None, None] - 1) / 2
    offsets = (np.indices(weights.shape) - middles) / np.maximum(middles, 1)
    distance = np.asarray((offsets**2).sum(axis=0))
    middle = np.median(distance[border])
    outer = border & (distance >= middle)
    medians = [np.median(weights[outer]), np.median(weights[border & (distance < middle)])]
    for axis, end in itertools.product(long, (0, -1)):
        face = np.moveaxis(weights, axis, 0)[end]
        medians.append(np.median(face[np.moveaxis(outer, axis, 0)[end]]))
    return bool(max(medians) <= LARGEST_FALL * min(medians))


def subtract_background(kernel: Kernel, background: str | float) -> tuple[Kernel, str]:
    """Subtract a constant from all weights of a filter or a bank.

    Returns the kernel, and a note; "" if the constant is 0.

    background : "border", the median of each filter's border, or a number

    Weights below 0 are kept. They are the noise of the background: with those above 0 they add up
    to about 0, while clipped they would leave a new haze.
    Raises: SpecError for another background; ShapeError for a layer (5-D), and if nothing positive
        would be left.

    >>> flat, note = subtract_background(Kernel(np.full((5, 5, 5), 9.0) + np.eye(5)), "border")
    >>> float(flat.weights.min()), float(flat.weights.max())
    (0.0, 1.0)
    """
    wanted = check_background(background)
    if kernel.is_layer:
        raise ShapeError(
            f"{kernel.title} is a layer (5-D), whose weights have no background; leave out "
            f"{setting('subtract_background')}"
        )
    levels = np.full(kernel.filters_per_channel, wanted if wanted != BORDER else 0.0, np.float64)
    source = ""
    if wanted == BORDER:
        border = _border(kernel.size)
        levels = np.median(kernel.weights[border].reshape(int(border.sum()), -1), axis=0)
        source = f", the median of {int(border.sum())} weights at its border,"
    weights = kernel.weights - (levels if kernel.is_bank else levels[0])
    text = ",".join(f"{level:.4g}" for level in levels)
    if not (weights.reshape(-1, len(levels)).max(axis=0) > 0).all():
        raise ShapeError(
            f"a background of {text} leaves nothing of {kernel.title}, whose largest weight is "
            f"{kernel.weights.max():.4g}; give a smaller {setting('subtract_background')}, or "
            "leave it out"
        )
    if not levels.any() and wanted != BORDER:
        return kernel, ""
    below = int((weights < 0).sum())
    kept = f"; {below} weights are below 0 now, and are kept, so that noise adds up to 0"
    note = f"a background of {text}{source} is subtracted from kernel {kernel.name}"
    return replace(kernel, weights=weights), note + (kept if below else "")
