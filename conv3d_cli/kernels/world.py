"""Kernels in world coordinates: lengths on rotated or sheared grids, slopes per mm, world axes.

This module parses the parameters `orient` and `per` of built-in kernels, and converts lengths with
a unit to a grid whose voxel axes are not the axes that the lengths are meant along. The world axes
are those of a volume's affine (NIfTI: x to the right, y to the front, z up), in the order z, y, x
like all triples of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, setting, unknown_name, words
from conv3d_cli.kernels.lengths import (
    VOXEL,
    Floats,
    Kind,
    PhysicalLengths,
    axis_numbers,
    spacing_cure,
    voxels,
)
from conv3d_cli.model.grid import ORTHOGONAL, Grid, shear, unit_steps
from conv3d_cli.model.units import UNITS, unit_name
from conv3d_cli.system import linear

Matrix = NDArray[np.float64]

# Relative size below which a coefficient is rounding of the affine (float32 in NIfTI). It is set to
# 0, so that kernels keep their zeros.
ROUNDING = 1e-6

# --------------------------------------------------------------------------------------------------
# Axes and units of slopes


@dataclass(frozen=True, eq=False)
class Orient:
    """The axes along which a kernel's directions and lengths are meant.

    steps : (3, 3) or None      steps of the grid (`Grid.steps_in`) for world axes; None: voxel axes
    unit : str                  unit of `steps`
    remark : str                how the file's lack of an orientation was resolved; "" if it has one
    """

    steps: Matrix | None = None
    unit: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return "voxel" if self.steps is None else "world"


VOXEL_AXES = Orient()


def read_orient(text: str, name: str, grid: Grid | None) -> Orient:
    """Parse `voxel`, or `world` with the axes of the grid.

    Raises: SpecError for another word; ShapeError for `world` without a voxel spacing.
    """
    if text not in ("voxel", "world"):
        raise SpecError(
            f"{name} is voxel (the volume's own axes) or world (those of its affine), received "
            f"{name}={text}"
        )
    if text == "voxel":
        return VOXEL_AXES
    steps = None if grid is None else grid.steps_in()
    if grid is None or grid.unit is None or steps is None:
        lacks = "no volume is known" if grid is None else f"the volume {grid.lacks}"
        cure = words("pass --like VOLUME", spacing_cure())
        if grid is not None:
            cure = f"give its spacing ({setting('spacing')}), or leave out {name}=world"
        raise ShapeError(f"{name}=world needs world coordinates, and {lacks}; {cure}")
    remark = ""
    if not grid.anatomical:
        own_axes = np.array_equal(steps, np.diag(grid.spacing or ()))
        assumed = "its own axes are taken" if own_axes else "x runs to the left"
        remark = f"the file stores no orientation: {assumed}"
    return Orient(steps, grid.unit, remark)


@dataclass(frozen=True, eq=False)
class PerUnit:
    """The denominator of a slope: one voxel, or one unit of length.

    unit : str          "vox", or a unit of length
    steps : (3, 3)      steps of the grid in that unit (`Grid.steps_in`); identity for "vox"
    """

    unit: str
    steps: Matrix

    @property
    def lengths(self) -> Matrix:
        """Length of one voxel step along D, H, W, in `unit`: (3,) float64."""
        return np.asarray(np.linalg.norm(self.steps, axis=0), np.float64)

    @property
    def word(self) -> str:
        """The unit as texts print it."""
        return "voxel" if self.unit == VOXEL else self.unit


def read_per(text: str, name: str, grid: Grid | None) -> PerUnit:
    """Parse `vox`, or a unit of length with the steps of the grid.

    Raises: UnknownNameError for another word; ShapeError for a length without a voxel spacing.
    """
    if text.lower() == VOXEL:
        return PerUnit(VOXEL, np.eye(3))
    unit = unit_name(text)
    if unit is None:
        raise unknown_name("unit", text, [VOXEL, *UNITS])
    steps = None if grid is None else grid.steps_in(unit)
    if steps is None:
        lacks = "no volume is known" if grid is None else f"the volume {grid.lacks}"
        cure = spacing_cure() if grid is None else f"give its spacing ({setting('spacing')})"
        raise ShapeError(
            f"{name}={text} needs a voxel spacing, and {lacks}; {cure}, or take {name}={VOXEL}"
        )
    return PerUnit(unit, steps)


OrientKind = Annotated[Orient, Kind(read_orient, "voxel|world", "voxel", ("voxel", "world"))]
PerKind = Annotated[PerUnit, Kind(read_per, "|".join([VOXEL, *UNITS]), VOXEL, (VOXEL, *UNITS))]


@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes of a volume as linear combinations of its slopes per voxel along D, H, W.

    coefficients : (3, n)       column i combines the slopes along D, H, W into slope i
    unit : str                  unit of length of the slopes, as texts print it
    axes : str                  "along the axes of the world", or "" for the voxel axes
    remark : str                remark of `Orient`
    """

    coefficients: Matrix
    unit: str
    axes: str = ""
    remark: str = ""

    def words(self, order: int = 1) -> str:
        """The slopes (order 1) or curvatures (order 2) as texts print them.

        >>> Slopes(np.eye(3), "mm").words(), Slopes(np.eye(3), "mm", "along z").words(2)
        ('slopes per mm', 'curvatures along z, per mm²')
        """
        derivative, unit = ("slopes", self.unit) if order == 1 else ("curvatures", f"{self.unit}²")
        words = f"{derivative} {self.axes}, per {unit}" if self.axes else f"{derivative} per {unit}"
        return f"{words}; {self.remark}" if self.remark else words


def requested_slopes(axis: str, per: PerUnit | None, orient: Orient) -> Slopes | None:
    """Slopes along axes (letters) in the unit of `per`, along the axes of `orient`.

    Returns None if neither is given: slopes along voxel axes, at the kernel's own scale. A slope
    along a world axis combines voxel slopes by the inverse of `steps`: a gradient is covariant, so
    this is right for sheared axes too.
    Raises: SpecError for a slope per voxel along a world axis.

    >>> steps = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # rotated about z
    >>> slopes = requested_slopes("zy", None, Orient(steps, "mm"))
    >>> slopes.coefficients.tolist(), slopes.words()
    ([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0]], 'slopes along the axes of the world, per mm')
    """
    numbers = list(axis_numbers(axis))
    if orient.steps is None:
        if per is None:
            return None
        return Slopes((np.eye(3) / per.lengths)[:, numbers], per.word)
    steps, unit = orient.steps, orient.unit
    if per is not None and per.unit == VOXEL:
        raise SpecError(
            "a voxel has no length along an axis of the world: with orient=world take per=mm, "
            "not per=vox"
        )
    if per is not None:
        steps, unit = per.steps, per.unit
    inverse = linear.inverse(steps)
    inverse[np.abs(inverse) * np.linalg.norm(steps, axis=0)[:, None] < ROUNDING] = 0
    return Slopes(inverse[:, numbers], unit, "along the axes of the world", orient.remark)


def laplacian_coefficients(per: PerUnit) -> Matrix:
    """Coefficients (3, 3) of ∂²/∂a∂b per voxel², a and b of D, H, W, in the world's Laplacian.

    >>> laplacian_coefficients(PerUnit("mm", np.diag([2.0, 1.0, 0.5]))).diagonal().tolist()
    [0.25, 1.0, 4.0]
    """
    if shear(per.steps) <= ORTHOGONAL:
        return np.diag(per.lengths**-2)
    inverse = linear.inverse(per.steps)
    return linear.combine(inverse, inverse.T)


# --------------------------------------------------------------------------------------------------
# Lengths along other axes than the voxel axes


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Lengths along axes that are not the voxel axes.

    covariance : (3, 3)     in voxels², D, H, W; voxel i is inside if iᵀ·covariance⁻¹·i <= 1
    reason : str            why the lengths are not along the voxel axes, as texts print it
    """

    covariance: Matrix
    reason: str

    @property
    def half_widths(self) -> Floats:
        """Half the extent along D, H, W, in voxels."""
        d, h, w = np.sqrt(self.covariance.diagonal()).tolist()
        return d, h, w

    def scaled(self, factor: float) -> Ellipsoid:
        """The ellipsoid with all lengths multiplied by `factor`."""
        return Ellipsoid(self.covariance * factor**2, self.reason)

    def squared_distances(self, reach: Sequence[int]) -> Matrix:
        """iᵀ·covariance⁻¹·i of the voxels i up to `reach` from the centre: (2·reach + 1) each."""
        offsets = voxel_offsets(reach)
        squares: Matrix = offsets * linear.combine(linear.inverse(self.covariance), offsets)
        return np.asarray(squares.sum(axis=0))


def voxel_offsets(reach: Sequence[int]) -> Matrix:
    """Offsets D, H, W of each voxel from the centre: (3, 2·rd + 1, 2·rh + 1, 2·rw + 1) float64."""
    return np.stack(np.meshgrid(*(np.arange(-r, r + 1.0) for r in reach), indexing="ij"))


def resolve_lengths(
    value: float | Sequence[float], name: str, orient: Orient, zero: bool = False
) -> Floats | Ellipsoid:
    """Lengths on the grid: voxels along D, H, W, or an `Ellipsoid` if they are along other axes.

    value : float or 3 floats   in voxels, as a kernel function takes it; `PhysicalLengths` if the
                                text had a unit
    zero : bool                 whether 0 is allowed on an axis

    Lengths in voxels are along the voxel axes. So are lengths in mm if the voxel axes are
    orthogonal (to `ORTHOGONAL`) and `orient` does not ask for the world axes. On a sheared grid,
    three equal lengths make a ball in the world. Three different lengths are along the nearest
    orthogonal axes: the voxel axes, each rotated as little as possible.
    Raises: SpecError for wrong lengths, or a 0 along an axis that is not a voxel axis.

    >>> resolve_lengths((1, 2, 2), "sigma", VOXEL_AXES)
    (1.0, 2.0, 2.0)
    """
    in_voxels = voxels(value, name, zero)
    if not isinstance(value, PhysicalLengths):
        return in_voxels
    lengths, units = value.lengths, unit_steps(value.steps)
    is_orthogonal = shear(value.steps) <= ORTHOGONAL
    if is_orthogonal and (orient.steps is None or len(set(lengths)) == 1):
        return in_voxels
    # every voxel axis is parallel to a world axis
    is_aligned = is_orthogonal and np.abs(units).max(axis=0).min() >= 1 - ORTHOGONAL**2
    if is_aligned:
        d, h, w = (
            lengths[axis] / linear.length(step)
            for axis, step in zip(np.abs(units).argmax(axis=0), value.steps.T, strict=True)
        )
        return d, h, w
    if 0 in lengths:
        return _lengths_with_zeros(in_voxels, lengths, units, name, orient)
    axes = np.eye(3)
    reason = "the lengths are along the world's axes, oblique to the voxel axes"
    if not is_orthogonal:
        reason = shear_text(value.steps)
        if orient.steps is None:
            axes = linear.nearest_rotation(units)
    half = linear.combine(linear.inverse(value.steps), axes) * lengths
    return Ellipsoid(linear.combine(half, half.T), reason)


def shear_text(steps: Matrix) -> str:
    """The smallest angle between the voxel axes of a sheared grid, for messages.

    steps : (3, 3)      steps of the grid (`Grid.steps_in`)

    >>> shear_text(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    'the voxel axes stand at 45 degrees'
    """
    cosine = min(1.0, shear(steps))
    return f"the voxel axes stand at {math.degrees(math.acos(cosine)):.4g} degrees"


def _lengths_with_zeros(
    in_voxels: Floats, lengths: Floats, units: Matrix, name: str, orient: Orient
) -> Floats:
    """Return `in_voxels` if the nonzero lengths are along orthogonal voxel axes.

    Raises: SpecError otherwise.
    """
    nonzero = [a for a, length in enumerate(lengths) if length]
    if orient.steps is None and (len(nonzero) < 2 or shear(units[:, nonzero]) <= ORTHOGONAL):
        return in_voxels
    axes = (
        "the axes of the world, to which this volume's are oblique"
        if orient.steps is not None
        else "sheared axes"
    )
    raise SpecError(
        f"{name} of 0 along one axis is not possible along {axes}; give a small length instead"
    )
