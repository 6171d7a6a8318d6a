"""Derivatives of a volume at the scale of a Gaussian, for the operations that are made of them.

Filters are sampled derivatives of a Gaussian, scaled so that polynomials are differentiated
exactly: a constant to 0, x to 1, x²/2 to 1. On Gaussian spots of σ = 1 voxel at a scale of 1,
second derivatives are within 0.3 % of the continuous ones, where differences of a smoothed volume
are off by 11 %; at 0.5, the least scale that is taken, 3 % and 11 % (2026-11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conv3d_cli.errors import SpecError, named
from conv3d_cli.model.box import Box, Span
from conv3d_cli.model.spec import AXIS_NAMES, Boundary
from conv3d_cli.network.operations.base import Array, Operation, Reals, Shape, Window
from conv3d_cli.system.elementary import exp

if TYPE_CHECKING:
    from conv3d_cli.engine.derivatives import Extended, Taps

TRUNCATE = 4  # filters reach int(TRUNCATE · σ + 0.5) voxels
LEAST_SIGMA = 0.5  # voxels
MOST_SIGMA = 1000.0  # voxels; a larger one is a mistake in a unit
# Planes that are computed together: at least so many; so many voxels of them, or more if that
# repeats less, and at most so many.
LEAST_PLANES, SLAB_VOXELS, WINDOW_VOXELS = 8, 4 << 20, 32 << 20

Floats = tuple[float, float, float]


def gaussian_filters(sigma: float) -> tuple[Reals, Reals, Reals]:
    """A Gaussian, its slope and its curvature, as filters along an axis: (2r + 1,) each.

    sigma : float       voxels
    Output i is the sum over k of filter[r + k] · x[i + k].

    >>> smooth, slope, curvature = gaussian_filters(1.0)
    >>> k = np.arange(-4, 5)
    >>> [round(float(v), 9) for v in (smooth.sum(), slope @ k, curvature @ (k * k / 2))]
    [1.0, 1.0, 1.0]
    """
    reach = int(TRUNCATE * sigma + 0.5)
    k = np.arange(-reach, reach + 1.0)
    g = exp(-(k**2) / (2 * sigma**2))
    slope = k * g
    curvature = (k**2 / sigma**2 - 1) * g
    curvature -= math.fsum(curvature) / len(k)
    return (
        g / math.fsum(g),
        slope / math.fsum(slope * k),
        curvature / (math.fsum(curvature * k**2) / 2),
    )


class GaussianOperation(Operation):
    """An operation on derivatives of its first input, whose output has the input's size.

    boundary : text         what lies beyond the edges, see `model.spec.Boundary`
    """

    channels_apart = True
    boundary: Boundary
    reach: tuple[int, int, int]  # voxels that an output sees on each side, along D, H, W

    def read_boundary(self) -> None:
        """Read the argument `boundary`. Raises: SpecError."""
        self.boundary = Boundary.parse(str(self.argument("boundary", "symmetric")))
        if self.boundary.renormalizes:
            raise SpecError(
                f"boundary '{self.boundary}' divides means by the weights inside, and {self.where} "
                "is made of derivatives: use symmetric"
            )

    def triple_of_numbers(self, name: str, value: Any) -> Floats:
        """Three numbers along D, H, W. Raises: SpecError."""
        try:
            d, h, w = (float(v) for v in value)
        except (TypeError, ValueError):
            raise SpecError(
                f"{self.where} needs three numbers for {name}, received {value!r}"
            ) from None
        return d, h, w

    def sigma_of(self, value: Any, name: str = "sigma") -> Floats:
        """Standard deviations in voxels along D, H, W. Raises: SpecError for any too small."""
        found = self.triple_of_numbers(name, value)
        for axis, one in enumerate(found):
            if not LEAST_SIGMA <= one <= MOST_SIGMA:
                few = not one > MOST_SIGMA
                raise SpecError(
                    f"a scale is at {'least' if few else 'most'} "
                    f"{LEAST_SIGMA if few else MOST_SIGMA:g} voxels along every axis, received "
                    f"{one:.3g} along {AXIS_NAMES[axis]}; give a "
                    f"{'larger' if few else 'smaller'} {named(name)}"
                )
        return found

    def set_reach(self, sigmas: Sequence[Floats]) -> None:
        """Set how far outputs see, by the largest scale."""
        d, h, w = (max(int(TRUNCATE * sigma[axis] + 0.5) for sigma in sigmas) for axis in range(3))
        self.reach = (d, h, w)

    def span(self, number: int, axis: int, outputs: Span) -> Span:
        if number:
            return 0, self.inputs[number][axis]
        length, reach = self.inputs[0][axis], self.reach[axis]
        if self.boundary.mode == "wrap":
            return 0, length
        return max(0, outputs[0] - reach), min(length, outputs[1] + reach)

    @property
    def planes_together(self) -> int:
        return planes_together(self.inputs[0], self.reach[0])

    def indices(self, axis: int, outputs: Span, start: int) -> list[int]:
        """The voxel of a window at each position that outputs see; -1: the value outside."""
        length, reach = self.inputs[0][axis], self.reach[axis]
        found = [
            self.boundary.source_index(position, length)
            for position in range(outputs[0] - reach, outputs[1] + reach)
        ]
        return [-1 if at < 0 else at - start for at in found]

    def extended(self, window: Window, box: Box, channels: slice) -> Extended:
        """The voxels of some channels and how the engine reads them."""
        from conv3d_cli.engine.derivatives import Extended

        d, h, w = (
            self.indices(axis, span, start)
            for axis, (span, start) in enumerate(zip(box, window.start, strict=True))
        )
        return Extended(window.voxels[..., channels], (d, h, w), self.boundary.value)

    def padded(self, window: Window, box: Box, fill: float | None = None) -> Reals:
        """A box of the volume with all that its outputs see, (d + 2r, h + 2r, w + 2r, c).

        fill : float or None    what stands outside where the boundary has a value; None: that value
        """
        outside = self.boundary.value if fill is None else fill
        values = window.voxels
        for axis, (span, start) in enumerate(zip(box, window.start, strict=True)):
            at = np.array(self.indices(axis, span, start))
            values = values.take(np.maximum(at, 0), axis=axis)
            values[(slice(None),) * axis + (at < 0,)] = outside
        return values


def planes_together(volume: Shape, reach: int) -> int:
    """Output planes that are computed together, since those around them are filtered with them.

    reach : int     planes on each side that an output sees
    """
    plane = math.prod(volume[1:])
    wished = max(3 * reach, SLAB_VOXELS // plane)
    return max(LEAST_PLANES, min(wished, WINDOW_VOXELS // plane))


def filtered(padded: Array, sigma: Floats, orders: Sequence[int], reach: Sequence[int]) -> Reals:
    """A derivative of a volume by its definition: a sum over taps along each axis.

    padded : (d + 2r, h + 2r, w + 2r, c)    see `GaussianOperation.padded`
    orders : of the derivative along D, H, W
    """
    for axis, order in enumerate(orders):
        padded = _correlated(padded, gaussian_filters(sigma[axis])[order], axis, reach[axis])
    return padded


def _correlated(values: Array, taps: Reals, axis: int, reach: int) -> Reals:
    length = values.shape[axis] - 2 * reach
    first = reach - len(taps) // 2
    lines = np.moveaxis(values, axis, 0)
    with np.errstate(invalid="ignore", over="ignore"):
        total = sum(tap * lines[first + k : first + k + length] for k, tap in enumerate(taps))
    return np.moveaxis(np.asarray(total), 0, axis)


def magnitudes(padded: Array, sigma: Floats, orders: Sequence[int], reach: Sequence[int]) -> Reals:
    """What errors of up to so much change in a derivative at most: the sum of |weight| · error."""
    for axis, order in enumerate(orders):
        taps = np.abs(gaussian_filters(sigma[axis])[order])
        padded = _correlated(padded, taps, axis, reach[axis])
    return padded


def engine_taps(sigma: Floats, scales: Sequence[Floats]) -> Taps:
    """The filters of a scale as the engine takes them.

    scales : (orders 0, 1, 2)       factors of the derivatives along D, H, W
    """
    from conv3d_cli.engine.derivatives import Taps

    reaches = [int(TRUNCATE * one + 0.5) for one in sigma]
    weights = np.zeros((3, 3, max(reaches) + 1))
    for axis, (one, reach) in enumerate(zip(sigma, reaches, strict=True)):
        for order, taps in enumerate(gaussian_filters(one)):
            weights[axis, order, : reach + 1] = taps[reach:] * scales[order][axis]
    return Taps(weights, (reaches[0], reaches[1], reaches[2]))
