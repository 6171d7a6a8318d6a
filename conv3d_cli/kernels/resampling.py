"""Kernels sampled anew at another voxel spacing: a measured PSF for volumes with larger or smaller voxels.

Weights are what a density holds in each voxel, so that their sum is an integral and stays what it was. Where the new voxels are
smaller the density is interpolated at their centres; where they are larger each weight is shared out among those near it, as
the volume would be interpolated at the place of that weight. Both are one formula, along each axis by itself:

    v(j) = min(1, t/s) · Σ over i of w(i) · K((j·t - x(i)) / max(s, t))

with the old spacing s, the new one t, the old voxels at x(i) = (i - centre)·s, and K the cubic convolution kernel of fourth
order, which keeps polynomials of degree 3.

Source: Keys, Cubic convolution interpolation for digital image processing, IEEE Trans. Acoust. Speech Signal Process. 29
(1981) 1153-1160, section VI.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError
from conv3d_cli.kernels.lengths import MAX_WEIGHTS, Floats, require_memory
from conv3d_cli.model.kernel import Kernel

Array = NDArray[np.float64]

_SUPPORT = 3  # K is 0 from here on
# Spacings count as one where they differ by so little that no voxel of the kernel is off its place by more than a twentieth of
# a voxel, and its size by no more than a hundredth: calibrations are rounded, and float32 in many files.
_ALIKE_SIZE, _ALIKE_PLACE = 0.01, 0.05


def cubic(s: Array) -> Array:
    """Keys' cubic convolution kernel of fourth order.

    >>> cubic(np.array([0.0, 0.5, 1.0, 1.5, 2.5])).round(4).tolist()
    [1.0, 0.5833, 0.0, -0.0938, 0.0104]
    """
    s = np.abs(s)
    near = (s - 1) * ((4 / 3 * s - 1) * s - 1)
    middle = (s - 1) * (s - 2) * (5 / 4 - 7 / 12 * s)
    far = (s - 2) * (s - 3) ** 2 / 12
    return np.where(s <= 1, near, np.where(s <= 2, middle, np.where(s < _SUPPORT, far, 0.0))) + 0.0


def differing_axes(size: tuple[int, int, int], own: Floats, wanted: Floats) -> list[int]:
    """The axes (0, 1, 2) along which a kernel of this size and spacing does not fit voxels of another, in the same unit.

    >>> differing_axes((41, 41, 1), (0.2, 0.1, 9.0), (0.2004, 0.2, 1.0))
    [1]
    """
    return [
        axis
        for axis, (k, s, t) in enumerate(zip(size, own, wanted, strict=True))
        if k > 1 and abs(s / t - 1) > min(_ALIKE_SIZE, 2 * _ALIKE_PLACE / (k - 1))
    ]


def resample_kernel(kernel: Kernel, own: Floats, wanted: Floats) -> Kernel:
    """A 3-D kernel, sampled at `own` spacing, for voxels of the `wanted` one.

    own, wanted : 3 floats      D, H, W, in the same unit
    Returns a kernel of the same sum. Along axes that differ it has an odd size, and the voxel in its middle lies on the centre
    of the old one, between the voxels of an even size too; the others stay as they are. A Gaussian becomes the Gaussian of
    the same sum to 0.3 % of its peak if σ is two of the larger voxels, to 6 % if it is one. What the interpolation takes below
    0 is set to 0 where the kernel has no weight below 0.
    Raises: ShapeError for a layer (5-D), a spacing that is not positive, or more weights than any kernel may have.

    >>> narrow = Kernel(np.ones((1, 1, 5)) / 5)
    >>> wide = resample_kernel(narrow, (1.0, 1.0, 2.0), (1.0, 1.0, 1.0))
    >>> wide.size, round(wide.sum, 12)
    ((1, 1, 19), 1.0)
    """
    if kernel.weights.ndim != 3:
        raise ShapeError(
            f"kernel {kernel.name} is a layer, and only filters (3-D kernels) are resampled"
        )
    if not all(0 < step < math.inf for step in (*own, *wanted)):
        raise ShapeError(
            f"kernel {kernel.name} cannot be resampled from voxels of {own} to {wanted}: they must be positive"
        )
    centre = kernel.centre or tuple((k - 1) / 2 for k in kernel.size)
    axes = differing_axes(kernel.size, own, wanted)
    reach = {a: _reach(kernel.size[a], centre[a], own[a], wanted[a]) for a in axes}
    size = [2 * reach[a] + 1 if a in reach else k for a, k in enumerate(kernel.size)]
    if math.prod(size) > MAX_WEIGHTS:
        raise ShapeError(
            f"kernel {kernel.name} would have {math.prod(size):.3g} weights at the volume's spacing, more than {MAX_WEIGHTS:,}; "
            "are the units of both right?"
        )
    require_memory(math.prod(size), kernel.name)
    weights = kernel.weights
    for a in sorted(axes, key=lambda a: size[a] / kernel.size[a]):  # those that shrink first
        weights = np.moveaxis(
            _resample(np.moveaxis(weights, a, 0), centre[a], own[a], wanted[a], reach[a]), 0, a
        )
    if axes and kernel.weights.min() >= 0:
        weights = np.maximum(weights, 0.0)
    absolute = np.abs(weights)
    if absolute.any():  # to the sum it had, in proportion: for weights from 0 on, a factor
        weights = weights + (kernel.sum - weights.sum()) * (absolute / absolute.sum())
    middle = tuple(float(reach[a]) if a in reach else c for a, c in enumerate(centre))
    return replace(kernel, weights=weights, centre=None if kernel.centre is None else middle)  # type: ignore[arg-type]


def _reach(k: int, centre: float, own: float, wanted: float) -> int:
    """Voxels to each side that hold all that is not 0."""
    furthest = max(centre, k - 1 - centre) * own + _SUPPORT * max(own, wanted)
    if furthest / wanted > MAX_WEIGHTS:
        return MAX_WEIGHTS  # refused, whatever the other axes are
    return math.ceil(furthest / wanted) - 1


def _resample(weights: Array, centre: float, own: float, wanted: float, reach: int) -> Array:
    """Along the first axis; the formula above, an old voxel near each new one at a time."""
    places = np.arange(-reach, reach + 1) * wanted
    scale = max(own, wanted)
    first = np.floor((places - _SUPPORT * scale) / own + centre)
    steps = math.ceil(2 * _SUPPORT * scale / own) + 2
    if steps > len(weights):  # every old voxel may be near
        first, steps = np.zeros(len(places)), len(weights)
    result = np.zeros((len(places), *weights.shape[1:]))
    for step in range(steps):
        old = first + step
        factors = cubic((places - (old - centre) * own) / scale) * min(1.0, wanted / own)
        factors[(old < 0) | (old >= len(weights))] = 0
        used = np.flatnonzero(factors)
        result[used] += factors[used, None, None] * weights[old[used].astype(np.int64)]
    return result
