"""How a slice is turned so that it stands upright, and what lies at its edges.

Where a file says where its subject's right, front and head are, slices are drawn so that world coordinates grow to the right
and upwards: R on the right, A and S on top (A on the right of a sagittal slice). Voxels are turned and mirrored, never
resampled. Elsewhere rows are drawn as they are stored, the first on top.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.pictures.slices import Values

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # against and along world x, y, z
NAMES = ("sagittal", "coronal", "axial")  # of a plane across world x, y, z
OBLIQUE = 0.5  # degrees between a voxel axis and a world axis, from which on it is told


@dataclass(frozen=True)
class Orientation:
    """How the slices across one axis are drawn.

    axis : int                  0, 1, 2: the slice is across depth, height, width
    down, right : int           the voxel axes that run down and to the right
    flip_down, flip_right       whether they run against their voxel numbers
    letters : 4 str             at the left, right, top and bottom edge; "" without anatomy
    name : str                  "axial" and so on, or ""
    """

    axis: int
    down: int
    right: int
    flip_down: bool = False
    flip_right: bool = False
    letters: tuple[str, str, str, str] = ("", "", "", "")
    name: str = ""

    def upright(self, plane: Values) -> Values:
        """A plane over the two other axes, the slower one first, as it is drawn: (rows, columns)."""
        turned = plane if self.down < self.right else plane.T
        return turned[:: -1 if self.flip_down else 1, :: -1 if self.flip_right else 1]

    @property
    def words(self) -> str:
        """Which way the axes run."""
        down = f"{AXIS_NAMES[self.down]} {'up' if self.flip_down else 'down'}"
        return (
            f"{down}, {AXIS_NAMES[self.right]} {'leftwards' if self.flip_right else 'to the right'}"
        )


def orientations(grid: Grid) -> tuple[Orientation, Orientation, Orientation]:
    """How the slices across depth, height and width are drawn.

    >>> first, _, _ = orientations(Grid((1.0, 1.0, 1.0), "mm", np.diag([-1.0, 1.0, 1.0, 1.0]), anatomical=True))
    >>> first.name, first.letters, first.flip_right, first.flip_down
    ('axial', ('L', 'R', 'A', 'P'), True, True)
    """
    nearest = _nearest(grid)
    found = []
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        if nearest is None:
            found.append(Orientation(axis, first, second))
            continue
        right, down = sorted((first, second), key=lambda other: nearest[other][0])
        (across, along), (upward, rising) = nearest[right], nearest[down]
        left_letter, right_letter = LETTERS[across]
        bottom, top = LETTERS[upward]
        found.append(
            Orientation(
                axis, down, right, flip_down=rising, flip_right=not along,
                letters=(left_letter, right_letter, top, bottom), name=NAMES[nearest[axis][0]],
            )
        )  # fmt: skip
    return found[0], found[1], found[2]


def tilt(grid: Grid) -> float:
    """Largest angle, in degrees, between a voxel axis and the world axis whose letters it bears; 0 without anatomy."""
    directions, nearest = _directions(grid), _nearest(grid)
    if directions is None or nearest is None:
        return 0.0
    cosines = [abs(directions[axis][nearest[axis][0]]) for axis in range(3)]
    return math.degrees(math.acos(min(1.0, min(cosines))))


def _directions(grid: Grid) -> Values | None:
    """Unit vectors of the axes D, H, W in the world, (3, 3); None where the file does not say, or they span no space."""
    if not grid.anatomical or grid.affine is None:
        return None
    vectors = grid.affine[:3, [2, 1, 0]].T
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or lengths.min() == 0:
        return None
    directions = vectors / lengths
    return directions if abs(np.linalg.det(directions)) > 1e-6 else None


def _nearest(grid: Grid) -> tuple[tuple[int, bool], ...] | None:
    """For D, H, W the nearest world axis, each taken once, and whether they run the same way."""
    directions = _directions(grid)
    if directions is None:
        return None
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(directions[a][w]) for a, w in enumerate(order)),
    )
    return tuple((world, bool(directions[axis][world] > 0)) for axis, world in enumerate(best))
