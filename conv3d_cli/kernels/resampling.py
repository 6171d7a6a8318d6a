"""Resampling: fit a kernel, such as a measured PSF, to volumes of another voxel spacing.

A weight is the integral of a density over its voxel, so the sum of all weights is preserved. If the
new voxels are smaller, the density is interpolated at their centres. If they are larger, each
weight is distributed over the new voxels near it, with the factors that interpolate the volume at
the position of that weight. One formula, applied to each axis separately, does both:

    v(j) = min(1, t/s) · Σ over i of w(i) · K((j·t - x(i)) / max(s, t))

where s is the old spacing, t the new one, x(i) = (i - centre)·s the position of old voxel i, and K
the fourth-order cubic convolution kernel, which reproduces polynomials of degree 3.

Source: Keys, Cubic convolution interpolation for digital image processing, IEEE Trans. Acoust.
Speech Signal Process. 29 (1981) 1153-1160, section VI.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError
from conv3d_cli.kernels.lengths import MAX_WEIGHTS, Floats
from conv3d_cli.model.kernel import Kernel
from conv3d_cli.system import elementary
from conv3d_cli.system.room import require_weights

Array = NDArray[np.float64]

_SUPPORT = 3  # K(s) is 0 for |s| >= 3
# Spacings count as equal if the voxel size differs by at most 1 % and no voxel of the kernel is
# displaced by more than 1/20 of a voxel: calibrations are rounded, and many files store float32.
_SIZE_TOLERANCE, _POSITION_TOLERANCE = 0.01, 0.05


def cubic(s: Array) -> Array:
    """Keys' fourth-order cubic convolution kernel K at positions `s`, in voxels, of any shape.

    >>> cubic(np.array([0.0, 0.5, 1.0, 1.5, 2.5])).round(4).tolist()
    [1.0, 0.5833, 0.0, -0.0938, 0.0104]
    """
    s = np.abs(s)
    near = (s - 1) * ((4 / 3 * s - 1) * s - 1)
    middle = (s - 1) * (s - 2) * (5 / 4 - 7 / 12 * s)
    far = (s - 2) * (s - 3) ** 2 / 12
    return np.where(s <= 1, near, np.where(s <= 2, middle, np.where(s < _SUPPORT, far, 0.0))) + 0.0


def differing_axes(size: tuple[int, int, int], own: Floats, wanted: Floats) -> list[int]:
    """Axes (0, 1, 2) along which a kernel must be resampled to fit voxels of another spacing.

    size : 3 ints               weights along D, H, W; an axis of one weight never differs
    own, wanted : 3 floats      spacing of the kernel and of the volume, in the same unit

    >>> differing_axes((41, 41, 1), (0.2, 0.1, 9.0), (0.2004, 0.2, 1.0))
    [1]
    """
    return [
        axis
        for axis, (k, s, t) in enumerate(zip(size, own, wanted, strict=True))
        if k > 1 and abs(s / t - 1) > min(_SIZE_TOLERANCE, 2 * _POSITION_TOLERANCE / (k - 1))
    ]


def resample_kernel(kernel: Kernel, own: Floats, wanted: Floats) -> Kernel:
    """Resample a 3-D kernel from its own voxel spacing to the spacing of a volume.

    own, wanted : 3 floats      spacing of the kernel and of the volume, D, H, W, in the same unit

    Returns a kernel of the same sum. Axes whose spacing differs get an odd size, with the middle
    voxel at the old centre (also if that was between two voxels); the other axes are unchanged. If
    the kernel has no negative weights, negative results of the interpolation are set to 0. A
    resampled Gaussian equals the Gaussian of the same sum within 0.3 % of its peak if σ is twice
    the larger voxel, and within 6 % if σ is one such voxel.
    Raises: ShapeError for a layer (5-D), a spacing that is not positive, or too many weights.

    >>> narrow = Kernel(np.ones((1, 1, 5)) / 5)
    >>> wide = resample_kernel(narrow, (1.0, 1.0, 2.0), (1.0, 1.0, 1.0))
    >>> wide.size, round(wide.sum, 12)
    ((1, 1, 19), 1.0)
    """
    if kernel.weights.ndim != 3:
        raise ShapeError(f"{kernel.title} is a layer, and only filters (3-D kernels) are resampled")
    if not all(0 < step < math.inf for step in (*own, *wanted)):
        raise ShapeError(
            f"{kernel.title} cannot be resampled from voxels of {own} to {wanted}: "
            "they must be positive"
        )
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    axes = differing_axes(kernel.size, own, wanted)
    reach = {a: _reach(kernel.size[a], centre[a], own[a], wanted[a]) for a in axes}
    size = [2 * reach[a] + 1 if a in reach else k for a, k in enumerate(kernel.size)]
    if math.prod(size) > MAX_WEIGHTS:
        raise ShapeError(
            f"{kernel.title} would have {math.prod(size):.3g} weights at the volume's "
            f"spacing, more than {MAX_WEIGHTS:,}; are the units of both right?"
        )
    require_weights(math.prod(size), kernel.name)
    weights = kernel.weights
    # axes that shrink most come first, so that later ones handle fewer weights
    for a in sorted(axes, key=lambda a: size[a] / kernel.size[a]):
        first = np.moveaxis(weights, a, 0)
        resampled = _resample_first_axis(first, centre[a], own[a], wanted[a], reach[a])
        weights = np.moveaxis(resampled, 0, a)
    if axes and kernel.weights.min() >= 0:
        weights = np.maximum(weights, 0.0)
    magnitude = np.abs(weights)
    if magnitude.any():
        # Restore the sum by changes in proportion to |w|; weights >= 0 are thereby scaled.
        missing = kernel.sum - elementary.total(weights)
        weights = weights + missing * (magnitude / elementary.total(magnitude))
    new_centre = None
    if kernel.centre is not None:
        d, h, w = (float(reach[a]) if a in reach else c for a, c in enumerate(centre))
        new_centre = d, h, w
    return replace(kernel, weights=weights, centre=new_centre)


def _reach(k: int, centre: float, own: float, wanted: float) -> int:
    """New voxels on each side of the centre that can have a nonzero weight."""
    distance = max(centre, k - 1 - centre) * own + _SUPPORT * max(own, wanted)
    if distance / wanted > MAX_WEIGHTS:
        return MAX_WEIGHTS  # the caller refuses this for any size of the other axes
    return math.ceil(distance / wanted) - 1


def _resample_first_axis(
    weights: Array, centre: float, own: float, wanted: float, reach: int
) -> Array:
    """Apply the module's formula; each pass adds one more old voxel to every new voxel."""
    positions = np.arange(-reach, reach + 1) * wanted
    scale = max(own, wanted)
    first = np.floor((positions - _SUPPORT * scale) / own + centre)
    steps = math.ceil(2 * _SUPPORT * scale / own) + 2
    if steps > len(weights):  # every old voxel may be within the support
        first, steps = np.zeros(len(positions)), len(weights)
    result = np.zeros((len(positions), *weights.shape[1:]))
    for step in range(steps):
        old = first + step
        factors = cubic((positions - (old - centre) * own) / scale) * min(1.0, wanted / own)
        factors[(old < 0) | (old >= len(weights))] = 0
        used = np.flatnonzero(factors)
        result[used] += factors[used, None, None] * weights[old[used].astype(np.int64)]
    return result
