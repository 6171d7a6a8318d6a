"""The geometry of volumes: spacing, units and affines, and how a convolution changes them.

`grid_after` is the only place that moves an origin or changes a spacing; formats write its result.
Sizes are the business of `spec.py`; no file is opened here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError, setting, words
from conv3d_cli.model.spec import ConvProblem, VoxelTransform
from conv3d_cli.model.units import UNITS
from conv3d_cli.system import linear

Affine = NDArray[np.float64]

# Axes with a smaller cosine between them count as orthogonal. The weights of a Gaussian are then
# off by less than 4e-5 of the largest.
ORTHOGONAL = 1e-4
# Smallest volume of the cell spanned by three unit vectors along the axes; orthogonal ones span 1.
MIN_CELL_VOLUME = 1e-6

# Relative difference up to which a spacing in a file is the same as one that the user gives: files
# hold float32, or few digits.
SAME_SPACING = 1e-3


class Spacing(NamedTuple):
    """Distance between voxel centres as a user gives it.

    lengths : 3 floats      along D, H, W, positive
    unit : str              of `UNITS`
    """

    lengths: tuple[float, float, float]
    unit: str

    def __str__(self) -> str:
        return f"{triple_text(self.lengths)} {self.unit}"


def triple_text(values: Iterable[float]) -> str:
    """Three numbers separated by commas; a single one if all are equal.

    >>> triple_text((2, 2, 2)), triple_text((1, 0.5, 0.5))
    ('2', '1,0.5,0.5')
    """
    texts = [f"{v:.6g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie in the world. Fields are None if unknown.

    spacing : (D, H, W) floats or None      distance between voxel centres, in `unit`
    unit : str or None                      "nm" | "um" | "mm" | "cm" | "m"
    affine : (4, 4) float64 or None         voxel (i, j, k, 1) = (w, h, d, 1) -> world, in `unit`
    qform : (4, 4) float64 or None          a second affine, for formats that store two (NIfTI)
    anatomical : bool                       the file says that world x, y, z point to the subject's
                                            right, front and head (NIfTI)
    assumed : frozenset of str              what the file does not tell, and its reader assumed:
                                            "unit", or the spacing along "d", "h", "w"
    guesses : tuple of str                  the reader's notes on these, void when a user tells them
    other_spacing : (D, H, W) or None       a second spacing in `unit`, where a file contradicts
                                            itself (NIfTI: pixdim against the sform)

    Raises: SpecError for another unit, or fields of another shape.
    >>> Grid((3.0, 1.5, 1.5), "mm").spacing_words
    '3,1.5,1.5 mm'
    """

    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    affine: Affine | None = None
    qform: Affine | None = None
    anatomical: bool = False
    assumed: frozenset[str] = frozenset()
    guesses: tuple[str, ...] = ()
    other_spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name, shape, what in (
            ("spacing", (3,), "three numbers in D, H, W order, as in Grid((3.0, 1.0, 1.0), 'mm')"),
            ("other_spacing", (3,), "three numbers in D, H, W order"),
            ("affine", (4, 4), "an array of 4 x 4 numbers"),
            ("qform", (4, 4), "an array of 4 x 4 numbers"),
        ):
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise SpecError(f"{name} must be {what}, received {value!r}")
        if self.unit is not None and self.unit not in UNITS:
            raise SpecError(f"unit must be one of {', '.join(UNITS)}, received {self.unit!r}")

    @property
    def by_other_spacing(self) -> Grid:
        """The grid with `other_spacing`, if there is one; the directions of its axes stay.

        >>> Grid((2.0, 2.0, 2.0), "mm", other_spacing=(5.0, 1.5, 1.5)).by_other_spacing.spacing
        (5.0, 1.5, 1.5)
        """
        if self.other_spacing is None or self.spacing is None:
            return self
        factors = np.array(self.other_spacing[::-1]) / np.array(self.spacing[::-1])
        return replace(
            self,
            spacing=self.other_spacing,
            affine=_scaled_columns(self.affine, factors),
            qform=None,
            other_spacing=None,
        )

    @property
    def spacing_words(self) -> str:
        """The spacing with its unit as texts print it.

        >>> Grid((3.0, 1.0, 1.0), "mm").spacing_words, Grid((3.0, 1.0, 1.0)).spacing_words
        ('3,1,1 mm', '3,1,1 without a unit')
        """
        if self.spacing is None:
            return "unknown"
        return f"{triple_text(self.spacing)} {self.unit or 'without a unit'}"

    @property
    def lacks(self) -> str:
        """What keeps lengths from being converted to voxels; "" if nothing does.

        The end of a sentence about a volume.
        >>> Grid().lacks, Grid((3.0, 1.0, 1.0)).lacks
        ('tells no voxel spacing', 'tells a voxel spacing (3,1,1) without a unit')
        """
        if self.spacing is None:
            return "tells no voxel spacing"
        if self.unit is None:
            return f"tells a voxel spacing ({triple_text(self.spacing)}) without a unit"
        return ""

    def spacing_in(self, unit: str) -> tuple[float, float, float]:
        """The spacing (D, H, W) in another unit.

        Raises: SpecError for an unknown unit, ShapeError without a spacing or without its unit.
        >>> Grid((2.0, 0.5, 0.5), "um").spacing_in("nm")
        (2000.0, 500.0, 500.0)
        """
        if unit not in UNITS:
            raise SpecError(f"a unit of length is one of {', '.join(UNITS)}, received '{unit}'")
        if self.spacing is None or self.unit is None:
            given = f"2,1,1{unit}" if self.spacing is None else f"{triple_text(self.spacing)}{unit}"
            raise ShapeError(
                f"the volume {self.lacks}, so a length in {unit} cannot be used; give it in vox, "
                f"or tell the spacing, as in "
                + words(f"--spacing {given}", f"spacing='{given}', or a Grid with a unit")
            )
        factor = UNITS[self.unit] / UNITS[unit]
        # rounded to twelve digits: 0.1 um is 100 nm, not 100.00000000000001
        d, h, w = (float(s) if factor == 1 else float(f"{s * factor:.12g}") for s in self.spacing)
        return d, h, w

    def steps_in(self, unit: str | None = None) -> NDArray[np.float64] | None:
        """World displacements (3, 3) of a step of one voxel, in `unit` (None: the grid's own).

        Its columns are the steps along D, H, W, its rows the world's z, y, x. Without an affine the
        axes are those of the world. None without a spacing or without its unit.
        Raises: ShapeError if the axes lie in one plane.
        >>> Grid((3.0, 1.0, 1.0), "mm", np.diag([-1.0, 1.0, 3.0, 1.0])).steps_in().tolist()
        [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]
        """
        if self.spacing is None or self.unit is None:
            return None
        factor = 1.0 if unit is None else UNITS[self.unit] / UNITS[unit]
        steps = np.diag(self.spacing) if self.affine is None else self.affine[2::-1, 2::-1]
        lengths = np.linalg.norm(steps, axis=0)
        if (
            not np.isfinite(lengths).all()
            or not lengths.all()
            or abs(np.linalg.det(steps / lengths)) < MIN_CELL_VOLUME
        ):
            raise ShapeError("the volume's affine has no inverse: its axes lie in one plane")
        return steps * factor + 0.0

    def world(self, index: tuple[float, float, float]) -> NDArray[np.float64]:
        """World coordinates x, y, z (3,) of voxel (d, h, w), in `unit`.

        Raises: ShapeError without an affine.
        >>> Grid((3.0, 1.0, 1.0), "mm", np.diag([-1.0, 1.0, 3.0, 1.0])).world((2, 0, 5)).tolist()
        [-5.0, 0.0, 6.0]
        """
        if self.affine is None:
            raise ShapeError("the volume has no affine")
        d, h, w = index
        point: NDArray[np.float64] = self.affine @ np.array([w, h, d, 1.0])
        return point[:3]


def length_scale(grid: Grid) -> tuple[tuple[float, float, float], str]:
    """Factors (D, H, W) that convert voxels to lengths, and their unit; 1 and "vox" if unknown.

    >>> length_scale(Grid((3.0, 1.0, 1.0), "mm")), length_scale(Grid((3.0, 1.0, 1.0)))
    (((3.0, 1.0, 1.0), 'mm'), ((1.0, 1.0, 1.0), 'vox'))
    """
    if grid.spacing is None or grid.unit is None:
        return (1.0, 1.0, 1.0), "vox"
    return grid.spacing, grid.unit


def transform_matrix(transform: VoxelTransform) -> Affine:
    """The (4, 4) matrix from output voxel (i, j, k) to input voxel, with steps on the diagonal."""
    matrix = np.diag([*map(float, transform.step[::-1]), 1.0])
    matrix[:3, 3] = transform.offset[::-1]
    return matrix


def grid_after(grid: Grid, change: ConvProblem | VoxelTransform) -> Grid:
    """The grid of a convolution's output.

    The affines are multiplied by the matrix of the voxel transform, the spacing by its steps.
    >>> from conv3d_cli.model.spec import ConvSpec
    >>> grid = Grid((3.0, 1.0, 1.0), "mm", np.diag([1.0, 1.0, 3.0, 1.0]))
    >>> problem = ConvSpec(strides=2, padding="same").resolve((1, 6, 6, 6, 1), (3, 3, 3, 1, 1))
    >>> after = grid_after(grid, problem)
    >>> after.spacing, after.affine[:3, 3].tolist()
    ((6.0, 2.0, 2.0), [1.0, 1.0, 3.0])
    """
    transform = change.voxel_transform if isinstance(change, ConvProblem) else change
    if transform.is_identity:
        return grid
    matrix = transform_matrix(transform)
    spacing = grid.spacing
    if spacing is not None:
        d, h, w = (s * step for s, step in zip(spacing, transform.step, strict=True))
        spacing = (d, h, w)
    return replace(
        grid,
        spacing=spacing,
        affine=None if grid.affine is None else linear.combine(grid.affine, matrix),
        qform=None if grid.qform is None else linear.combine(grid.qform, matrix),
        other_spacing=None,
    )


def complete_grid(grid: Grid, given: Spacing, axes: str = "zyx") -> tuple[Grid, str]:
    """Add the spacing that a user gives to the grid of a file, and keep what the file tells.

    axes : str      letters of the volume's axes; of an axis that it does not have, files tell no
                    spacing

    The rule: a file that tells no spacing gets the given one. Numbers without a unit get the given
    unit; if they are other numbers, they are replaced, and a note says so. Lengths with a unit must
    be those given (to `SAME_SPACING`). Where a format's readers assume a unit, numbers without a
    unit count as lengths in it, unless all are 1.

    The columns of the affine are scaled as the spacing. The voxel at the world's zero stays there.

    Returns the grid, and a note or "". Raises: ShapeError if the file tells another spacing.
    >>> grid, note = complete_grid(Grid((0.3, 0.1, 0.1)), Spacing((0.3, 0.1, 0.1), "um"))
    >>> grid.spacing_words, note
    ('0.3,0.1,0.1 um', '')
    """
    if grid.spacing is None:
        return Grid(given.lengths, given.unit, affine_from_spacing(given.lengths)), ""
    told = [
        letter not in grid.assumed and axis in axes
        for letter, axis in zip("dhw", "zyx", strict=True)
    ]

    def agrees(lengths: Iterable[float]) -> bool:
        pairs = zip(told, grid.spacing or (), lengths, strict=True)
        return all(abs(a - b) <= SAME_SPACING * b for known, a, b in pairs if known)

    unit, lengths, note = grid.unit, given.lengths, ""
    if unit is not None:
        lengths = Grid(given.lengths, given.unit).spacing_in(unit)
    if unit is None or not agrees(lengths):
        if unit is not None and "unit" not in grid.assumed:
            raise _contradiction(grid, given)
        unit, lengths = given.unit, given.lengths
        if not agrees(lengths):
            if grid.unit is not None and not agrees((1.0, 1.0, 1.0)):
                raise _contradiction(grid, given)
            told = [False] * 3
            note = (
                f"the file's voxel spacing of {triple_text(grid.spacing)} without a unit is "
                f"replaced by {setting('spacing', str(given))}"
            )
    d, h, w = (
        old if known else new for known, old, new in zip(told, grid.spacing, lengths, strict=True)
    )
    factors = np.array([w / grid.spacing[2], h / grid.spacing[1], d / grid.spacing[0]])
    return (
        replace(
            grid,
            spacing=(d, h, w),
            unit=unit,
            affine=_scaled_columns(grid.affine, factors),
            qform=_scaled_columns(grid.qform, factors),
            assumed=frozenset(),
            guesses=(),
        ),
        note,
    )


def _contradiction(grid: Grid, given: Spacing) -> ShapeError:
    return ShapeError(
        f"{setting('spacing', str(given))} contradicts the file, which tells a voxel spacing of "
        f"{grid.spacing_words} (depth,height,width); leave it out, or correct the file"
    )


def _scaled_columns(affine: Affine | None, factors: NDArray[np.float64]) -> Affine | None:
    """An affine whose steps along i, j, k are scaled; the voxel at the world's zero stays there.

    factors : (3,)      for i, j, k
    """
    if affine is None or np.all(factors == 1):
        return affine
    scaled = affine.copy()
    scaled[:3, :3] *= factors
    try:
        scaled[:3, 3] = scaled[:3, :3] @ np.linalg.solve(affine[:3, :3], affine[:3, 3])
    except np.linalg.LinAlgError:  # axes in one plane: no voxel is at zero for certain
        pass
    return scaled


def affine_from_spacing(
    spacing: tuple[float, float, float], origin: tuple[float, float, float] = (0, 0, 0)
) -> Affine:
    """An affine (4, 4) without rotation.

    spacing : (D, H, W), on the diagonal
    origin : (D, H, W), world coordinates of voxel 0, in the same unit
    >>> affine_from_spacing((3.0, 1.0, 1.0), (10.0, 20.0, 30.0)).tolist()[2]
    [0.0, 0.0, 3.0, 10.0]
    """
    affine = np.diag([*map(float, spacing[::-1]), 1.0])
    affine[:3, 3] = origin[::-1]
    return affine


def spacing_of_affine(affine: Affine) -> tuple[float, float, float]:
    """Voxel spacing (D, H, W): the lengths of the affine's columns."""
    i, j, k = (linear.length(affine[:3, column]) for column in range(3))
    return k, j, i


def unit_steps(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel steps (3, 3) with every column scaled to length 1."""
    return np.asarray(steps / np.linalg.norm(steps, axis=0))


def shear(steps: NDArray[np.float64]) -> float:
    """The largest |cosine| between two of the steps (columns); 0 if all are at right angles.

    >>> round(shear(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 2.0]])), 6)
    0.707107
    """
    units = unit_steps(steps)
    return float(np.abs(np.triu(units.T @ units, 1)).max())
