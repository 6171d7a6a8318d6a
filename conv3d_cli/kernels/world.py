"""Kernels and the world: lengths on grids whose axes are turned or sheared, slopes per mm, directions of the world.

Three parameters of built-in kernels are read here from text and grid: `orient`, `per`, and what lengths with a unit become where
the voxel axes are not those they are meant along. The world's axes are those of a volume's affine (NIfTI: x to the right, y to
the front, z up), written z, y, x like all triples here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, unknown_name
from conv3d_cli.kernels.lengths import VOXEL, Floats, Kind, PhysicalLengths, axis_numbers, voxels
from conv3d_cli.model.grid import ORTHOGONAL, UNITS, Grid, shear, unit_name, unit_steps

Matrix = NDArray[np.float64]

# Parts of a slope that are rounding of the affine (a float32 in NIfTI): left out, so that kernels keep their zeros.
ROUNDING = 1e-6

# ---------------------------------------------------------------------------------------------------------------------
# Along which axes, per what


@dataclass(frozen=True, eq=False)
class Orient:
    """The axes that directions and lengths of a kernel are along.

    steps : (3, 3) or None      as `Grid.steps_in` has them: the world's axes; None: the voxel axes
    unit : str                  of the steps
    remark : str                what should be known of them
    """

    steps: Matrix | None = None
    unit: str = ""
    remark: str = ""

    def __str__(self) -> str:
        return "voxel" if self.steps is None else "world"


VOXEL_AXES = Orient()


def read_orient(text: str, name: str, grid: Grid | None) -> Orient:
    """`voxel`, or `world` on a grid.

    Raises: SpecError for another word; ShapeError for a volume without spacing.
    """
    if text not in ("voxel", "world"):
        raise SpecError(
            f"{name} is voxel (the volume's own axes) or world (those of its affine), received {name}={text}"
        )
    if text == "voxel":
        return VOXEL_AXES
    steps = None if grid is None else grid.steps_in()
    if grid is None or grid.unit is None or steps is None:
        cure = "pass --like VOLUME" if grid is None else f"leave out {name}=world"
        raise ShapeError(
            f"{name}=world needs a place in the world, and the volume has no voxel spacing; {cure}"
        )
    remark = ""
    if not grid.anatomical:
        as_they_are = bool(np.array_equal(steps, np.diag(grid.spacing or ())))
        remark = "the file tells no orientation: " + (
            "its own axes are taken" if as_they_are else "x runs to the left"
        )
    return Orient(steps, grid.unit, remark)


@dataclass(frozen=True, eq=False)
class Per:
    """What a slope is told for: one voxel, or one unit of length.

    steps : (3, 3)      as `Grid.steps_in` has them, in that unit; of voxels, the identity
    """

    unit: str
    steps: Matrix

    @property
    def lengths(self) -> Matrix:
        """(3,): of a voxel's step along D, H, W."""
        return np.asarray(np.linalg.norm(self.steps, axis=0), np.float64)

    @property
    def word(self) -> str:
        """The unit, for people."""
        return "voxel" if self.unit == VOXEL else self.unit


def read_per(text: str, name: str, grid: Grid | None) -> Per:
    """`vox`, or a unit of length on a grid.

    Raises: UnknownNameError; ShapeError for a volume without spacing.
    """
    if text.lower() == VOXEL:
        return Per(VOXEL, np.eye(3))
    unit = unit_name(text)
    if unit is None:
        raise unknown_name("unit", text, [VOXEL, *UNITS])
    steps = None if grid is None else grid.steps_in(unit)
    if steps is None:
        cure = "pass --like VOLUME or --spacing 2,1,1mm" if grid is None else f"take {name}={VOXEL}"
        raise ShapeError(f"{name}={text} needs a voxel spacing, and none is known; {cure}")
    return Per(unit, steps)


OrientKind = Annotated[Orient, Kind(read_orient, "voxel|world", "voxel", ("voxel", "world"))]
PerKind = Annotated[Per, Kind(read_per, "|".join([VOXEL, *UNITS]), VOXEL, (VOXEL, *UNITS))]


@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes wanted of a volume, out of its slopes per voxel along D, H, W.

    parts : (3, n)      of each of n slopes, its part of those along D, H, W
    words : str         what they are, for people
    """

    parts: Matrix
    words: str


def wanted_slopes(axis: str, per: Per | None, orient: Orient) -> Slopes | None:
    """The slopes along axes (letters), as `per` and `orient` say; None for those of the voxel axes at a kernel's own scale.

    Along the world's axes they are combined by the inverse of the steps: a gradient is covariant, so that this is right for
    sheared axes as well.
    >>> steps = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # turned about the first axis
    >>> found = wanted_slopes("zy", None, Orient(steps, "mm"))
    >>> found.parts.tolist(), found.words
    ([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0]], 'slopes along the axes of the world, per mm')
    """
    numbers = list(axis_numbers(axis))
    if orient.steps is None:
        if per is None:
            return None
        return Slopes((np.eye(3) / per.lengths)[:, numbers], f"slopes per {per.word}")
    steps, unit = orient.steps, orient.unit
    if per is not None and per.unit == VOXEL:
        raise SpecError(
            "a voxel has no length along an axis of the world: with orient=world take per=mm, not per=vox"
        )
    if per is not None:
        steps, unit = per.steps, per.unit
    parts: Matrix = np.asarray(np.linalg.inv(steps), np.float64)
    parts[np.abs(parts) * np.linalg.norm(steps, axis=0)[:, None] < ROUNDING] = 0
    words = f"slopes along the axes of the world, per {unit}"
    return Slopes(parts[:, numbers], f"{words}; {orient.remark}" if orient.remark else words)


def laplacian_parts(per: Per) -> Matrix:
    """(3, 3): of each second derivative per voxel² along two of D, H, W, its part of the world's Laplacian."""
    if shear(per.steps) <= ORTHOGONAL:
        return np.diag(per.lengths**-2)
    inverse = np.linalg.inv(per.steps)
    return np.asarray(inverse @ inverse.T)


# ---------------------------------------------------------------------------------------------------------------------
# Lengths that are not along the voxel axes


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Lengths along other axes than a volume's own.

    covariance : (3, 3)     in voxels² along D, H, W: the points with iᵀ·covariance⁻¹·i <= 1 lie within the lengths
    why : str               for people
    """

    covariance: Matrix
    why: str

    @property
    def half_widths(self) -> Floats:
        """How far it reaches along D, H, W, in voxels."""
        d, h, w = np.sqrt(self.covariance.diagonal()).tolist()
        return d, h, w

    def scaled(self, factor: float) -> Ellipsoid:
        """With all lengths multiplied."""
        return Ellipsoid(self.covariance * factor**2, self.why)

    def squares(self, reach: Sequence[int]) -> Matrix:
        """iᵀ·covariance⁻¹·i for the voxels up to `reach` from the centre: (2·reach + 1) along D, H, W."""
        places = voxel_places(reach)
        inverse = np.linalg.inv(self.covariance)
        squares: Matrix = np.einsum("adhw,ab,bdhw->dhw", places, inverse, places, optimize=True)
        return squares


def voxel_places(reach: Sequence[int]) -> Matrix:
    """(3, 2·rd + 1, 2·rh + 1, 2·rw + 1): D, H, W of each voxel, from the centre."""
    return np.stack(np.meshgrid(*(np.arange(-r, r + 1.0) for r in reach), indexing="ij"))


def spread(
    value: float | Sequence[float], name: str, orient: Orient, zero: bool = False
) -> Floats | Ellipsoid:
    """A kernel's lengths on its grid: three in voxels along D, H, W wherever those axes serve, else an `Ellipsoid`.

    value       as a kernel function takes it, in voxels; `PhysicalLengths` where a unit was given
    zero : bool     whether 0 is allowed on an axis

    Lengths in voxels are along the voxel axes. So are lengths in mm where these stand at right angles (to `ORTHOGONAL`), and
    `orient` does not ask for others. On a sheared grid equal lengths are a ball in the world; three different ones are taken
    along the voxel axes made orthogonal, each turned as little as can be. Raises: SpecError.
    """
    along = voxels(value, name, zero)
    if not isinstance(value, PhysicalLengths):
        return along
    lengths, units = value.lengths, unit_steps(value.steps)
    right = shear(value.steps) <= ORTHOGONAL
    if right and (orient.steps is None or len(set(lengths)) == 1):
        return along
    if (
        right and np.abs(units).max(axis=0).min() >= 1 - ORTHOGONAL**2
    ):  # every voxel axis is one of the world's
        d, h, w = (
            lengths[place] / float(np.linalg.norm(step))
            for place, step in zip(np.abs(units).argmax(axis=0), value.steps.T, strict=True)
        )
        return d, h, w
    if 0 in lengths:
        return _without_zeros(along, lengths, units, name, orient)
    axes = np.eye(3)
    why = "the lengths are along the world's axes, oblique to the voxel axes"
    if not right:
        why = angle_words(value.steps)
        if orient.steps is None:
            left, _, rotation = np.linalg.svd(units)
            axes = left @ rotation
    half = np.linalg.inv(value.steps) @ axes * lengths
    return Ellipsoid(half @ half.T, why)


def angle_words(steps: Matrix) -> str:
    """How far the axes of a sheared grid are from right angles, for people.

    steps : (3, 3)      as `Grid.steps_in` has them

    >>> angle_words(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    'the voxel axes stand at 45 degrees'
    """
    cosine = min(1.0, shear(steps))
    return f"the voxel axes stand at {math.degrees(math.acos(cosine)):.4g} degrees"


def _without_zeros(
    along: Floats, lengths: Floats, units: Matrix, name: str, orient: Orient
) -> Floats:
    """Lengths of which some are 0: they must lie along voxel axes at right angles."""
    kept = [a for a, length in enumerate(lengths) if length]
    if orient.steps is None and (len(kept) < 2 or shear(units[:, kept]) <= ORTHOGONAL):
        return along
    what = (
        "the axes of the world, to which this volume's are oblique"
        if orient.steps is not None
        else "sheared axes"
    )
    raise SpecError(
        f"{name} of 0 along one axis cannot be kept along {what}; give a small length in its place"
    )
