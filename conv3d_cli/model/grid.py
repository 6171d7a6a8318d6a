"""The geometry of volumes: spacing, units and affines, and how a convolution changes them.

`grid_after` is the only place that moves an origin or changes a spacing; formats write its result.
Sizes are the business of `spec.py`; no file is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conv3d_cli.errors import ShapeError, SpecError
from conv3d_cli.model.spec import ConvProblem, VoxelTransform

Affine = NDArray[np.float64]

# Axes with a smaller cosine between them count as orthogonal. The weights of a Gaussian are then
# off by less than 4e-5 of the largest.
ORTHOGONAL = 1e-4
# Smallest volume of the cell spanned by three unit vectors along the axes; orthogonal ones span 1.
MIN_CELL_VOLUME = 1e-6

# length of one unit in mm
UNITS = {"nm": 1e-6, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1000.0}
# Spellings in files: with the micro sign, the Greek letter, and ImageJ's literal text "\u00b5".
UNIT_ALIASES = {
    "µm": "um",
    "μm": "um",
    "\\u00b5m": "um",
    "micron": "um",
    "microns": "um",
    "micrometer": "um",
    "nanometer": "nm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}


def unit_name(text: str | None) -> str | None:
    """The package's name for a unit of length that a file names; None for others (`pixel`, empty).

    >>> unit_name("µm"), unit_name("Micron"), unit_name("pixel")
    ('um', 'um', None)
    """
    key = (text or "").strip().strip("\0").lower()
    key = UNIT_ALIASES.get(key, key)
    return key if key in UNITS else None


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie in the world. Fields are None if unknown.

    spacing : (D, H, W) floats or None      distance between voxel centres, in `unit`
    unit : str or None                      "nm" | "um" | "mm" | "cm" | "m"
    affine : (4, 4) float64 or None         voxel (i, j, k, 1) = (w, h, d, 1) -> world, in `unit`
    qform : (4, 4) float64 or None          a second affine, for formats that store two (NIfTI)
    anatomical : bool                       the file says that world x, y, z point to the subject's
                                            right, front and head (NIfTI)
    """

    spacing: tuple[float, float, float] | None = None
    unit: str | None = None
    affine: Affine | None = None
    qform: Affine | None = None
    anatomical: bool = False

    def spacing_in(self, unit: str) -> tuple[float, float, float]:
        """The spacing (D, H, W) in another unit.

        Raises: SpecError for an unknown unit, ShapeError if the volume has no spacing.
        >>> Grid((2.0, 0.5, 0.5), "um").spacing_in("nm")
        (2000.0, 500.0, 500.0)
        """
        if unit not in UNITS:
            raise SpecError(f"a unit of length is one of {', '.join(UNITS)}, received '{unit}'")
        if self.spacing is None or self.unit is None:
            raise ShapeError(
                f"the volume has no voxel spacing, so a length in {unit} cannot be used; "
                "give it in vox"
            )
        factor = UNITS[self.unit] / UNITS[unit]
        # rounded to twelve digits: 0.1 um is 100 nm, not 100.00000000000001
        d, h, w = (float(s) if factor == 1 else float(f"{s * factor:.12g}") for s in self.spacing)
        return d, h, w

    def steps_in(self, unit: str | None = None) -> NDArray[np.float64] | None:
        """World displacements (3, 3) of a step of one voxel, in `unit` (None: the grid's own).

        Its columns are the steps along D, H, W, its rows the world's z, y, x. Without an affine the
        axes are those of the world. None without a spacing.
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
        affine=None if grid.affine is None else grid.affine @ matrix,
        qform=None if grid.qform is None else grid.qform @ matrix,
    )


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
    i, j, k = (float(np.linalg.norm(affine[:3, column])) for column in range(3))
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
