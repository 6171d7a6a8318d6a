"""The orientation of slices on the page, and the anatomical letters at their edges.

If a file says where its subject's right, front and head are, slices are drawn so that world
coordinates increase to the right and upwards: R on the right, A and S on top (A on the right of a
sagittal slice). Slices are transposed and mirrored, never resampled. Without anatomy, rows are
drawn as stored, the first on top.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from conv3d_cli.model.grid import Grid
from conv3d_cli.model.spec import AXIS_NAMES
from conv3d_cli.pictures.slices import Values

LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # at the low and high ends of world x, y, z
NAMES = ("sagittal", "coronal", "axial")  # of planes across world x, y, z
OBLIQUE = 0.5  # degrees between a voxel axis and a world axis, from which captions mention it


@dataclass(frozen=True)
class Orientation:
    """How the slices across one axis are drawn.

    axis : int                      0, 1, 2: slices across depth, height, width
    down, right : int               the voxel axes that run down and to the right
    flip_down, flip_right : bool    their voxel numbers decrease in that direction
    letters : 4 str                 at the left, right, top and bottom edge; "" without anatomy
    name : str                      "axial", "coronal" or "sagittal"; "" without anatomy
    """

    axis: int
    down: int
    right: int
    flip_down: bool = False
    flip_right: bool = False
    letters: tuple[str, str, str, str] = ("", "", "", "")
    name: str = ""

    def upright(self, plane: Values) -> Values:
        """The (rows, columns) of a plane as drawn.

        plane : over the two other axes, the slower one first
        """
        turned = plane if self.down < self.right else plane.T
        return turned[:: -1 if self.flip_down else 1, :: -1 if self.flip_right else 1]

    @property
    def directions(self) -> str:
        """The directions of the two axes in words.

        >>> Orientation(0, down=1, right=2, flip_right=True).directions
        'height down, width leftwards'
        """
        down = "up" if self.flip_down else "down"
        right = "leftwards" if self.flip_right else "to the right"
        return f"{AXIS_NAMES[self.down]} {down}, {AXIS_NAMES[self.right]} {right}"


def orientations(grid: Grid) -> tuple[Orientation, Orientation, Orientation]:
    """The orientations of the slices across depth, height and width.

    >>> affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    >>> first, _, _ = orientations(Grid((1.0, 1.0, 1.0), "mm", affine, anatomical=True))
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
        (right_world, right_along), (down_world, down_along) = nearest[right], nearest[down]
        left_letter, right_letter = LETTERS[right_world]
        bottom, top = LETTERS[down_world]
        found.append(
            Orientation(
                axis,
                down,
                right,
                flip_down=down_along,
                flip_right=not right_along,
                letters=(left_letter, right_letter, top, bottom),
                name=NAMES[nearest[axis][0]],
            )
        )
    return found[0], found[1], found[2]


def tilt(grid: Grid) -> float:
    """The largest angle between a voxel axis and its nearest world axis, in degrees.

    0 without anatomy.
    """
    directions, nearest = _directions(grid), _nearest(grid)
    if directions is None or nearest is None:
        return 0.0
    cosines = [abs(directions[axis][nearest[axis][0]]) for axis in range(3)]
    return math.degrees(math.acos(min(1.0, min(cosines))))


def _directions(grid: Grid) -> Values | None:
    """Unit vectors (3, 3) of the axes D, H, W in the world; None without anatomy.

    None as well if the affine is not finite or has no inverse.
    """
    if not grid.anatomical or grid.affine is None:
        return None
    vectors = grid.affine[:3, [2, 1, 0]].T
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or lengths.min() == 0:
        return None
    directions = vectors / lengths
    return directions if abs(np.linalg.det(directions)) > 1e-6 else None


def _nearest(grid: Grid) -> tuple[tuple[int, bool], ...] | None:
    """The nearest world axis of D, H, W, and whether they point the same way; None without anatomy.

    Each world axis is used once.
    """
    directions = _directions(grid)
    if directions is None:
        return None
    best = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(directions[a][w]) for a, w in enumerate(order)),
    )
    return tuple((world, bool(directions[axis][world] > 0)) for axis, world in enumerate(best))
